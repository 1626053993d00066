"""Conversion of an arm's actions between conventions: rotations, grippers, units, deltas.

Everything is vectorised over leading axes, in float64. A rotation is written as

    euler_xyz        rad, about the fixed axes x, then y, then z (Bullet's, CALVIN's)
    rotvec           axis times angle, rad (robosuite's)
    quaternion_xyzw  unit length; either sign is read, w >= 0 is written (RLBench's, Bullet's)
    quaternion_wxyz  the same, real part first (MuJoCo's)
    rotation_6d      the first two columns of the matrix (Zhou et al. 2019, section 4.2)

An `ee_delta` is added to the pose that the action starts from: to the position, and to the
angles of `euler_xyz` one by one (as CALVIN does); every other rotation is applied after the pose's
own, about the axes of the `frame`. In the frame `tool` those are the axes of the tool, and the
position moves along them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from latentplan.errors import ConfigError, ShapeError
from latentplan.shapes import check
from latentplan.types import Array, Convention

SIZES = {
    "euler_xyz": 3,
    "rotvec": 3,
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
    "rotation_6d": 6,
}  # numbers of a rotation
SCALED = ("euler_xyz", "rotvec")  # angles, which a rotation_unit scales
GRIPPERS = {
    "close_is_-1": (0.5, 0.5),
    "close_is_+1": (0.5, -0.5),
    "open_is_1": (0.0, 1.0),
}  # (a, b): how open it is, 0 to 1, is a + b * action
POSE = 7  # numbers of a pose: x y z m, quaternion xyzw


def to_matrix(values: Array, kind: str) -> Array:
    """Return rotation matrices (..., 3, 3) of rotations (..., n) written as `kind`.

    Raises ConfigError if `kind` is unknown, ShapeError if it has not n numbers, or a
    quaternion or a 6D rotation is zero or degenerate.
    """
    size = _size(kind)
    values = np.asarray(values, np.float64)
    if values.shape[-1:] != (size,):
        raise ShapeError(f"to_matrix.{kind}: found shape {values.shape}, need (..., {size})")
    lead, flat = values.shape[:-1], values.reshape(-1, size)
    if kind == "euler_xyz":
        matrices = Rotation.from_euler("xyz", flat).as_matrix()
    elif kind == "rotvec":
        matrices = Rotation.from_rotvec(flat).as_matrix()
    elif kind == "rotation_6d":
        matrices = _from_columns(flat)
    else:
        xyzw = flat if kind == "quaternion_xyzw" else np.roll(flat, -1, axis=-1)
        _check_length(np.linalg.norm(xyzw, axis=-1), kind)
        matrices = Rotation.from_quat(xyzw).as_matrix()
    return np.asarray(matrices).reshape(*lead, 3, 3)


def from_matrix(matrices: Array, kind: str) -> Array:
    """Return rotations (..., n) written as `kind` of matrices (..., 3, 3)."""
    size = _size(kind)
    if np.shape(matrices)[-2:] != (3, 3):
        raise ShapeError(f"from_matrix: found shape {np.shape(matrices)}, need (..., 3, 3)")
    lead, flat = matrices.shape[:-2], np.asarray(matrices, np.float64).reshape(-1, 3, 3)
    if kind == "rotation_6d":
        return flat[:, :, :2].swapaxes(1, 2).reshape(*lead, size)  # column by column
    rotation = Rotation.from_matrix(flat)
    if kind == "euler_xyz":
        values = rotation.as_euler("xyz")
    elif kind == "rotvec":
        values = rotation.as_rotvec()
    else:
        values = rotation.as_quat(canonical=True)
        values = values if kind == "quaternion_xyzw" else np.roll(values, 1, axis=-1)
    return np.asarray(values).reshape(*lead, size)


def rotation(values: Array, *, source: str, target: str) -> Array:
    """Return rotations (..., n) in another form; the same array if the form is the same."""
    return values if source == target else from_matrix(to_matrix(values, source), target)


def gripper(values: Array, *, source: str, target: str) -> Array:
    """Return gripper actions of any shape in another sign; ConfigError if one is unknown."""
    for kind in (source, target):
        if kind not in GRIPPERS:
            raise ConfigError(f"gripper: {kind!r} is none of {', '.join(GRIPPERS)}")
    if source == target:
        return values
    (a, b), (c, d) = GRIPPERS[source], GRIPPERS[target]
    return np.asarray((a + b * np.asarray(values, np.float64) - c) / d)


def wrap(angles: Array) -> Array:
    """Return angles of any shape in [-pi, pi), rad."""
    return np.asarray((angles + np.pi) % (2 * np.pi) - np.pi)


def pose(position: Array, rotated: Array, *, kind: str) -> Array:
    """Return poses (..., 7), x y z m and quaternion xyzw, as `convert` takes them."""
    quaternion = rotation(rotated, source=kind, target="quaternion_xyzw")
    return np.concatenate([np.asarray(position, np.float64), quaternion], axis=-1)


def convert(
    actions: Array,
    poses: Array | None = None,
    *,
    source: Convention,
    target: Convention,
    limit: float | None = None,
) -> Array:
    """Return actions (L, A) of one convention in another (L, A'), float64.

    `poses` are the starts of the actions, needed if one side is relative: (L, 7) of the end
    effector as `pose` makes them, in the frame of the absolute side; of joints (L, n), rad. A
    relative result is clipped to +-`limit` if that is given (CALVIN's data: 1). Raises ConfigError
    if the numbers alone do not determine the result: kinematics, the base's place, time, a gripper.
    """
    check("convert.actions", actions, "L A")
    _check_convertible(source, target)
    actions = np.asarray(actions, np.float64)
    arm, hand = (actions[:, :-1], actions[:, -1:]) if source.gripper else (actions, actions[:, :0])
    if source.gripper:
        hand = gripper(hand, source=source.gripper, target=target.gripper)
    if source.control.startswith("ee"):
        check("convert.actions", arm, "L A", A=3 + SIZES.get(source.rotation, 0))
    if replace(source, gripper=target.gripper) != target:
        if poses is not None:
            poses = np.asarray(poses, np.float64)
        arm = _arm(arm, poses, source=source, target=target)
    if limit is not None and target.control.endswith("delta"):
        arm = arm.clip(-limit, limit)
    return np.concatenate([arm, hand], axis=1)


def _arm(arm: Array, poses: Array | None, *, source: Convention, target: Convention) -> Array:
    """Return an arm's actions (L, n) in another convention."""
    if _rescales(source, target):
        factors = np.full(arm.shape[1], source.position_unit / target.position_unit)
        if source.rotation in SCALED:
            factors[3:] = source.rotation_unit / target.rotation_unit
        elif source.rotation:
            factors[3:] = 1
        return arm * factors
    if "delta" in source.control + target.control:
        needed = POSE if source.control.startswith("ee") else arm.shape[1]
        if poses is None:
            raise ConfigError(
                f"convert: {source.control} to {target.control} needs the poses before actions"
            )
        check("convert.poses", poses, "L n", L=len(arm), n=needed)
    if source.control.startswith("joint"):
        assert poses is not None  # one side is relative
        sign = 1 if source.control == "joint_delta" else -1
        return np.asarray((arm * source.position_unit + sign * poses) / target.position_unit)
    place, matrix = _absolute(arm, poses, source)
    return _written(place, matrix, poses=poses, target=target)


def _absolute(arm: Array, poses: Array | None, source: Convention) -> tuple[Array, Array | None]:
    """Return the end effector's target positions (L, 3) in metres and rotations (L, 3, 3)."""
    place, turned = arm[:, :3] * source.position_unit, arm[:, 3:]
    if source.rotation in SCALED:
        turned = turned * source.rotation_unit
    if source.control == "ee_pose":
        return place, to_matrix(turned, source.rotation) if source.rotation else None
    assert poses is not None  # checked by `_arm`
    start = to_matrix(poses[:, 3:], "quaternion_xyzw")
    if source.frame == "tool":
        place = np.einsum("lij,lj->li", start, place)
    place = poses[:, :3] + place
    if not source.rotation:
        return place, None
    if source.rotation == "euler_xyz":
        return place, to_matrix(from_matrix(start, "euler_xyz") + turned, "euler_xyz")
    change = to_matrix(turned, source.rotation)
    return place, start @ change if source.frame == "tool" else change @ start


def _written(
    place: Array, matrix: Array | None, *, poses: Array | None, target: Convention
) -> Array:
    """Return actions (L, n) that reach positions (L, 3) and rotations (L, 3, 3)."""
    if target.control == "ee_delta":
        assert poses is not None  # checked by `_arm`
        start = to_matrix(poses[:, 3:], "quaternion_xyzw")
        place = place - poses[:, :3]
        if target.frame == "tool":
            place = np.einsum("lji,lj->li", start, place)
    place = place / target.position_unit
    if matrix is None:
        return place
    if target.control == "ee_pose":
        turned = from_matrix(matrix, target.rotation)
    elif target.rotation == "euler_xyz":
        turned = wrap(from_matrix(matrix, "euler_xyz") - from_matrix(start, "euler_xyz"))
    else:
        back = start.swapaxes(1, 2)
        change = back @ matrix if target.frame == "tool" else matrix @ back
        turned = from_matrix(change, target.rotation)
    if target.rotation in SCALED:
        turned = turned / target.rotation_unit
    return np.concatenate([place, turned], axis=1)


def _rescales(source: Convention, target: Convention) -> bool:
    """Return whether the two differ in units alone."""
    kinds = ("control", "rotation", "frame")
    return all(getattr(source, kind) == getattr(target, kind) for kind in kinds)


def _check_convertible(source: Convention, target: Convention) -> None:
    for side in (source, target):
        if side.control.startswith("ee") and side.rotation:
            _size(side.rotation)
        if side.frame == "tool" and side.control == "ee_pose":
            raise ConfigError("Convention.frame: an ee_pose in the frame tool is always zero")
        if (side.control, side.rotation, side.frame) == ("ee_delta", "euler_xyz", "tool"):
            raise ConfigError(
                "Convention.rotation: euler_xyz is added to the pose's angles, which are not the "
                "tool's; use rotvec with the frame tool"
            )
    if bool(source.gripper) != bool(target.gripper):
        raise _impossible(source, target, "one has a gripper and the other has none")
    if source.control == target.control and _rescales(source, target):
        return
    if source.control[:2] != target.control[:2]:
        raise _impossible(source, target, "it takes the arm's kinematics")
    if source.control.startswith("ee"):
        if len({source.frame, target.frame} - {"tool"}) > 1:
            raise _impossible(source, target, f"where is {source.frame} in {target.frame}?")
        if bool(source.rotation) != bool(target.rotation):
            raise _impossible(source, target, "one has a rotation and the other has none")
    elif not {source.control, target.control} <= {"joint_position", "joint_delta"}:
        raise _impossible(source, target, "it takes time and the arm's dynamics")


def _impossible(source: Convention, target: Convention, why: str) -> ConfigError:
    return ConfigError(
        f"convert: {source.control} in {source.frame or 'no'} frame cannot become "
        f"{target.control} in {target.frame or 'no'} frame: {why}"
    )


def _size(kind: str) -> int:
    if kind not in SIZES:
        raise ConfigError(f"rotation: {kind!r} is none of {', '.join(SIZES)}")
    return SIZES[kind]


def _from_columns(flat: Array) -> Array:
    """Return matrices (n, 3, 3) of two columns (n, 6) each, made orthonormal (Gram-Schmidt)."""
    first, second = flat[:, :3], flat[:, 3:]
    first = first / _check_length(np.linalg.norm(first, axis=1), "rotation_6d")[:, None]
    second = second - (first * second).sum(axis=1, keepdims=True) * first
    second = second / _check_length(np.linalg.norm(second, axis=1), "rotation_6d")[:, None]
    return np.stack([first, second, np.cross(first, second)], axis=2)


def _check_length(lengths: Array, kind: str) -> Array:
    if not (lengths > 1e-8).all():
        raise ShapeError(f"to_matrix.{kind}: {int((~(lengths > 1e-8)).sum())} are no rotation")
    return lengths
