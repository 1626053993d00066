"""Actions keep what they mean from one convention to the next and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from latentplan.data import conventions
from latentplan.data.conventions import GRIPPERS, SIZES, convert, from_matrix, to_matrix
from latentplan.errors import ConfigError, ShapeError
from latentplan.types import Convention

SAMPLE = Path(__file__).parents[3] / "shared/data/calvin_sample/training"
POSE = Convention("ee_pose", "euler_xyz", "world", gripper="close_is_-1")
CALVIN = Convention("ee_delta", "euler_xyz", "world", 0.02, 0.05, "close_is_-1")
SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Return poses (count, 7) that an arm starts at, and those it goes to, some way off."""
    rng = np.random.default_rng(seed)
    start = Rotation.random(count, rng=rng)
    change = Rotation.from_rotvec(rng.normal(size=(count, 3)) * 0.3)
    at, to = rng.normal(size=(2, count, 3)) * 0.4
    return tuple(
        np.concatenate([place, turned.as_quat(canonical=True)], axis=1)
        for place, turned in ((at, start), (at + to * 0.05, change * start))
    )


def same_rotation(a: np.ndarray, b: np.ndarray) -> None:
    angles = (Rotation.from_matrix(a) * Rotation.from_matrix(b).inv()).magnitude()
    assert angles.max() < 1e-7


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, kind=st.sampled_from(sorted(SIZES)), via=st.sampled_from(sorted(SIZES)))
def test_rotations_survive_any_form(seed: int, kind: str, via: str) -> None:
    matrices = Rotation.random(12, rng=np.random.default_rng(seed)).as_matrix()
    values = from_matrix(matrices.reshape(3, 4, 3, 3), kind)
    assert values.shape == (3, 4, SIZES[kind])
    there = conventions.rotation(values, source=kind, target=via)
    same_rotation(to_matrix(there, via).reshape(-1, 3, 3), matrices)
    back = conventions.rotation(there, source=via, target=kind)
    same_rotation(to_matrix(back, kind).reshape(-1, 3, 3), matrices)


def test_forms_mean_what_they_say() -> None:
    quarter = np.array([0, 0, np.pi / 2])  # about z: x goes to y
    turned = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    half = np.sqrt(0.5)
    for kind, values in {
        "euler_xyz": quarter,
        "rotvec": quarter,
        "quaternion_xyzw": np.array([0, 0, half, half]),
        "quaternion_wxyz": np.array([half, 0, 0, half]),
        "rotation_6d": np.array([0.0, 1, 0, -1, 0, 0]),
    }.items():
        np.testing.assert_allclose(to_matrix(values, kind), turned, atol=1e-12)
        np.testing.assert_allclose(from_matrix(turned, kind), values, atol=1e-12)
    roll_then_yaw = to_matrix(np.array([np.pi / 2, 0, np.pi / 2]), "euler_xyz")
    np.testing.assert_allclose(roll_then_yaw @ [0, 1, 0], [0, 0, 1], atol=1e-12)  # y: up, stays
    minus = -np.array([0, 0, half, half])
    np.testing.assert_allclose(to_matrix(minus, "quaternion_xyzw"), turned, atol=1e-12)
    scaled = 3 * np.array([0, 1.0, 0, -1, 0.5, 0])  # as a network gives it
    np.testing.assert_allclose(to_matrix(scaled, "rotation_6d"), turned, atol=1e-12)


@given(openness=st.floats(0, 1), source=st.sampled_from(sorted(GRIPPERS)))
def test_grippers_survive_any_sign(openness: float, source: str) -> None:
    first = conventions.gripper(np.array([openness]), source="open_is_1", target=source)
    for target in GRIPPERS:
        value = conventions.gripper(first, source=source, target=target)
        back = conventions.gripper(value, source=target, target="open_is_1")
        np.testing.assert_allclose(back, openness, atol=1e-12)


