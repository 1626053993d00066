"""Timed joint trajectories keep to every limit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentplan.errors import ConfigError, MissingDependency, ShapeError
from latentplan.robots import description
from latentplan.robots.trajectory import Limits, Path, Trajectory, nodes

LIMITS = {name: Limits.of(description.load(name)) for name in ("panda", "ur5e")}


def curve(rng, joints: int, points: int):
    s = nodes(points)[:, None]
    first, last, bend = rng.uniform(-1, 1, (3, joints))
    return first + s * (last - first) + 0.3 * bend * np.sin(3 * s)


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**31), points=st.integers(2, 9), arm=st.sampled_from(sorted(LIMITS)))
def test_no_limit_is_ever_exceeded(seed: int, points: int, arm: str) -> None:
    limits = LIMITS[arm]
    way = curve(np.random.default_rng(seed), len(limits.velocity), points)
    trajectory = Trajectory(Path(way), limits)
    q, *derivatives = trajectory.at(np.linspace(0, trajectory.duration, 3001))
    np.testing.assert_allclose(q[[0, -1]], way[[0, -1]], atol=1e-9)
    for value, bound in zip(
        derivatives, (limits.velocity, limits.acceleration, limits.jerk), strict=True
    ):
        assert (np.abs(value) <= bound).all()
    np.testing.assert_allclose(derivatives[0][[0, -1]], 0, atol=1e-9)  # from rest to rest
    # What is said to be a derivative is one.
    step = trajectory.duration / 3000
    for lower, upper in ((q, derivatives[0]), (derivatives[0], derivatives[1])):
        middle = (upper[1:] + upper[:-1]) / 2
        bound = np.abs(np.diff(upper, axis=0)).max() + 1e-6
        assert np.abs(np.diff(lower, axis=0) / step - middle).max() <= bound


def test_a_straight_path_takes_the_least_time() -> None:
    # One joint over 1 rad at 1 rad/s, 2 rad/s^2, 10 rad/s^3: seven phases of 0.2 or 0.3 s.
    one = np.ones(1)
    trajectory = Trajectory(Path(np.array([[0.0], [1.0]])), Limits(one, 2 * one, 10 * one))
    assert trajectory.duration == pytest.approx(1.7, rel=2e-3)
    middle = trajectory.at(np.array([trajectory.duration / 2]))
    np.testing.assert_allclose([x.item() for x in middle], [0.5, 1.0, 0.0, 0.0], atol=5e-3)


def test_the_slowest_joint_sets_the_time_and_all_arrive_together() -> None:
    limits = Limits(np.array([1.0, 0.5]), np.full(2, 1e3), np.full(2, 1e5))
    trajectory = Trajectory(Path(np.array([[0.0, 0.0], [1.0, 1.0]])), limits)
    assert trajectory.duration == pytest.approx(2.0, rel=0.02)
    q = trajectory.at(np.linspace(0, 2, 50))[0]
    np.testing.assert_allclose(q[:, 0], q[:, 1], atol=1e-12)


def test_a_bound_on_the_speed_of_the_path_holds() -> None:
    trajectory = Trajectory(Path(np.array([[0.0] * 7, [0.1] * 7])), LIMITS["panda"], speed=0.5)
    assert trajectory.duration > 2


def test_nowhere_to_go_takes_no_time() -> None:
    there = np.full((2, 7), 0.3)
    trajectory = Trajectory(Path(there), LIMITS["panda"])
    assert trajectory.duration == 0
    q, dq, *_ = trajectory.at(np.array([0.0, 1.0]))
    np.testing.assert_array_equal(q, there)
    assert (dq == 0).all()


def test_a_path_goes_through_its_points_with_right_derivatives() -> None:
    s = nodes(9)
    path = Path(np.stack([np.sin(2 * s), np.exp(s)], axis=1))
    at = np.linspace(0, 1, 20)
    np.testing.assert_allclose(path.at(s), np.stack([np.sin(2 * s), np.exp(s)], 1), atol=1e-12)
    np.testing.assert_allclose(path.at(at, order=1)[:, 0], 2 * np.cos(2 * at), atol=1e-5)
    np.testing.assert_allclose(path.at(at, order=3)[:, 1], np.exp(at), atol=1e-3)


def test_a_share_of_the_limits_is_the_same_motion_slower() -> None:
    arm = description.load("panda")
    path = Path(np.array([np.zeros(7), np.full(7, 0.4)]))
    fast, slow = (Trajectory(path, Limits.of(arm, share=share)) for share in (1.0, 0.25))
    assert slow.duration == pytest.approx(4 * fast.duration, rel=1e-6)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruckig", None)
    with pytest.raises(MissingDependency, match=r'ruckig: pip install "latentplan\[arm\]"'):
        Trajectory(Path(np.array([np.zeros(7), np.ones(7)])), LIMITS["panda"])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"Path\.points: found shape \(1, 7\)"):
        Path(np.zeros((1, 7)))
    with pytest.raises(ShapeError, match="NaN or infinite"):
        Path(np.full((2, 7), np.nan))
    with pytest.raises(ConfigError, match=r"Limits\.share: 2 is not within"):
        Limits.of(description.load("panda"), share=2)
