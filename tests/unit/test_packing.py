"""Packed rows: every observation once, and the loss and gradients of examples one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentplan.data.packing import (
    PackedWindows,
    example_weights,
    pack,
    pieces,
    position_weights,
)
from latentplan.data.store import ZarrStore
from latentplan.data.windows import is_test
from latentplan.errors import ConfigError, ShapeError
from latentplan.types import ActionSpec, ArraySpec, Episode, Spec

LENGTHS = [3, 9, 4, 25, 7, 2, 6, 11]  # observations of each episode


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "steps.zarr"
    spec = Spec({"at": ArraySpec((2,), "float32")}, ActionSpec((-99.0,), (99.0,)))
    with ZarrStore.create(path, spec) as made:
        for number, length in enumerate(LENGTHS):
            at = np.stack([np.full(length, number), np.arange(length)], axis=1).astype(np.float32)
            rewards = np.zeros(length - 1, np.float32)
            made.append(Episode({"at": at}, at[:-1, 1:], rewards))
    with ZarrStore.open(path) as opened:
        yield opened


@given(st.lists(st.integers(1, 12), max_size=30), st.integers(12, 20))
def test_each_example_is_in_one_row_and_rows_are_not_too_long(lengths, row):
    rows = pack(lengths, row)
    assert sorted(index for each in rows for index in each) == [*range(len(lengths))]
    assert all(sum(lengths[index] for index in each) <= row for each in rows)


@given(st.integers(1, 60), st.integers(2, 12))
def test_the_parts_of_a_long_episode_have_each_transition_once(length, row):
    found = [range(start, start + count) for start, count in pieces(length, row)]
    transitions = [at for each in found for at in each[:-1]]
    assert transitions == [*range(length - 1)] and found[-1][-1] == length - 1
    assert all(len(each) <= row for each in found)


def test_packed_windows_have_every_transition_of_the_split_with_its_action(store):
    windows = PackedWindows(store, length=10, batch=2, seed=3)
    assert isinstance(windows[0].segments, torch.Tensor)
    seen = []
    for index in range(-(-len(windows) // 2)):  # an epoch
        batch = windows[index]
        at, ids = batch.observations["at"], batch.segments
        within = (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] >= 0)
        assert torch.equal(at[:, 1:][within], at[:, :-1][within] + torch.tensor([0.0, 1.0]))
        assert torch.equal(batch.actions[within][:, 0], at[:, :-1][within][:, 1])
        seen += [tuple(each) for each in at[:, :-1][within].tolist()]
    trained = np.flatnonzero(~is_test(np.arange(len(LENGTHS)), 0.1))
    wanted = {(float(n), float(t)) for n in trained for t in range(LENGTHS[n] - 1)}
    assert set(seen) == wanted
    if len(windows) % 2 == 0:
        assert len(seen) == len(wanted)


def test_a_batch_depends_on_its_number_and_the_seed_alone(store):
    chosen = {"length": 10, "batch": 3, "seed": 5}
    one, other = PackedWindows(store, **chosen), PackedWindows(store, **chosen)
    for index in (4, 0):
        assert torch.equal(one[index].segments, other[index].segments)
        assert torch.equal(one[index].observations["at"], other[index].observations["at"])


def test_weights_are_those_of_padded_examples_one_a_row():
    torch.manual_seed(0)
    lengths, row = [3, 7, 2, 5, 1], 10
    packed = pack(lengths, row)
    losses = [torch.randn(n, requires_grad=True) for n in lengths]
    alone = torch.stack([each.mean() for each in losses]).mean()
    wanted = torch.autograd.grad(alone, losses)

    segments = torch.full((len(packed), row), -1)
    values = torch.zeros(len(packed), row)
    for i, members in enumerate(packed):
        joined = torch.cat([losses[m] for m in members])
        values = values.index_put((torch.tensor(i), torch.arange(len(joined))), joined)
        segments[i, : len(joined)] = torch.cat(
            [torch.full((lengths[m],), n) for n, m in enumerate(members)]
        )
    together = (example_weights(segments) * values).sum()
    assert torch.allclose(together, alone, atol=1e-7)
    for found, true in zip(torch.autograd.grad(together, losses), wanted, strict=True):
        assert torch.allclose(found, true, atol=1e-7)
    naive = (position_weights(segments) * values).sum()
    assert abs(naive - alone) > 0.01


def test_no_examples_have_no_weight():
    empty = torch.full((2, 4), -1)
    assert not example_weights(empty).any() and not position_weights(empty).any()


def test_bad_input_is_one_line(store):
    wrong = [
        (ShapeError, "example 1 of length 0, need 1 to 8", lambda: pack([3, 0], 8)),
        (ShapeError, "example 0 of length 9, need 1 to 8.*cut longer", lambda: pack([9], 8)),
        (ShapeError, "found an example of length 0", lambda: pieces(0, 8)),
        (ConfigError, "PackedWindows.length", lambda: PackedWindows(store, length=1, batch=2)),
    ]
    for error, said, call in wrong:
        with pytest.raises(error, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
