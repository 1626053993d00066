from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import TABLE, ToyEnv
from toy_model import toy_spec

from latentplan.data.images import action_to_pixel
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


def test_the_image_determines_the_picks():
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


def test_the_whole_box_is_used_if_nothing_can_be_picked():
    env = ToyEnv()
    empty = {"rgb": np.zeros((64, 64, 3), np.uint8)}
    assert isinstance(from_observation(env.data_spec, empty), Box)
    spec = toy_spec(states=3, actions=2, bound=0.5)
    space = from_observation(spec, {"state": np.zeros(3, np.float32)})
    assert isinstance(space, Box) and space.high.tolist() == [0.5, 0.5]


@settings(max_examples=200, deadline=None)
@given(
    low=st.floats(-1e3, 1e3, width=32),
    width=st.floats(0, 1e3, width=32),
    rate=st.floats(2**-20, 2e3, width=32),
    at=st.floats(0, 1, width=32),
    known=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_rate_holds_to_the_last_bit_and_what_keeps_it_stays(
    low, width, rate, at, known, dtype, seed
):
    low, rate = torch.tensor([low, -1.0], dtype=dtype), torch.tensor([rate, 0.3], dtype=dtype)
    high = low + torch.tensor([width, 2.0], dtype=dtype)
    previous = (low + at * (high - low)).clamp(low, high).expand(2, -1) if known else None
    box = Box(low, high, problems=2, rate=rate, previous=previous)
    wild = torch.randn(2, 9, 6, 2, dtype=dtype, generator=seeded(seed)) * (1 + width)
    for actions in (box.sample(9, 6, generator=seeded(seed)), box.project(wild + low)):
        assert ((actions >= low) & (actions <= high)).all()
        chain = actions if previous is None else _after(previous, actions)
        assert (chain.double().diff(dim=2).abs() <= rate).all()
        assert torch.equal(box.project(actions), actions)


def _after(previous, actions):
    first = previous[:, None, None].expand(-1, actions.shape[1], -1, -1)
    return torch.cat([first, actions], dim=2)


def test_a_rate_limit_changes_only_what_exceeds_it():
    box = Box(LOW, HIGH, rate=torch.full((4,), 0.25), previous=torch.zeros(1, 4))
    tame = torch.tensor([0.1, 0.3, 0.5]).view(1, 1, 3, 1).expand(-1, -1, -1, 4)
    assert torch.equal(box.project(tame), tame)
    found = box.project(torch.ones(1, 1, 6, 4))[0, 0, :, 0]
    torch.testing.assert_close(found, torch.tensor([0.25, 0.5, 0.75, 1, 1, 1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ({"rate": torch.tensor([0.1, 0.0, 0.1, 0.1])}, "Box.rate: found .* need more than 0"),
        ({"rate": torch.full((4,), torch.nan)}, "Box.rate: found .* need more than 0"),
        ({"rate": torch.full((3,), 0.1)}, "Box.rate: found shape"),
        ({"previous": torch.zeros(2, 4)}, "Box.previous: found shape"),
        ({"previous": torch.full((1, 4), 1.1)}, "Box.previous: found .* need it within"),
        ({"previous": torch.full((1, 4), torch.nan)}, "Box.previous: found .* need it within"),
    ],
)
def test_rates_and_previous_actions_that_do_not_fit_are_refused(rest, message):
    with pytest.raises(ShapeError, match=message):
        Box(LOW, HIGH, **rest)
