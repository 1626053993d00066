from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import ToyEnv

from latentplan.data.images import action_to_pixel, pixel_to_action, segment
from latentplan.errors import ConfigError, ShapeError
from latentplan.exploration.picks import RandomPick
from latentplan.types import ActionSpec, ArraySpec, PickSpec, Spec


def test_a_pixel_is_of_the_object_if_all_colours_are_in_range() -> None:
    pick = PickSpec("rgb", low=(10, 20, 30), high=(100, 110, 120))
    pixels = np.array([(10, 20, 30), (100, 110, 120), (9, 20, 30), (50, 111, 50), (50, 50, 121)])
    mask = segment(pixels.astype(np.uint8).reshape(1, 5, 3), pick)
    assert mask.tolist() == [[True, True, False, False, False]]
    stacked = np.broadcast_to(pixels.astype(np.uint8), (2, 3, 4, 5, 3))
    assert (segment(stacked, pick) == mask[0]).all()
    with pytest.raises(ShapeError):
        segment(np.zeros((5, 5, 4), np.uint8), pick)


def test_corners_of_an_image() -> None:
    x, y = pixel_to_action(np.array([0, 3]), np.array([0, 7]), height=4, width=8)
    assert x.tolist() == [-0.875, 0.875]  # half a pixel inside the left and right edges
    assert y.tolist() == [0.75, -0.75]  # the first row is the top one


@given(
    st.floats(0, 500), st.floats(0, 500), st.integers(1, 500), st.integers(1, 500)
)  # fmt: skip
def test_pixels_and_actions_are_inverse(row: float, column: float, height: int, width: int) -> None:
    x, y = pixel_to_action(np.array(row), np.array(column), height=height, width=width)
    back = action_to_pixel(x, y, height=height, width=width)
    np.testing.assert_allclose(back, (row, column), atol=1e-9)


def test_a_pick_grasps_the_object_in_the_image() -> None:
    env = ToyEnv()
    policy = RandomPick(env.data_spec, RandomPick.Config(miss=0, jitter=0))
    policy.reset(seed=0)
    for seed in range(30):
        observation, _ = env.reset(seed=seed)
        points = observation["keypoints"]
        pick = policy.act(observation)[:2] * 0.3  # metres
        assert np.linalg.norm(points - pick, axis=1).min() <= env.config.radius + 1e-6


@given(seed=st.integers(0, 2**32), uniform=st.floats(0, 1), empty=st.booleans())
def test_actions_are_inside_their_bounds(seed: int, uniform: float, empty: bool) -> None:
    low, high = (-1.0, -1.0, -0.2, -3.0, 0.1), (1.0, 1.0, 0.4, 5.0, 0.3)
    spec = Spec(
        {"rgb": ArraySpec((6, 6, 3), "uint8")},
        ActionSpec(low, high),
        pick=PickSpec("rgb", (150, 150, 150)),
    )
    policy = RandomPick(spec, RandomPick.Config(uniform=uniform, jitter=2.0))
    picture = np.full((6, 6, 3), 0 if empty else 255, np.uint8)
    policy.reset(seed=seed)
    action = policy.act({"rgb": picture})
    assert action.dtype == np.float32 and action.shape == (5,)
    assert (action >= np.float32(low)).all() and (action <= np.float32(high)).all()
    policy.reset(seed=seed)
    again = policy.act({"rgb": picture})
    assert (action == again).all()


def test_shares_of_misses_and_of_short_drags() -> None:
    env = ToyEnv()
    observation, _ = env.reset(seed=1)
    points = observation["keypoints"]

    def drawn(**settings: float) -> np.ndarray:
        policy = RandomPick(env.data_spec, RandomPick.Config(jitter=0, **settings))
        policy.reset(seed=0)
        return np.stack([policy.act(observation) for _ in range(1500)])

    def missed(actions: np.ndarray) -> float:
        away = np.linalg.norm(points - actions[:, None, :2] * 0.3, axis=-1).min(axis=1)
        return float((away > env.config.radius + 1e-6).mean())

    assert missed(drawn(miss=0)) == 0
    assert 0.25 < missed(drawn(miss=0.3)) < 0.31  # a blind pick rarely hits
    for uniform, short in ((0.0, 0.2), (1.0, np.pi * 0.2**2 / 4)):
        length = np.linalg.norm(drawn(miss=0, uniform=uniform)[:, 2:], axis=1)
        assert abs((length < 0.2).mean() - short) < 0.03


def test_an_env_without_images_to_pick_from_is_refused() -> None:
    spec = Spec({}, ActionSpec((-1.0,), (1.0,)), env="arm")
    with pytest.raises(ConfigError, match="'arm'"):
        RandomPick(spec)
    with pytest.raises(ConfigError, match=r"RandomPick.miss: 2 is not within \[0.0, 1.0\]"):
        RandomPick.Config(miss=2)
