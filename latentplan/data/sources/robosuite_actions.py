"""The meaning of a robosuite action's numbers, from the controller that a file records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from latentplan.types import Convention

GRIPPER = "close_is_+1"
CONTROLS = {  # of one arm: numbers without the gripper's, and their convention as deltas
    "OSC_POSE": (6, "ee_delta"),
    "OSC_POSITION": (3, "ee_delta"),
    "JOINT_POSITION": (None, "joint_delta"),
    "JOINT_VELOCITY": (None, "joint_velocity"),
    "JOINT_TORQUE": (None, "joint_torque"),
}


@dataclass(frozen=True)
class Described:
    """The description of an action."""

    meaning: str = ""
    normalised: bool = False  # to [-1, 1]
    convention: Convention | None = None  # None: another controller, or more than one arm


def describe(arguments: Mapping[str, Any], size: int) -> Described:
    """Return the description of an action of `size` numbers from robomimic's `env_args`.

    robosuite 1.5 records a composite controller with one part an arm, 1.4 one controller an arm.
    Source: robosuite 1.4.1 and 1.5.1, `controllers/.../osc.py` (a rotation vector, world frame in
    1.4, `input_ref_frame` in 1.5) and `default_*.json`.
    """
    kwargs = arguments.get("env_kwargs")
    found = kwargs.get("controller_configs") if isinstance(kwargs, Mapping) else None
    parts = [part for part in _controllers(found) if part["type"] in CONTROLS]
    if not parts:
        return Described()
    kinds = ", ".join(part["type"] for part in parts)
    composite = isinstance(found, Mapping) and "body_parts" in found
    meaning = f"robosuite {kinds} and gripper (-1 opens, 1 closes)"
    normalised = all((part.get("input_min"), part.get("input_max")) == (-1, 1) for part in parts)
    convention = _convention(parts[0], size, composite=composite) if len(parts) == 1 else None
    return Described(meaning, normalised, convention)


def _controllers(found: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every mapping that has a controller's type, parts of a composite one before it."""
    if isinstance(found, Mapping):
        for value in found.values():
            yield from _controllers(value)
        if isinstance(found.get("type"), str):
            yield found
    elif isinstance(found, list):
        for value in found:
            yield from _controllers(value)


def _convention(part: Mapping[str, Any], size: int, *, composite: bool) -> Convention | None:
    numbers, control = CONTROLS[part["type"]]
    if numbers not in (None, size - 1):
        return None  # a base, a torso or a stiffness besides the arm
    if composite:
        absolute = part.get("input_type", "delta") == "absolute"
        frame = str(part.get("input_ref_frame", "base"))
    else:
        absolute, frame = not part.get("control_delta", True), "world"
    if control.endswith("_delta") and absolute:
        replaced = {"ee_delta": "ee_pose", "joint_delta": "joint_position"}
        rotation = "rotvec" if part["type"] == "OSC_POSE" else ""
        frame = frame if control == "ee_delta" else ""
        return Convention(replaced[control], rotation, frame, gripper=GRIPPER)
    if control.startswith("joint"):
        unit = _unit(part, slice(None))
        return unit and Convention(control, position_unit=unit, gripper=GRIPPER)
    position, rotation_unit = _unit(part, slice(0, 3)), 1.0
    if part["type"] == "OSC_POSE":
        rotation_unit = _unit(part, slice(3, 6)) or 0.0
    if not position or not rotation_unit:
        return None
    rotation = "rotvec" if part["type"] == "OSC_POSE" else ""
    return Convention(control, rotation, frame, position, rotation_unit, GRIPPER)


def _unit(part: Mapping[str, Any], which: slice) -> Any:
    """Return the unit of a 1; None if it differs between axes or directions."""
    outputs = [part.get("output_min"), part.get("output_max")]
    low, high = ([o] * 6 if isinstance(o, int | float) else o for o in outputs)
    if not isinstance(low, list) or not isinstance(high, list):
        return None
    numbers = high[which] + low[which]
    if not all(isinstance(x, int | float) and abs(x) < 1e6 for x in numbers):
        return None
    units = {*map(float, high[which]), *(-float(x) for x in low[which])}
    inputs = (part.get("input_min"), part.get("input_max"))
    return units.pop() if len(units) == 1 and inputs == (-1, 1) else None
