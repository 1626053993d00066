"""A simulated arm in MuJoCo: position servos of limited torque move its joints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from latentplan.errors import ShapeError
from latentplan.robots import mjcf
from latentplan.robots.description import Arm
from latentplan.robots.pick_and_place import Motion
from latentplan.types import Array


class SimulatedArm:
    """An arm on a table, with inertia, servos and torque limits; gravity is compensated.

    `execute` returns the arm's actual motion. The object that it carries is light against the arm
    (a rope weighs 40 g), so another simulation, of any engine, holds it and lets it follow the end
    effector.
    """

    TIMESTEP = 0.004  # s, at most

    def __init__(self, arm: Arm, *, scene: Any = None, solid: bool = False) -> None:
        """Build the model and put the arm at home, with the gripper open.

        `scene` is an MjSpec of the surroundings; if `solid`, the arm collides with them.
        """
        import mujoco

        spec = scene or mujoco.MjSpec()
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        mjcf.add(spec, arm, solid=solid)
        self.arm = arm
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self._mujoco = mujoco
        # Other joints of the scene come before the arm's in qpos.
        names = [*(joint.name for joint in arm.joints), "left", "right"]
        joints = [self.model.joint(name) for name in names]
        self._q = np.array([joint.qposadr[0] for joint in joints])
        self._dq = np.array([joint.dofadr[0] for joint in joints])
        self._fingers = self._q[-2:]
        self._ee = self.model.body(mjcf.EE).id
        # A servo's force is kp (target - q) - kv dq: with kv / kp dq in the target it does not lag.
        self._lead = -self.model.actuator_biasprm[:, 2] / self.model.actuator_gainprm[:, 0]
        self.reset()

    def reset(self, motion: Motion | None = None) -> None:
        """Put the arm at rest at the start of `motion`; without one, at home, gripper open."""
        self._mujoco.mj_resetData(self.model, self.data)
        home, width = self.arm.column("home"), self.arm.gripper.width
        self.data.qpos[self._q[:-2]] = home if motion is None else motion.q[0]
        self.data.qpos[self._fingers] = (width if motion is None else motion.gripper[0]) / 2
        self._target, self._rate = self.data.qpos[self._q], np.zeros(len(self._q))
        self.data.ctrl[:] = self._target
        self._mujoco.mj_forward(self.model, self.data)

    @property
    def q(self) -> Array:
        """Return the joint positions (J,), rad."""
        return np.asarray(self.data.qpos[self._q[:-2]])

    @property
    def dq(self) -> Array:
        """Return the joint velocities (J,), rad/s."""
        return np.asarray(self.data.qvel[self._dq[:-2]])

    @property
    def gripper(self) -> float:
        """Return the width between the fingers, m."""
        return float(self.data.qpos[self._fingers].sum())

    @property
    def ee(self) -> Array:
        """Return the pose (7,) of the end effector."""
        return np.concatenate([self.data.xpos[self._ee], self.data.xquat[self._ee]])

    def execute(self, motion: Motion) -> Motion:
        """Execute a motion and return the measured one, at the same instants.

        Raises ShapeError if the motion does not start at the arm's position.
        """
        gap = float(np.abs(motion.q[0] - self.q).max())
        if gap > 0.05:
            raise ShapeError(
                f"SimulatedArm.motion: starts {gap:.3f} rad from the arm's position; call reset()"
            )
        q, dq = np.empty_like(motion.q), np.empty_like(motion.dq)
        ee, gripper = np.empty_like(motion.ee), np.empty_like(motion.gripper)
        for i in range(len(motion)):
            if i > 0:
                self.servo(motion.q[i], dq=motion.dq[i], gripper=motion.gripper[i], dt=motion.dt)
            q[i], dq[i] = self.q, self.dq
            ee[i], gripper[i] = self.ee, self.gripper
        return replace(motion, q=q, dq=dq, ee=ee, gripper=gripper)

    def servo(self, q: Array, *, dq: Array, gripper: float, dt: float) -> None:
        """Drive the joints for `dt` s to q (J,), rad, with the end velocity dq (J,), rad/s.

        The targets move linearly from the last ones; `gripper` is the width in m.
        """
        target = np.append(q, (gripper / 2,) * 2)
        rate = np.append(dq, (0.0, 0.0))
        steps = int(np.ceil(dt / self.TIMESTEP - 1e-9))
        self.model.opt.timestep = dt / steps
        for share in np.arange(1, steps + 1) / steps:
            between = self._target + share * (target - self._target)
            lead = self._lead * (self._rate + share * (rate - self._rate))
            self.data.ctrl[:] = between + lead
            self._mujoco.mj_step(self.model, self.data)
        self._target, self._rate = target, rate
        self._mujoco.mj_kinematics(self.model, self.data)
