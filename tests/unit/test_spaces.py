from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import TABLE, ToyEnv
from toy_model import toy_spec

from latentplan.data.pictures import action_to_pixel
from latentplan.errors import ShapeError
from latentplan.planning.spaces import Box, Choices, from_observation

LOW, HIGH = torch.full((4,), -1.0), torch.full((4,), 1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=50, deadline=None)
@given(
    low=st.floats(-1e6, 1e6, width=32),
    width=st.floats(0, 1e6, width=32),
    seed=st.integers(0, 2**32 - 1),
)
def test_box_draws_and_projects_into_its_bounds(low, width, seed):
    low = torch.tensor([low, -1.0])
    high = low + torch.tensor([width, 2.0])
    box = Box(low, high, problems=2)
    drawn = box.sample(30, 3, generator=seeded(seed))
    assert drawn.shape == (2, 30, 3, 2)
    assert ((drawn >= low) & (drawn <= high)).all()
    assert torch.equal(box.project(drawn), drawn)
    outside = drawn + torch.randn(drawn.shape, generator=seeded(seed)) * 1e7
    inside = box.project(outside)
    assert ((inside >= low) & (inside <= high)).all()


def test_box_draws_uniformly_over_the_whole_box():
    low, high = torch.tensor([-2.0, 0.5]), torch.tensor([4.0, 0.6])
    drawn = Box(low, high).sample(20_000, 1, generator=seeded())[0, :, 0]
    torch.testing.assert_close(drawn.mean(0), (low + high) / 2, rtol=0.02, atol=0.02)
    torch.testing.assert_close(drawn.std(0), (high - low) / 12**0.5, rtol=0.02, atol=0)
    assert (drawn.amin(0) < low + 0.01).all() and (drawn.amax(0) > high - 0.01).all()


def test_picks_draw_every_point_equally_often_whatever_the_padding():
    points = [torch.rand(k, 2, generator=seeded(k)) for k in (3, 50)]
    space = Choices(LOW, HIGH, choices=points)
    drawn = space.sample(30_000, 1, generator=seeded())[:, :, 0]
    for actions, allowed in zip(drawn, points, strict=True):
        share = (actions[:, None, :2] == allowed).all(-1).float().mean(0)
        torch.testing.assert_close(
            share, torch.full((len(allowed),), 1 / len(allowed)), rtol=0.2, atol=0
        )
        assert (actions[:, 2:].abs() <= 1).all()
        assert actions[:, 2:].std() == pytest.approx(2 / 12**0.5, rel=0.03)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), gap=st.sampled_from([1.0, 1e-3, 1e-6]))
def test_picks_go_to_the_nearest_point_and_stay_there(seed, gap):
    points = [torch.rand(k, 2, generator=seeded(seed)) * gap for k in (1, 40)]
    space = Choices(LOW, HIGH, choices=points)
    wild = torch.randn(2, 20, 2, 4, generator=seeded(seed)) * 2
    tame = space.project(wild)
    assert torch.equal(tame[..., 2:], wild[..., 2:].clamp(-1, 1))
    for before, after, allowed in zip(wild, tame, points, strict=True):
        away = (before[..., None, :2] - allowed).norm(dim=-1)
        moved = (before[..., :2] - after[..., :2]).norm(dim=-1)
        torch.testing.assert_close(moved, away.amin(-1))
    assert torch.equal(space.project(tame), tame)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ([0.0, 1.0], [1.0, 0.5]),
        ([0.0, float("nan")], [1.0, 1.0]),
        ([0.0, 0.0], [1.0, float("inf")]),
    ],
)
def test_bounds_reversed_or_not_finite_are_refused(low, high):
    with pytest.raises(ShapeError, match="must be finite, low <= high"):
        Box(torch.tensor(low), torch.tensor(high))


def test_bounds_and_points_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match="Box.high: found shape"):
        Box(LOW, HIGH[:2])
    for points in (
        torch.zeros(1, 0, 2),
        torch.full((1, 3, 2), 1.5),
        torch.full((1, 1, 2), torch.nan),
    ):
        with pytest.raises(ShapeError, match="at least one row, all inside the bounds"):
            Choices(LOW, HIGH, choices=points)
    with pytest.raises(ShapeError, match="Choices.choices: found shape"):
        Choices(LOW, HIGH, choices=torch.zeros(1, 5, 9))


def test_what_is_seen_gives_the_picks():
    env = ToyEnv()
    observation, _ = env.reset(seed=3)
    space = from_observation(env.data_spec, observation)
    drawn = space.sample(500, 1, generator=seeded())[0, :, 0]
    x, y = drawn[:, 0].numpy(), drawn[:, 1].numpy()
    rows, columns = action_to_pixel(x, y, height=64, width=64)
    rows, columns = np.rint(rows).astype(int), np.rint(columns).astype(int)
    assert (observation["rgb"][rows, columns] >= 150).all()
    away = np.linalg.norm(
        drawn[:, None, :2].numpy() * TABLE - observation["keypoints"], axis=-1
    ).min(1)
    assert (away <= env.config.radius).all()  # what is drawn can really be picked


def test_the_whole_box_stands_in_where_nothing_can_be_picked():
    env = ToyEnv()
    empty = {"rgb": np.zeros((64, 64, 3), np.uint8)}
    assert isinstance(from_observation(env.data_spec, empty), Box)
    spec = toy_spec(states=3, actions=2, bound=0.5)
    space = from_observation(spec, {"state": np.zeros(3, np.float32)})
    assert isinstance(space, Box) and space.high.tolist() == [0.5, 0.5]