def test_grippers_mean_what_they_say() -> None:
    open_, closed = np.array([1.0]), np.array([-1.0])
    for target, wanted in {"close_is_+1": (-1, 1), "open_is_1": (1, 0)}.items():
        for value, expected in zip((open_, closed), wanted, strict=True):
            found = conventions.gripper(value, source="close_is_-1", target=target)
            assert found.tolist() == [expected]


RELATIVE = [
    CALVIN,
    Convention("ee_delta", "rotvec", "world", 0.05, 0.5, "close_is_+1"),
    Convention("ee_delta", "rotvec", "tool", 0.05, 0.5, "open_is_1"),
    Convention("ee_delta", "quaternion_wxyz", "world", gripper="open_is_1"),
    Convention("ee_delta", "rotation_6d", "tool", 0.01, gripper="close_is_-1"),
]
ABSOLUTE = [replace(POSE, rotation=kind) for kind in SIZES] + [replace(POSE, position_unit=0.3)]


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    first=st.sampled_from(RELATIVE + ABSOLUTE),
    second=st.sampled_from(RELATIVE + ABSOLUTE),
)
def test_an_arm_goes_to_the_same_pose_in_any_convention(
    seed: int, first: Convention, second: Convention
) -> None:
    at, to = drawn(seed)
    quaternions = replace(POSE, rotation="quaternion_xyzw")
    wanted = np.concatenate([to, np.ones((len(to), 1))], axis=1)  # open
    one = convert(wanted, at, source=quaternions, target=first)
    two = convert(one, at, source=first, target=second)
    found = convert(two, at, source=second, target=quaternions)
    np.testing.assert_allclose(found[:, :3], wanted[:, :3], atol=1e-9)
    same_rotation(
        to_matrix(found[:, 3:7], "quaternion_xyzw"), to_matrix(to[:, 3:], "quaternion_xyzw")
    )
    np.testing.assert_allclose(found[:, 7], 1)


def test_a_relative_action_is_what_it_says() -> None:
    quarter = np.array([[0.1, 0.2, 0.3, 0, 0, np.sqrt(0.5), np.sqrt(0.5)]])  # tool x along y
    forward = np.array([[1.0, 0, 0, 0, 0, 0]])
    pose = Convention("ee_pose", "quaternion_xyzw", "world")
    for frame, wanted in {"world": [0.15, 0.2, 0.3], "tool": [0.1, 0.25, 0.3]}.items():
        relative = Convention("ee_delta", "rotvec", frame, 0.05, 0.5)
        found = convert(forward, quarter, source=relative, target=pose)
        np.testing.assert_allclose(found[0, :3], wanted, atol=1e-12)
        np.testing.assert_allclose(found[0, 3:], quarter[0, 3:], atol=1e-12)
    roll = np.array([[0, 0, 0, 1.0, 0, 0]])
    for frame, kind in {"world": "x", "tool": "y"}.items():
        relative = Convention("ee_delta", "rotvec", frame, 0.05, 0.5)
        found = Rotation.from_quat(convert(roll, quarter, source=relative, target=pose)[0, 3:])
        wanted_turn = Rotation.from_euler(kind, 0.5) * Rotation.from_euler("z", np.pi / 2)
        assert (found * wanted_turn.inv()).magnitude() < 1e-9


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"needs CALVIN's data: {SAMPLE} is missing")
def test_calvin_made_its_relative_actions_this_way() -> None:
    files = sorted(SAMPLE.glob("episode_*.npz"))
    arrays = [np.load(file) for file in files]
    seen = np.stack([a["robot_obs"] for a in arrays])
    absolute, relative = (np.stack([a[k] for a in arrays]) for k in ("actions", "rel_actions"))
    poses = conventions.pose(seen[:, :3], seen[:, 3:6], kind="euler_xyz")
    found = convert(absolute, poses, source=POSE, target=CALVIN, limit=1)
    np.testing.assert_allclose(found, relative, atol=1e-9)
    assert (np.abs(relative[:, :6]) == 1).any()  # some of them were clipped
    unclipped = (np.abs(relative[:, :6]) < 1).all(axis=1)
    back = convert(relative, poses, source=CALVIN, target=POSE)
    off = conventions.wrap(back[unclipped, 3:6] - absolute[unclipped, 3:6])
    np.testing.assert_allclose(off, 0, atol=1e-9)
    np.testing.assert_allclose(back[unclipped, :3], absolute[unclipped, :3], atol=1e-12)


