"""A described arm as MuJoCo bodies: joints from the table, capsules for links, no meshes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from latentplan.robots.description import Arm, Capsules
from latentplan.types import Array

EE = "ee"  # body between the finger tips, whose pose is the end effector's
FINGER = (0.010, 0.006)  # m, half of a finger's thickness along x and y
COLOURS = ((0.93, 0.93, 0.95, 1.0), (0.30, 0.34, 0.40, 1.0))  # links and joints alternately
HAND = (0.16, 0.17, 0.19, 1.0)


def add(
    spec: Any, arm: Arm, *, prefix: str = "", solid: bool = False, fingers: bool = True
) -> None:
    """Add `arm` to an MjSpec: bodies, joints, and one position actuator a joint.

    Names are `prefix` + the joint's; the end effector is the body `prefix` + "ee". If `solid`, its
    capsules collide with each other and with every geom of contact bit 1; else the arm is visual
    only, and an equality constraint holds its object. If `fingers`, the fingers slide (joints and
    actuators `left`, `right`: half the width each); else they stay open.
    """
    import mujoco

    gripper = arm.gripper
    angle = np.rad2deg(1.0) if spec.compiler.degree else 1.0  # unit of the spec's ranges
    body = spec.worldbody.add_body(
        name=f"{prefix}base", pos=arm.position, quat=_quaternion((0, 0, 1), arm.yaw), gravcomp=1
    )
    bits = 1 if solid else 0
    _add_capsules(body, arm.base_capsules, mass=1.0, rgba=COLOURS[1], bits=bits)
    for i, joint in enumerate(arm.joints):
        origin = joint.origin()
        body = body.add_body(
            name=f"{prefix}{joint.name}_link",
            pos=origin[:3, 3],
            quat=_product(joint.rotation, _quaternion((1, 0, 0), joint.alpha)),
            gravcomp=1,
        )
        body.add_joint(
            name=prefix + joint.name,
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=(0, 0, 1),
            range=(joint.low * angle, joint.high * angle),
            limited=mujoco.mjtLimited.mjLIMITED_TRUE,
            armature=0.1,  # a geared motor's rotor; keeps light wrists stable at large timesteps
        )
        _add_capsules(body, joint.capsules, mass=joint.mass, rgba=COLOURS[i % 2], bits=bits)
        _add_servo(spec, prefix + joint.name, joint.torque, (joint.low, joint.high))
    hand = body.add_body(
        name=f"{prefix}hand",
        pos=(arm.tip() @ [0, 0, arm.flange, 1])[:3],
        quat=_product(arm.tip_rotation, _quaternion((0, 0, 1), gripper.yaw)),
        gravcomp=1,
    )
    _add_capsules(hand, gripper.capsules, mass=gripper.mass, rgba=HAND, bits=bits)
    for name, side in (("left", 1), ("right", -1)):
        _add_finger(spec, hand, arm, prefix + name, side=side, bits=bits, slides=fingers)
    ee = hand.add_body(name=prefix + EE, pos=(0, 0, gripper.length))
    ee.add_site(name=prefix + EE, size=(1e-3, 1e-3, 1e-3), rgba=(0, 0, 0, 0))
    # Neighbours overlap in their joint. MuJoCo excludes such contacts, but not with a fixed base.
    spec.add_exclude(bodyname1=f"{prefix}base", bodyname2=f"{prefix}{arm.joints[0].name}_link")


def _add_finger(
    spec: Any, hand: Any, arm: Arm, name: str, *, side: int, bits: int, slides: bool
) -> None:
    """Add a box finger that slides along y by half the width, or stays open."""
    import mujoco

    gripper = arm.gripper
    bottom = gripper.length + gripper.tip - gripper.finger / 2  # centre of the box along z
    at = side * (FINGER[1] + (0 if slides else gripper.width / 2))
    finger = hand.add_body(name=name, pos=(0, at, bottom), gravcomp=1)
    if slides:
        finger.add_joint(
            name=name,
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=(0, side, 0),
            range=(0, gripper.width / 2),
            limited=mujoco.mjtLimited.mjLIMITED_TRUE,
            armature=0.1,
        )
        _add_servo(spec, name, gripper.force, (0, gripper.width / 2))
    finger.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(*FINGER, gripper.finger / 2),
        mass=0.02,
        rgba=COLOURS[0],
        contype=bits,
        conaffinity=bits,
    )


def _add_servo(spec: Any, joint: str, force: float, limits: tuple[float, float]) -> None:
    """Add a critically damped position actuator that reaches full force at an error of 5e-3."""
    import mujoco

    actuator = spec.add_actuator(name=joint, target=joint)
    actuator.trntype = mujoco.mjtTrn.mjTRN_JOINT
    actuator.set_to_position(kp=force / 0.005, dampratio=1.0)
    actuator.ctrlrange = limits
    actuator.forcerange = (-force, force)
    actuator.ctrllimited = actuator.forcelimited = mujoco.mjtLimited.mjLIMITED_TRUE


def _add_capsules(
    body: Any, capsules: Capsules, *, mass: float, rgba: tuple[float, ...], bits: int
) -> None:
    import mujoco

    lengths = [float(np.linalg.norm(np.subtract(c[3:6], c[:3]))) + c[6] for c in capsules]
    for capsule, length in zip(capsules, lengths, strict=True):
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_CAPSULE,
            fromto=capsule[:6],
            size=(capsule[6], 0, 0),
            mass=mass * length / sum(lengths),
            rgba=rgba,
            contype=bits,
            conaffinity=bits,
        )
    if not capsules:  # MuJoCo refuses a moving body without mass
        body.mass, body.inertia, body.explicitinertial = mass, (1e-3,) * 3, True


def _quaternion(axis: tuple[float, float, float], angle: float) -> Array:
    """Return w, x, y, z of a turn about a unit axis."""
    half = angle / 2
    return np.array([np.cos(half), *(np.sin(half) * np.asarray(axis))])


def _product(first: Sequence[float] | Array, second: Sequence[float] | Array) -> Array:
    """Return w, x, y, z of a turn by `second` in the frame turned by `first`."""
    a, b, c, d = first
    w, x, y, z = second
    return np.array(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ]
    )
