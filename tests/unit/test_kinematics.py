"""Forward and inverse kinematics of the shipped arms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from latentplan.errors import LatentplanError, ShapeError
from latentplan.robots import description
from latentplan.robots.kinematics import Kinematics, Unreachable, downward

ARMS = ["panda", "ur5e"]


@pytest.fixture(scope="module")
def kinematics() -> dict[str, Kinematics]:
    return {name: Kinematics(description.load(name)) for name in ARMS}


def turned(quaternion, vector):
    w, xyz = quaternion[0], quaternion[1:]
    return vector + 2 * np.cross(xyz, np.cross(xyz, vector) + w * vector)


@pytest.mark.parametrize(
    ("name", "q", "expected"),
    [
        # Known from the makers: Franka's start position, and what is stretched out along an axis.
        ("panda", [0, -np.pi / 4, 0, -3 * np.pi / 4, 0, np.pi / 2, np.pi / 4], [0.3069, 0, 0.4869]),
        ("panda", [0] * 7, [0.088, 0, 0.333 + 0.316 + 0.384 - 0.107 - 0.1034]),
        ("ur5e", [0] * 6, [-0.8172, -0.1333 - 0.0996 - 0.158, 0.1625 - 0.0997]),
        ("ur5e", [0, -np.pi / 2, 0, 0, 0, 0], [-0.0997, -0.3909, 0.1625 + 0.8172]),
    ],
)
def test_known_positions(kinematics, name, q, expected) -> None:
    arm = replace(description.load(name), position=(0.0, 0.0, 0.0), yaw=0.0)
    np.testing.assert_allclose(Kinematics(arm).forward(q)[:3], expected, atol=1e-4)


def test_the_base_moves_everything(kinematics) -> None:
    arm = description.load("ur5e")
    there = Kinematics(replace(arm, position=(0.1, 0.2, 0.3), yaw=0.0))
    here = Kinematics(replace(arm, position=(0.0, 0.0, 0.0), yaw=0.0))
    home = arm.column("home")
    np.testing.assert_allclose(there.forward(home) - here.forward(home), [0.1, 0.2, 0.3] + [0] * 4)


def test_many_positions_at_once_are_the_same(kinematics) -> None:
    k = kinematics["panda"]
    q = np.random.default_rng(0).uniform(-1, 1, (2, 3, 7))
    poses = k.forward(q)
    assert poses.shape == (2, 3, 7)
    np.testing.assert_array_equal(poses[1, 2], k.forward(q[1, 2]))
    with pytest.raises(ShapeError, match=r"Kinematics\.q: found shape \(6,\), need .* J=7"):
        k.forward(np.zeros(6))


def test_downward_points_down() -> None:
    pose = downward(np.array([0.1, 0.2, 0.3]), yaw=0.7)
    np.testing.assert_allclose(turned(pose[3:], np.array([0.0, 0, 1])), [0, 0, -1], atol=1e-12)
    expected = [np.cos(0.7), np.sin(0.7), 0]
    np.testing.assert_allclose(turned(pose[3:], np.array([1.0, 0, 0])), expected, atol=1e-12)


@pytest.mark.parametrize("name", ARMS)
def test_inverse_undoes_forward_over_the_table(kinematics, name) -> None:
    k, rng = kinematics[name], np.random.default_rng(1)
    low, high = k.arm.column("low"), k.arm.column("high")
    reached = 0
    for _ in range(60):
        position = np.append(rng.uniform(-0.25, 0.25, 2), rng.uniform(0.02, 0.25))
        pose = downward(position, yaw=rng.uniform(-np.pi, np.pi))
        try:
            q = k.inverse(pose)
        except Unreachable:
            continue
        reached += 1
        found = k.forward(q)
        assert np.linalg.norm(found[:3] - position) < 1e-4
        assert abs(found[3:] @ pose[3:]) > np.cos(1e-3 / 2) - 1e-9  # half angles
        assert (low < q).all() and (q < high).all()
        assert k.contact(q) == ""
    assert reached >= 57


@pytest.mark.parametrize("name", ARMS)
def test_a_free_turn_still_points_down(kinematics, name) -> None:
    k = kinematics[name]
    pose = downward(np.array([0.1, -0.1, 0.1]))
    found = k.forward(k.inverse(pose, turn=False))
    np.testing.assert_allclose(found[:3], pose[:3], atol=1e-4)
    np.testing.assert_allclose(turned(found[3:], np.array([0.0, 0, 1])), [0, 0, -1], atol=2e-3)


@pytest.mark.parametrize("name", ARMS)
def test_near_poses_get_near_positions(kinematics, name) -> None:
    k = kinematics[name]
    q = k.inverse(downward(np.array([0.05, 0.1, 0.1])))
    for step in range(1, 6):
        following = k.near(downward(np.array([0.05 - 0.01 * step, 0.1, 0.1])), q)
        assert np.abs(following - q).max() < 0.1
        q = following


def test_the_same_again(kinematics) -> None:
    pose = downward(np.array([0.2, 0.2, 0.05]), yaw=1.0)
    k = kinematics["panda"]
    first = k.inverse(pose)
    k.inverse(downward(np.array([0.0, 0.0, 0.2])))
    np.testing.assert_array_equal(k.inverse(pose), first)
    np.testing.assert_array_equal(Kinematics(k.arm).inverse(pose), first)


@pytest.mark.parametrize("name", ARMS)
def test_out_of_reach_is_one_clear_line(kinematics, name) -> None:
    k = kinematics[name]
    with pytest.raises(Unreachable) as e:
        k.inverse(downward(np.array([0.9, 0.0, 0.1])))
    assert isinstance(e.value, LatentplanError)
    text = str(e.value)
    assert text.startswith(f"{name}.target: (0.900, 0.000, 0.100) m is out of reach, 0.")
    assert f"the arm reaches {k.arm.reach} m from (-0.5, 0.0, 0.0)" in text
    assert "\n" not in text


def test_in_the_table_is_refused_with_what_touches(kinematics) -> None:
    with pytest.raises(Unreachable, match="only with (left|right) and table in contact"):
        kinematics["panda"].inverse(downward(np.array([0.1, 0.0, 0.0])))


def test_links_that_meet_are_seen(kinematics) -> None:
    k = kinematics["ur5e"]
    assert k.contact(k.home) == ""
    folded = k.home.copy()
    folded[2] = 3.1  # the forearm lies in the upper arm, the wrist on the shoulder
    assert k.contact(folded) != ""


def test_bad_poses_are_refused(kinematics) -> None:
    with pytest.raises(ShapeError, match=r"Kinematics\.pose: found shape \(3,\)"):
        kinematics["panda"].inverse(np.zeros(3))
    with pytest.raises(ShapeError, match="NaN or infinite"):
        kinematics["panda"].inverse(np.full(7, np.nan))
    with pytest.raises(ShapeError, match="quaternion of length 0"):
        kinematics["panda"].inverse([0.1, 0, 0.1, 0, 0, 0, 0])
