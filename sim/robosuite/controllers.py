"""The controllers of robosuite's arms, and the convention of each one's actions."""

from __future__ import annotations

from typing import Any

from latentplan.types import Convention

GRIPPER = "close_is_+1"
CONTROLLERS = {  # by name here: robosuite's name, control, rotation, frame
    "osc_pose": ("OSC_POSE", "ee_delta", "rotvec", "base"),
    "osc_position": ("OSC_POSITION", "ee_delta", "", "base"),
    "ik_pose": ("IK_POSE", "ee_delta", "rotvec", "world"),
    "joint_position": ("JOINT_POSITION", "joint_delta", "", ""),
    "joint_velocity": ("JOINT_VELOCITY", "joint_velocity", "", ""),
}


def settings(controller: str, *, robot: str) -> dict[str, Any]:
    """Return robosuite's settings of a controller, for `robosuite.make`."""
    from robosuite.controllers import load_composite_controller_config, load_part_controller_config

    composite: dict[str, Any] = load_composite_controller_config(controller=None, robot=robot)
    kind = CONTROLLERS[controller][0]
    if composite["body_parts"]["right"]["type"] != kind:
        part = load_part_controller_config(default_controller=kind)
        if controller == "ik_pose":  # joint positions; 1.5.1 would treat them as changes
            part["input_type"] = "absolute"
        composite["body_parts"]["right"] = {**part, "gripper": {"type": "GRIP"}}
    return composite


def convention(controller: str, part: Any, *, gripper: bool) -> Convention:
    """Return the convention of an action, with the units of robosuite's part controller `part`.

    IK takes metres and rad unscaled; the others scale an input of 1 to their `output_max`.
    """
    _, control, rotation, frame = CONTROLLERS[controller]
    position_unit = rotation_unit = 1.0
    if controller != "ik_pose":
        position_unit = float(part.output_max[0])
        rotation_unit = float(part.output_max[3]) if rotation else 1.0
    return Convention(
        control=control,
        rotation=rotation,
        frame=frame,
        position_unit=position_unit,
        rotation_unit=rotation_unit,
        gripper=GRIPPER if gripper else "",
    )


def meaning(convention: Convention) -> str:
    """Return a description of an action's numbers."""
    unit = convention.position_unit
    moves = {
        "ee_delta": f"end effector, {convention.frame} frame: x, y, z (1 = {unit} m)",
        "joint_delta": f"joints: change of position (1 = {unit} rad)",
        "joint_velocity": f"joints: velocity (1 = {unit} rad/s)",
    }[convention.control]
    turns = f", rotation vector (1 = {convention.rotation_unit} rad)" if convention.rotation else ""
    grips = ", gripper (1 closes, -1 opens)" if convention.gripper else ""
    return moves + turns + grips
