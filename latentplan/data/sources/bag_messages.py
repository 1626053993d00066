"""Measured and commanded values in messages about joints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from latentplan.errors import SourceError
from latentplan.types import Array

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JOINT_STATE = "sensor_msgs/msg/JointState"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
NUMBERS = "std_msgs/msg/Float64MultiArray"
TWIST, TWIST_STAMPED = "geometry_msgs/msg/Twist", "geometry_msgs/msg/TwistStamped"


# Why a message is left out.
NOT_FINITE = "with NaN or infinite numbers"
OTHERS = "of other joints"
UNEVEN = "with another number of positions than names"


class Command(NamedTuple):
    """A command to an arm; an empty `control` means that the message does not define it."""

    control: str  # joint_position (rad), joint_velocity (rad/s), twist (m/s, rad/s)
    values: Array


class Measured(NamedTuple):
    """The joints in a message that are asked for, as indices, and their values."""

    joints: tuple[int, ...]
    positions: Array  # (len(joints),) rad or m
    velocities: Array  # the same; NaN if it has none


def stamp(message: Any) -> int | None:
    """Return the time of measurement in a message, ns; None if its type has none."""
    header = getattr(message, "header", None)
    if header is None:
        return None
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)


def measured(message: Any, joints: Sequence[str]) -> Measured | str:
    """Return those of `joints` whose positions a sensor_msgs/JointState has, finite ones alone.

    Without any, return why. Velocities are those of a message that has one for each name.
    """
    names = tuple(message.name)
    wanted, places = _places(tuple(joints), names)
    if not wanted:
        return OTHERS
    positions = np.asarray(message.position, np.float64)
    if len(positions) != len(names) or len(set(names)) < len(names):
        return UNEVEN
    positions = positions[places]
    velocities = np.asarray(message.velocity, np.float64)
    velocities = velocities[places] if len(velocities) == len(names) else positions * np.nan
    finite = np.isfinite(positions)
    if finite.all():
        return Measured(wanted, positions, velocities)
    if not finite.any():
        return NOT_FINITE
    kept = tuple(joint for joint, good in zip(wanted, finite, strict=True) if good)
    return Measured(kept, positions[finite], velocities[finite])


@lru_cache(maxsize=64)
def _places(joints: tuple[str, ...], names: tuple[str, ...]) -> tuple[tuple[int, ...], list[int]]:
    """Return the indices of `joints` that are among `names`, and their places in these."""
    wanted = [(i, names.index(joint)) for i, joint in enumerate(joints) if joint in names]
    return tuple(i for i, _ in wanted), [place for _, place in wanted]


def command(where: str, kind: str, message: Any, *, joints: Sequence[str]) -> Command | str:
    """Return the command in a message of the type `kind`, or why it is left out.

    Raises SourceError if the message is ambiguous.
    """
    found = COMMANDS[kind](where, message, joints)
    if found is None:
        return OTHERS
    return found if np.isfinite(found.values).all() else NOT_FINITE


def _ordered(
    where: str, wanted: Sequence[str], names: Sequence[str], *, values: Sequence[float]
) -> Array | None:
    """Return the values (J,) of the joints `wanted`, None if a command has none of them.

    Raises SourceError if it has some but not all, or a value is missing.
    """
    missing = [name for name in wanted if name not in names]
    if len(missing) == len(wanted):
        return None
    if missing:
        found = ", ".join(names)
        raise SourceError(f"{where}: no joint {', '.join(missing)}; found {found}; set joints")
    if len(values) != len(names) or len(set(names)) < len(names):
        raise SourceError(f"{where}: found {len(values)} values for the names {', '.join(names)}")
    return np.array([values[names.index(name)] for name in wanted], np.float64)


def _trajectory(where: str, message: Any, joints: Sequence[str]) -> Command | None:
    if len(message.points) != 1:
        raise SourceError(
            f"{where}: a trajectory of {len(message.points)} points; single points alone are read; "
            "leave command out to use the joints' next positions"
        )
    return _of_joints(
        where,
        joints,
        list(message.joint_names),
        positions=message.points[0].positions,
        velocities=message.points[0].velocities,
    )


def _joint_state(where: str, message: Any, joints: Sequence[str]) -> Command | None:
    names = list(message.name)
    return _of_joints(
        where, joints, names, positions=message.position, velocities=message.velocity
    )


def _of_joints(
    where: str,
    joints: Sequence[str],
    names: list[str],
    *,
    positions: Sequence[float],
    velocities: Sequence[float],
) -> Command | None:
    if len(positions):
        control, values = "joint_position", _ordered(where, joints, names, values=positions)
    else:
        control, values = "joint_velocity", _ordered(where, joints, names, values=velocities)
    return None if values is None else Command(control, values)


def _numbers(where: str, message: Any, joints: Sequence[str]) -> Command | None:
    values = np.array(message.data, np.float64)
    if values.shape != (len(joints),):
        raise SourceError(
            f"{where}: found {len(values)} numbers for the joints {', '.join(joints)}; set joints"
        )
    return Command("", values)


def _twist(where: str, message: Any, joints: Sequence[str]) -> Command | None:
    twist = getattr(message, "twist", message)
    parts = [getattr(part, axis) for part in (twist.linear, twist.angular) for axis in "xyz"]
    return Command("twist", np.array(parts, np.float64))


COMMANDS: dict[str, Callable[[str, Any, Sequence[str]], Command | None]] = {
    TRAJECTORY: _trajectory,
    JOINT_STATE: _joint_state,
    NUMBERS: _numbers,
    TWIST: _twist,
    TWIST_STAMPED: _twist,
}
