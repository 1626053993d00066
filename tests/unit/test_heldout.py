"""Held-out figures against cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor
from toy_model import ToyModel, toy_spec

from latentplan.training.heldout import HeldOut, distances, evaluate, for_model, spearman, top1
from latentplan.types import Batch

SIZE = 32


def batches(model: ToyModel, count: int = 4, *, noise: float = 0.0, window: int = 2) -> list[Batch]:
    """Return windows that `model` predicts exactly but for the noise."""
    rng = torch.Generator().manual_seed(5)
    made = []
    for _ in range(count):
        states = [torch.randn(SIZE, 4, generator=rng)]
        actions = torch.rand(SIZE, window - 1, 2, generator=rng) * 2 - 1
        for action in actions.unbind(1):
            after = states[-1] @ model.A.T + action @ model.B.T
            states.append((after + noise * torch.randn(after.shape, generator=rng)).detach())
        state = torch.stack(states, 1)
        points = state.reshape(SIZE, window, 2, 2)  # two points in the plane
        made.append(Batch({"state": state}, actions, targets={"keypoints": points}))
    return made


def judged(model: ToyModel, data: list[Batch], keypoints: str | None = None) -> dict[str, float]:
    return evaluate(model, HeldOut(data, data, keypoints))


@pytest.mark.parametrize("context", [1, 2])
def test_an_exact_model_is_perfect(context: int) -> None:
    model = ToyModel(toy_spec(), ToyModel.Config(context=context))
    figures = judged(model, batches(model, window=context + 1))
    assert figures["loss"] == pytest.approx(0, abs=1e-9)
    assert figures["top1"] == 1.0
    assert figures["top1_of"] == 4 * SIZE
    assert figures["error"] == pytest.approx(0, abs=1e-6)


def test_the_error_is_a_share_of_the_change() -> None:
    model = ToyModel(toy_spec())
    data = batches(model, noise=0.5)
    with torch.no_grad():
        model.A.copy_(torch.eye(4))
        model.B.zero_()  # predicts no change
    assert judged(model, data)["error"] == pytest.approx(1.0)


def test_the_loss_is_the_mean_of_the_models_own() -> None:
    model = ToyModel(toy_spec())
    data = batches(model, noise=0.5)
    own = [model.loss(b).total.item() for b in data]
    figures = evaluate(model, HeldOut(data[:3], data[3:]))
    assert figures["loss"] == pytest.approx(np.mean(own[:3]), rel=1e-6)
    assert figures["top1_of"] == SIZE
    assert 1 / SIZE < figures["top1"] < 1


def test_actions_of_others_make_retrieval_worse() -> None:
    model = ToyModel(toy_spec())
    data = batches(model)
    shuffled = [Batch(b.observations, b.actions.roll(1, 0)) for b in data]
    assert judged(model, shuffled)["top1"] < 0.9 < judged(model, data)["top1"]


def test_a_collapsed_encoder_scores_chance() -> None:
    class Collapsed(ToyModel):
        def encode(self, observations):
            return super().encode(observations) * 0

    model = Collapsed(toy_spec())
    model.B.data.zero_()
    figures = judged(model, batches(model), "keypoints")
    assert figures["top1"] == pytest.approx(1 / (4 * SIZE))
    assert figures["spearman"] == 0.0 and figures["error"] == 1.0


def test_keypoints_are_kept_from_the_model() -> None:
    model = ToyModel(toy_spec())
    batch = batches(model)[0]
    assert set(for_model(batch, model).observations) == {"state"}
    assert not for_model(batch, model).targets
    assert "spearman" not in judged(model, [batch])


def test_evaluation_changes_nothing() -> None:
    model = ToyModel(toy_spec())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    for training in (True, False):
        model.train(training)
        torch.manual_seed(1)
        first = judged(model, batches(model, noise=0.1))
        assert torch.equal(torch.rand(3), expected)
        assert first == judged(model, batches(model, noise=0.1))
        assert model.training is training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_random_parts_of_a_loss_are_the_same_each_time() -> None:
    class Masked(ToyModel):
        def loss(self, batch):
            batch = Batch(
                {k: v * (torch.rand(v.shape) < 0.5) for k, v in batch.observations.items()},
                batch.actions,
            )
            return super().loss(batch)

    model = Masked(toy_spec())
    data = batches(model)
    assert judged(model, data) == judged(model, data)


def test_top1_by_hand() -> None:
    nexts = torch.tensor([[0.0], [1.0], [2.0], [2.0]])
    predicted = torch.tensor([[0.1], [1.9], [2.0], [9.0]])
    # right; nearer to 2; two that tie; two that tie
    assert top1(predicted, nexts) == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)


def test_distances_by_hand() -> None:
    line = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    points = torch.stack([line, line.flip(0), line + torch.tensor([0.0, 4.0])])
    latents = torch.tensor([[0.0, 0.0], [0.0, 3.0], [4.0, 0.0]])
    far, apart = distances(latents, points)  # pairs 0-2, 1-0, 2-1, then 0-1, 1-2, 2-0
    assert far.tolist() == pytest.approx([4, 3, 5, 3, 5, 4])
    assert apart.tolist() == pytest.approx([4, 0, 4, 0, 4, 4])  # either end may come first


def test_distances_of_isometric_latents_rank_alike() -> None:
    rng = torch.Generator().manual_seed(0)
    points = torch.rand(200, 1, 2, generator=rng)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    assert spearman(*distances(points[:, 0] @ turn * 7, points)) == pytest.approx(1.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=40))
def test_spearman_is_scipys(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, float).T
    found = spearman(x, y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert found == 0.0
    else:
        assert math.isclose(found, spearmanr(x, y).statistic, abs_tol=1e-9)


def test_order_of_distances_sees_a_scrambled_encoder() -> None:
    class Scrambled(ToyModel):
        def encode(self, observations) -> Tensor:
            latents = super().encode(observations)
            return torch.sin(1e4 * latents)

    good, bad = ToyModel(toy_spec()), Scrambled(toy_spec())
    data = batches(good, 8)
    assert judged(good, data, "keypoints")["spearman"] > 0.8
    assert abs(judged(bad, data, "keypoints")["spearman"]) < 0.2
