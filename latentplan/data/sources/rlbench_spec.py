"""RLBench's observations and actions, in demos and live: keys, shapes, units, bounds.

World: metres, z up, the table at about z = 0.75. Quaternions are x, y, z, w. A camera's extrinsics
are camera -> world, and its focal lengths are negative: a pixel (u, v) at depth z is the point
z * inverse(intrinsics) @ (u, v, 1) of the camera, both as RLBench has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import pi
from typing import Any

import numpy as np

from latentplan.data.sources.floats import float32
from latentplan.errors import ConfigError, check_range, unknown
from latentplan.types import ActionSpec, Array, ArraySpec, Convention, Spec

Row = tuple[float, ...]

CAMERAS = ("left_shoulder", "right_shoulder", "overhead", "wrist", "front")
IMAGES = ("rgb", "depth", "mask")
ACTIONS = ("next_joint", "next_pose", "keyframe", "joint_velocity")
STATE = {  # low-dimensional observations by name, with their meaning
    "joint_positions": "rad",
    "joint_velocities": "rad/s",
    "joint_forces": "N m",
    "gripper_pose": "x, y, z in m, quaternion x, y, z, w of the gripper's tip in the world",
    "gripper_open": "1 open, 0 closed",
    "gripper_joint_positions": "m, of the two fingers",
    "gripper_touch_forces": "N, x, y, z of the two fingers",
    "task_low_dim_state": "of the task's objects, which differ by task; padded with zeros",
}
PRIVILEGED = ("task_low_dim_state",)
DT = 0.05  # s between observations of a demo, and of a step that moves joints

JOINTS = {"panda": 7, "sawyer": 7, "jaco": 6, "mico": 6, "ur5": 6}  # of RLBench's robots
# Franka Emika's data sheet of the Panda; limits of the other arms are not published.
PANDA_LOW: Row = (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973)  # rad
PANDA_HIGH: Row = (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)  # rad
PANDA_SPEED: Row = (2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61)  # rad/s
SCENE_LOW: Row = (-0.3, -0.5, 0.6)  # m, the workspace of PerAct
SCENE_HIGH: Row = (0.7, 0.5, 1.6)  # m


def spec(observation: dict[str, ArraySpec], action: str, *, robot: str) -> Spec:
    """Return the spec of these observations and of actions of a kind."""
    return Spec(
        observation=observation,
        action=action_spec(action, robot=robot),
        env="rlbench",
        privileged=tuple(key for key in PRIVILEGED if key in observation),
        dt=None if action == "keyframe" else DT,
    )


def action_spec(action: str, *, robot: str) -> ActionSpec:
    """Return the spec of an action: next_joint, next_pose, keyframe or joint_velocity, by robot."""
    joints = JOINTS[robot]
    low: Row
    high: Row
    if action in ("next_pose", "keyframe"):
        convention = Convention(
            "ee_pose", rotation="quaternion_xyzw", frame="world", gripper="open_is_1"
        )
        low, high = (*SCENE_LOW, *(-1.0,) * 4), (*SCENE_HIGH, *(1.0,) * 4)
        meaning = "pose of the gripper's tip: x, y, z in m, quaternion x, y, z, w"
    elif action == "next_joint":
        convention = Convention("joint_position", gripper="open_is_1")
        low, high = (-2 * pi,) * joints, (2 * pi,) * joints
        if robot == "panda":
            low, high = PANDA_LOW, PANDA_HIGH
        meaning = f"positions of {joints} joints in rad"
    else:
        convention = Convention("joint_velocity", gripper="open_is_1")
        high = PANDA_SPEED if robot == "panda" else (pi,) * joints
        low = tuple(-speed for speed in high)
        meaning = f"velocities of {joints} joints in rad/s"
    return ActionSpec((*low, 0.0), (*high, 1.0), f"{meaning}; gripper, open above 0.5", convention)


def observation_spec(
    images: Mapping[tuple[str, str], tuple[int, int]],
    *,
    clouds: Mapping[str, tuple[int, int]],
    matrices: Sequence[str],
    state: Mapping[str, int],
) -> dict[str, ArraySpec]:
    """Return every observation by key.

    `images` are (height, width) by (camera, kind), `clouds` rows and columns of points by camera,
    `matrices` the cameras whose matrices there are, `state` lengths by name.
    """
    found = {}
    for (camera, kind), size in images.items():
        found[f"{camera}_{kind}"] = {
            "rgb": ArraySpec((*size, 3), "uint8", "red, green, blue"),
            "depth": ArraySpec(size, "float32", "m along the line of sight"),
            "mask": ArraySpec(size, "int32", "handle of the object that a pixel shows"),
        }[kind]
    for camera, size in clouds.items():
        meaning = "x, y, z in m of the point in the world that a pixel shows"
        found[f"{camera}_point_cloud"] = ArraySpec((*size, 3), "float32", meaning)
    for camera in matrices:
        found[f"{camera}_camera_extrinsics"] = ArraySpec(
            (4, 4), "float64", "camera -> world, m; x left, y up, z forward"
        )
        found[f"{camera}_camera_intrinsics"] = ArraySpec(
            (3, 3), "float64", "(u, v, 1) ~ K (x, y, z) of the camera; focal lengths negative"
        )
    for name, length in state.items():
        found[name] = ArraySpec((length,), "float64", STATE[name])
    return found


def keys(
    kinds: Mapping[str, Sequence[str]], *, clouds: bool, matrices: bool, state: Sequence[str]
) -> list[str]:
    """Return the keys of `observation_spec` for kinds of images by camera, in its order."""
    return [
        *(f"{camera}_{kind}" for camera in kinds for kind in kinds[camera]),
        *(f"{camera}_point_cloud" for camera in kinds if clouds),
        *(
            f"{camera}_camera_{name}"
            for camera in kinds
            if matrices
            for name in ("extrinsics", "intrinsics")
        ),
        *state,
    ]


def points(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return rows and columns of a cloud with a point every `stride` pixels."""
    return -(-size[0] // stride), -(-size[1] // stride)


def actions(action: str, state: Mapping[str, Array]) -> Array:
    """Return the actions (L, A) float32 between L + 1 observations, whose state is (L + 1, ...).

    An action is the motion of the arm and the gripper until the next observation: demos hold none.
    The joints' velocity is that of the next observation, which the last step reached.
    """
    source = {"next_joint": "joint_positions", "joint_velocity": "joint_velocities"}
    arm = state[source.get(action, "gripper_pose")]
    return float32(np.concatenate([arm[1:], state["gripper_open"][1:]], axis=1))


def keyframes(velocities: Array, opened: Array, *, still: float, gap: int) -> Array:
    """Return the numbers (K,) of the observations that a demo of T is made of, the last included.

    One at which the gripper has opened or closed, and the first at which no joint exceeds `still`
    rad/s, at least `gap` observations after the one before, with the gripper at rest. `velocities`
    are (T, n) in rad/s, `opened` (T,) 0 or 1. (James and Davison, Q-attention, 2022, section IV;
    Shridhar et al., Perceiver-Actor, 2022.)
    """
    count = len(opened)
    changed = np.flatnonzero(np.diff(opened)) + 1
    padded = np.pad(opened, (2, 1), mode="edge")
    steady = (np.lib.stride_tricks.sliding_window_view(padded, 4) == opened[:, None]).all(1)
    slow = (np.abs(velocities) <= still).all(1) & steady
    slow[-2:] = False  # the end is a keyframe in any case
    stops: list[int] = []
    for t in np.flatnonzero(slow).tolist():
        if not stops or t - stops[-1] >= gap:
            stops.append(t)
    found = np.union1d(changed, np.array(stops, np.int64))
    found = found[(found > 0) & (found < count - 2)]  # neither the start nor next to the end
    return np.append(found, count - 1)


def check(where: str, config: Any) -> None:
    """Raise ConfigError if cameras, images, action, robot or stride are none of RLBench's."""
    for name, known in (("cameras", CAMERAS), ("images", IMAGES)):
        chosen = getattr(config, name)
        for entry in chosen:
            if entry not in known:
                raise ConfigError(f"{where}.{name}: {unknown(name[:-1], entry, known)}")
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"{where}.{name}: found {list(chosen)}; name each once")
    if config.action not in ACTIONS:
        raise ConfigError(f"{where}.action: {unknown('action', config.action, ACTIONS)}")
    if config.robot not in JOINTS:
        raise ConfigError(f"{where}.robot: {unknown('robot', config.robot, JOINTS)}")
    check_range(f"{where}.stride", config.stride, 1, 64)
    check_range(f"{where}.task_state", config.task_state, 0, 100_000)