@pytest.mark.parametrize(
    ("source", "target", "factor"),
    [
        (Convention("ee_delta", "rotvec", "tool", 1, 1), None, [50] * 3 + [20] * 3),
        (Convention("ee_delta", "quaternion_xyzw", "world", 1), None, [50] * 3 + [1] * 4),
        (Convention("joint_velocity", position_unit=1), None, [50] * 7),
    ],
)
def test_units_need_no_poses(source: Convention, target: None, factor: list[float]) -> None:
    values = np.random.default_rng(0).normal(size=(4, len(factor)))
    smaller = replace(source, position_unit=0.02, rotation_unit=0.05)
    np.testing.assert_allclose(convert(values, source=source, target=smaller), values * factor)


def test_joints_go_where_they_went() -> None:
    rng = np.random.default_rng(0)
    at, to = rng.normal(size=(2, 6, 7))
    absolute, relative = Convention("joint_position"), Convention("joint_delta", position_unit=0.1)
    steps = convert(to, at, source=absolute, target=relative)
    np.testing.assert_allclose(steps, (to - at) / 0.1)
    np.testing.assert_allclose(convert(steps, at, source=relative, target=absolute), to)
    assert np.abs(convert(to, at, source=absolute, target=relative, limit=1)).max() == 1


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        (POSE, Convention("joint_position", gripper="open_is_1"), "kinematics"),
        (POSE, replace(CALVIN, frame="base"), "where is world in base"),
        (POSE, replace(CALVIN, gripper=""), "gripper"),
        (replace(POSE, rotation=""), CALVIN, "rotation"),
        (Convention("joint_velocity"), Convention("joint_position"), "time"),
        (Convention("joint_torque"), Convention("joint_velocity"), "time"),
        (POSE, CALVIN, "needs the poses"),
        (replace(POSE, frame="tool"), CALVIN, "always zero"),
        (POSE, replace(CALVIN, frame="tool"), "use rotvec"),
        (replace(POSE, rotation="euler_zyx"), POSE, "'euler_zyx' is none of euler_xyz"),
        (replace(POSE, gripper="open_is_0"), POSE, "'open_is_0' is none of close_is_-1"),
    ],
)
def test_what_numbers_alone_cannot_tell_is_refused(
    source: Convention, target: Convention, why: str
) -> None:
    size = {"joint_velocity": 7, "joint_torque": 7}.get(source.control, 7 if source.rotation else 4)
    with pytest.raises(ConfigError, match=why):
        convert(np.zeros((3, size)), source=source, target=target)


def test_what_is_no_action_is_refused() -> None:
    with pytest.raises(ShapeError, match="convert.actions"):
        convert(np.zeros((3, 6)), source=POSE, target=CALVIN)
    with pytest.raises(ShapeError, match="convert.poses"):
        convert(np.zeros((3, 7)), np.zeros((3, 6)), source=POSE, target=CALVIN)
    for kind in ("quaternion_xyzw", "quaternion_wxyz", "rotation_6d"):
        with pytest.raises(ShapeError, match=f"{kind}: 1 are no rotation"):
            to_matrix(np.zeros(SIZES[kind]), kind)
    with pytest.raises(ShapeError, match=r"rotvec: found shape \(4,\)"):
        to_matrix(np.zeros(4), "rotvec")
