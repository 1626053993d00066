"""What a bag's observations and actions are: shapes, units, names and convention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from latentplan.data.sources.bag_series import Recorded
from latentplan.data.sources.bag_topics import Topics
from latentplan.errors import SourceError
from latentplan.types import ActionSpec, Array, ArraySpec, Convention, Spec


def observations(topics: Topics, recorded: Recorded) -> dict[str, ArraySpec]:
    """Return the observations that are read: joints, their velocities, gripper, images."""
    names, size = ", ".join(topics.joints), len(topics.joints)
    found = {"q": ArraySpec((size,), "float32", f"joint positions, rad: {names}")}
    if recorded.velocities:
        found["dq"] = ArraySpec((size,), "float32", f"joint velocities, rad/s: {names}")
    if topics.finger:
        found["gripper"] = ArraySpec((1,), "float32", "width between the fingers, m")
    return found | {
        key: ArraySpec(shape, "uint8", f"image, {topics.cameras[key]}")
        for key, shape in recorded.shapes.items()
    }


def action(
    file: Path, topics: Topics, recorded: Recorded, *, control: str, frame: str, dt: float
) -> ActionSpec:
    """Return the action, with bounds of 0 for now.

    `control` is that of numbers without names, `frame` that of twists; SourceError if the one that
    is needed is empty.
    """
    names = ", ".join(topics.joints)
    gripper = "open_is_1" if topics.finger else ""
    control = recorded.control or control
    if not topics.command:
        control, meaning = "joint_position", f"next joint positions, rad: {names}"
    elif not any(len(part.command.stamps) for part in recorded.parts):
        reasons = ", ".join(f"{n} {why}" for why, n in recorded.left_out[topics.command].items())
        raise SourceError(
            f"{file}: {topics.command} commands none of {names} ({reasons}); set joints"
        )
    elif control == "twist":
        if not frame:
            raise SourceError(
                f"{file}: {topics.command} holds twists; set frame to the one that they are "
                "in: world, base or tool"
            )
        meaning = "velocity of the end effector, m/s, rad/s"
    elif control:
        unit = {"joint_position": "positions, rad", "joint_velocity": "velocities, rad/s"}
        meaning = f"commanded joint {unit[control]}: {names}"
    else:
        raise SourceError(
            f"{file}: {topics.command} does not define its numbers; set control to "
            "joint_position or joint_velocity"
        )
    if control == "twist":  # a 1 moves by 1 m/s or rad/s for dt s
        convention = Convention("ee_delta", "rotvec", frame, dt, dt, gripper)
    else:
        convention = Convention(control, gripper=gripper)
    size = (6 if control == "twist" else len(topics.joints)) + bool(gripper)
    meaning += "; gripper, 0 closed to 1 open" if gripper else ""
    return ActionSpec((0.0,) * size, (0.0,) * size, meaning, convention)


def bounded(spec: Spec, actions: list[Array]) -> Spec:
    """Return `spec` bounded by the smallest and largest action in the data, a gripper by 0, 1."""
    low = np.min([part.min(0) for part in actions], axis=0).tolist()
    high = np.max([part.max(0) for part in actions], axis=0).tolist()
    convention = spec.action.convention
    if convention is not None and convention.gripper:
        low[-1], high[-1] = 0.0, 1.0
    action = ActionSpec(tuple(low), tuple(high), spec.action.meaning, convention)
    return replace(spec, action=action)


def without_velocities(spec: Spec) -> Spec:
    """Return `spec` without the joints' velocities."""
    kept = {key: array for key, array in spec.observation.items() if key != "dq"}
    return replace(spec, observation=kept)


def difference(first: Spec, other: Spec) -> str:
    """Return in what a bag's spec differs from that of the first bag; empty if in nothing."""
    for key in {**first.observation, **other.observation}:
        a, b = first.observation.get(key), other.observation.get(key)
        if a != b:
            return f"{key} is {b}, in the first bag {a}"
    if first.action != other.action:
        return f"commands are {other.action.meaning!r}, in the first bag {first.action.meaning!r}"
    if first.dt != other.dt:
        return f"rows are {other.dt} s apart, in the first bag {first.dt}; set rate"
    return ""
