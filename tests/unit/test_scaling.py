"""Scaling of actions and observations, and the statistics that it is fitted to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from point_world import stored

from latentplan.data.store import ZarrStore
from latentplan.data.windows import is_test
from latentplan.errors import StoreError
from latentplan.nn import symmetry
from latentplan.nn.scaling import ActionScaling, Scaling
from latentplan.training import statistics
from latentplan.types import ActionSpec, Moments

KEYS = ("joints", "depth", "open")


def moments(mean, std) -> Moments:
    return Moments(np.array(mean, np.float64), np.array(std, np.float64))


def test_statistics_are_those_of_the_training_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK", 4096)  # several blocks
    with ZarrStore.open(stored(tmp_path / "a.zarr", KEYS)) as store:
        found, of = statistics.statistics(store, KEYS, held_out=0.3)
        chosen = np.flatnonzero(~is_test(np.arange(len(store)), 0.3))
        assert 0 < len(chosen) < len(store)
        episodes = [store.episode(number) for number in chosen]
    for name, values in {
        "action": [each.actions for each in episodes],
        **{key: [each.observations[key] for each in episodes] for key in KEYS},
    }.items():
        here = found if name == "action" else of[name]
        rows = np.concatenate(values).astype(np.float64)
        assert here.mean.shape == here.std.shape == rows.shape[1:]
        np.testing.assert_allclose(here.mean, rows.mean(0), atol=1e-12)
        np.testing.assert_allclose(here.std, rows.std(0), atol=1e-12)
    assert of["joints"].std[2] == 0 and of["joints"].mean[2] == np.float32(0.1)


@pytest.mark.parametrize("name", ["action", "observation/joints"])
def test_what_is_not_finite_is_named_with_its_episode(name, tmp_path, monkeypatch):
    path = stored(tmp_path / "a.zarr", KEYS)
    rows = ZarrStore.rows

    def damaged(self, array, start, stop):
        found = rows(self, array, start, stop)
        if array == name and start <= 100 < stop:  # a row of episode 8, of 12 rows each
            found[100 - start, 1] = np.nan
        return found

    monkeypatch.setattr(ZarrStore, "rows", damaged)
    with ZarrStore.open(path) as store, pytest.raises(StoreError) as caught:
        statistics.statistics(store, ["joints"], held_out=0.1)
    assert f"{name} of episode 8 has a number that is NaN" in str(caught.value)


def test_a_constant_becomes_exactly_zero_and_keeps_gradients_finite():
    scaling = Scaling(3)
    scaling.fit(moments([4.0, 0.1, -2.0], [2.0, 0.0, 0.5]))
    x = torch.tensor([[6.0, 0.1, -2.0], [0.0, 7.0, -1.0]], requires_grad=True)
    found = scaling(x)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 0.0], [-2.0, 0.0, 2.0]]))
    found.sum().backward()
    assert x.grad.tolist() == [[0.5, 0.0, 2.0]] * 2
    assert (scaling.inverse(torch.randn(5, 3))[:, 1] == np.float32(0.1)).all()


def test_all_but_the_last_axis_are_pooled():
    rng = np.random.default_rng(0)
    clouds = rng.normal([1, 2, 3], [1, 5, 0.1], (50, 7, 3))
    clouds[..., 2] = 0.3
    scaling = Scaling(3)
    mean, std = clouds.mean(0), clouds.std(0)
    mean[:, 2], std[:, 2] = 0.3, 0  # as `statistics` has it
    scaling.fit(moments(mean, std))
    rows = clouds.reshape(-1, 3)
    np.testing.assert_allclose(scaling.centre, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scaling.span[:2], rows.std(0)[:2], rtol=1e-6)
    assert scaling.span[2] == 0


def test_actions_are_scaled_by_their_bounds_or_by_the_data():
    action = ActionSpec((-1.0, 0.0, -50.0, -np.inf, -1.0), (1.0, 4.0, 50.0, np.inf, 1.0))
    scaling = ActionScaling(action)
    scaling.fit(moments([0.2, 1.0, 3.0, 8.0, 0.5], [0.5, 1.0, 0.4, 2.0, 0.0]))
    assert scaling.centre.tolist() == [0.0, 2.0, 3.0, 8.0, 0.5]
    assert scaling.span.tolist() == [1.0, 2.0, pytest.approx(0.4), 2.0, 0.0]


def test_bounds_of_one_change_no_bit():
    scaling = ActionScaling(ActionSpec((-1.0,) * 4, (1.0,) * 4))
    scaling.fit(moments([0.3] * 4, [0.3, 0.5, 0.9, 0.11]))
    actions = torch.randn(100, 4)
    assert torch.equal(scaling(actions), actions)


@pytest.mark.parametrize("std", [0.5, 0.01])
def test_pairs_that_turn_together_are_scaled_alike(std):
    action = ActionSpec((-1.0, -2.0, -1.0), (1.0, 3.0, 1.0))
    scaling = ActionScaling(action, pairs=((0, 1),))
    scaling.fit(moments([0.0, 0.02, 0.0], [std, 2 * std, std]))
    assert scaling.centre[:2].tolist() == [0, 0] and scaling.span[0] == scaling.span[1]
    actions = torch.randn(9, 3)
    for matrix in symmetry.matrices():
        turned = symmetry.turn_vectors(scaling(actions), matrix, ((0, 1),))
        again = scaling(symmetry.turn_vectors(actions, matrix, ((0, 1),)))
        torch.testing.assert_close(again, turned)


def test_weights_of_before_have_the_scaling_of_a_new_network():
    scaling = ActionScaling(ActionSpec((0.0, -3.0), (4.0, 3.0)))
    scaling.use_bounds()
    found = scaling.upgraded_weights({})
    assert found["centre"].tolist() == [2, 0] and found["span"].tolist() == [2, 3]
