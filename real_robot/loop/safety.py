"""The filter between a planner and the motors: every output is safe, for any input.

Pure: numpy and ruckig, no clock, no transport, the same from the same input.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from latentplan.errors import ConfigError, RobotError, check_range, unknown
from latentplan.real_robot.loop.trajectory_generator import TrajectoryGenerator
from latentplan.real_robot.loop.workspace import Workspace
from latentplan.real_robot.robot import Command, Setpoint
from latentplan.robots.chain import Chain
from latentplan.robots.description import Arm
from latentplan.robots.trajectory import Limits
from latentplan.types import Array

CONTROLS = ("joint_velocity", "joint_position", "joint_delta")
Triple = tuple[float, float, float]
AHEAD = 100.0  # s, a velocity command is a move to its end after this time
LARGEST = 1e9  # rad or rad/s, so that no product overflows
ROUNDING = 1e-9  # rad and m


class SafetyFilter:
    """A filter from any stream of commands to setpoints that keep every limit.

    In this order: a command that is not a finite (J + 1,) is a fault; an old one is dropped; one
    that lasts too long is a fault; velocity is scaled down to its limit; acceleration and jerk are
    limited by Ruckig (Berscheid and Kroeger 2021, arXiv 2105.04830), joint by joint; a velocity is
    a move to the joint limit at that speed, so that braking begins exactly where it must; the end
    effector keeps to a box; a reference that runs away from the measured joints is a fault.

    The limits always hold, because a step is taken only if a stop after it is computed and lies
    within the joint limits and the box at every tick. If the next step is refused, or Ruckig
    finds no solution, the arm follows that stop. Between ticks the joints keep within their limits
    too; the end effector's path bends by less than a millimetre there.

    The gripper moves at its own speed between closed and open.
    """

    @dataclass(frozen=True)
    class Config:
        """The limits of an arm under a planner; a share is a fraction of the maker's limit."""

        control: str = "joint_velocity"  # rad/s; joint_position: rad; joint_delta: rad, relative
        dt: float = 0.02  # s between setpoints
        velocity: float = 0.3  # share
        acceleration: float = 0.5  # share
        ramp: float = 0.04  # s from none to full acceleration at least, which sets the jerk
        margin: float = 0.05  # rad from the joint limits
        low: Triple = (-0.45, -0.5, 0.01)  # m, the box's corner; the table's top is z = 0
        high: Triple = (0.45, 0.5, 0.9)  # m, its opposite corner
        beyond: float = 0.01  # m outside of the box from which the arm may return
        lead: float = 0.15  # rad allowed between the reference and the measured joints
        age: float = 0.3  # s that a command holds, from the observation that it answers

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            if self.control not in CONTROLS:
                raise unknown("SafetyFilter.control", self.control, CONTROLS)
            check_range("SafetyFilter.dt", self.dt, 1e-3, 0.1)
            check_range("SafetyFilter.velocity", self.velocity, 1e-3, 1)
            check_range("SafetyFilter.acceleration", self.acceleration, 1e-3, 1)
            check_range("SafetyFilter.ramp", self.ramp, 0, 1)
            check_range("SafetyFilter.margin", self.margin, 0, 0.5)
            check_range("SafetyFilter.beyond", self.beyond, 0, 0.1)
            check_range("SafetyFilter.lead", self.lead, 1e-3, 3)
            check_range("SafetyFilter.age", self.age, 2 * self.dt, 10)
            for axis, low, high in zip("xyz", self.low, self.high, strict=True):
                check_range(f"SafetyFilter.low.{axis}", low, -10, 10)
                check_range(f"SafetyFilter.high.{axis}", high, low + 0.01, 10)

    def __init__(self, arm: Arm, config: Config | None = None) -> None:
        """Take the arm's limits; MissingDependency without ruckig. Call `reset` before `step`."""
        self.arm = arm
        self.config = c = config or self.Config()
        velocity = arm.column("velocity") * c.velocity
        acceleration = arm.column("acceleration") * c.acceleration
        jerk = np.minimum(arm.column("jerk"), acceleration / max(c.ramp, 1e-6))
        self.limits = Limits(velocity, acceleration, jerk)
        self.low, self.high = arm.column("low") + c.margin, arm.column("high") - c.margin
        if (self.low >= self.high).any():
            joint = arm.joints[int((self.high - self.low).argmin())]
            raise ConfigError(
                f"SafetyFilter.margin: {c.margin} rad leaves {joint.name} no room between "
                f"{joint.low} and {joint.high} rad; lower it"
            )
        self.interventions: Counter[str] = Counter()
        self._chain = Chain(arm)
        self._box = np.array(c.low), np.array(c.high)
        self._joints = len(arm.joints)
        # A stop from speed v covers v (v slope + offset), if it reaches full acceleration.
        slope, offset = 0.5 / acceleration, 0.5 * acceleration / jerk
        self._stopping: tuple[list[float], list[float]] = slope.tolist(), offset.tolist()
        self._fastest: list[float] = velocity.tolist()
        self._reference = TrajectoryGenerator(self.limits, dt=c.dt)
        self._gripper, self._gripper_target = 0.0, 0.0
        self._command: Command | None = None
        self._stamp = 0.0  # s, time stamp of the command
        # The command, one number a joint: the speed limit, and the target or the velocity.
        # Lists, because for seven numbers they are faster than arrays.
        self._speed: list[float] = []
        self._target: list[float] = []
        self._leads: list[float] = []  # rad, travel of a velocity in AHEAD s
        self._needs: list[float] = []  # rad, travel of a stop from that velocity
        self._slowed = self._bounded = False  # the command exceeds the limits
        self._yields = False  # until the end of a stop at the box
        self._bound()

    @property
    def stopping_time(self) -> float:
        """Return the longest that a stop takes, s: at full speed, reached at full acceleration."""
        v, a, jerk = self.limits.velocity, self.limits.acceleration, self.limits.jerk
        return float((v / a + 2 * a / jerk).max())

    @property
    def q(self) -> Array:
        """Return the reference (J,), rad: the last setpoint."""
        return self._reference.q

    @property
    def gripper(self) -> float:
        """Return the gripper's width in the last setpoint, m."""
        return self._gripper

    @property
    def at_rest(self) -> bool:
        """Return whether the reference stands still."""
        return self._reference.at_rest

    def reset(self, q: Array, *, gripper: float, now: float) -> None:
        """Set the reference to the measured joints q (J,), rad, and gripper width, m.

        Commands that answer observations from before `now` are dropped. An arm in the margin of
        its joint limits, or just beyond the box, may stay or return, but go no farther. Raises
        RobotError, and changes nothing, if it is farther out.
        """
        q = np.asarray(q, np.float64)
        if q.shape != (self._joints,) or not np.isfinite([*q, gripper, now]).all():
            raise RobotError(
                f"joints: found {q.tolist()}, {gripper} m at {now} s; need {self._joints} joints, "
                "and finite numbers"
            )
        arm = self.arm
        for joint, at in zip(arm.joints, q.tolist(), strict=True):
            if not joint.low <= at <= joint.high:
                raise RobotError(
                    f"joints.{joint.name}: {at:.3f} rad is not within [{joint.low}, {joint.high}]; "
                    "move the arm there by its own controls"
                )
        ee, beyond = self._chain.ee(q[None])[0], self.config.beyond
        if ((ee < self._box[0] - beyond) | (ee > self._box[1] + beyond)).any():
            raise RobotError(
                f"workspace: the end effector is at ({ee[0]:.3f}, {ee[1]:.3f}, {ee[2]:.3f}) m, the "
                f"box is {self.config.low} to {self.config.high}; move the arm or the box"
            )
        self._bound(q, ee)
        self._reference.settle(q)
        self._yields = False
        self._gripper = self._gripper_target = float(np.clip(gripper, 0, self.arm.gripper.width))
        self._command, self._stamp = None, now

    def step(self, command: Command | None, *, measured: Array, now: float) -> Setpoint:
        """Return the setpoint of the next tick for a command; `fault` gives the reason of a stop.

        `measured` (J,) are the joints, rad; `now` is on the clock of the command's stamp, s. Before
        the first command (None) the arm stands still.
        """
        interventions: list[str] = []
        if command is not None:
            wrong = self._take(command, interventions)
            if wrong:
                return self._fault(wrong)
        age = now - self._stamp
        if not -self.config.dt <= age <= self.config.age:
            return self._fault(self._old(age))
        wrong = self._astray(measured)
        if wrong:
            return self._fault(wrong)
        if self._command is None or not self._advance(interventions):
            self._reference.carry_on()
        self._move_gripper()
        self.interventions.update(interventions)
        return self._setpoint(tuple(interventions))

    def sent(self, before: Array, *, period: float) -> Array:
        """Return the action (J + 1,) that moves the reference from `before` (J,), rad, to here.

        It holds for `period` s.
        """
        moved = self.q - before
        joints = {"joint_velocity": moved / period, "joint_position": self.q, "joint_delta": moved}
        return np.append(joints[self.config.control], self._gripper / self.arm.gripper.width)

    def brake(self) -> Setpoint:
        """Return the next setpoint of the stop that was computed before; the gripper holds."""
        self._reference.carry_on()
        return self._setpoint()

    def _fault(self, reason: str) -> Setpoint:
        self._reference.carry_on()
        return self._setpoint(fault=reason)

    def _setpoint(self, interventions: tuple[str, ...] = (), fault: str = "") -> Setpoint:
        r = self._reference
        return Setpoint(r.q, r.dq, r.ddq, self._gripper, interventions, fault)

    def _take(self, command: Command, interventions: list[str]) -> str:
        """Accept `command` unless it is late; return what is wrong with it."""
        if command is self._command:
            return ""
        try:
            action = np.asarray(command.action, np.float64)
        except (TypeError, ValueError, OverflowError):
            return f"action: found {command.action!r}, need {self._joints + 1} numbers"
        if action.shape != (self._joints + 1,):
            return f"action: found shape {action.shape}, need (J + 1={self._joints + 1},)"
        if not np.isfinite(action).all():
            return f"action: found {action.tolist()}, every number must be finite"
        if not isinstance(command.sequence, int | np.integer) or not math.isfinite(command.stamp):
            return (
                f"command: found sequence {command.sequence!r}, time stamp {command.stamp} s; a "
                "whole number and a finite one are allowed"
            )
        last = self._command
        if command.stamp < self._stamp or (last is not None and command.sequence < last.sequence):
            interventions.append("late")
        elif last is None or command.sequence > last.sequence:
            self._obey(command, action)
        return ""

    def _old(self, age: float) -> str:
        if age < 0:
            return f"action: answers an observation {-age:.3f} s in the future; the clocks disagree"
        return (
            f"action: answers an observation {age:.3f} s old, {self.config.age} s is allowed; "
            "the planner is too slow or gone"
        )

    def _astray(self, measured: Array) -> str:
        """Return which joint is off the reference; empty if all follow it."""
        if measured.shape != (self._joints,):
            return f"joints: measured shape {measured.shape}, need (J={self._joints},)"
        allowed = self.config.lead
        for i, (at, wanted) in enumerate(zip(measured.tolist(), self._reference.at, strict=True)):
            if not abs(at - wanted) <= allowed:  # NaN fails too
                return (
                    f"joints.{self.arm.joints[i].name}: measured at {at:.3f} rad, the reference "
                    f"is {wanted:.3f}, {allowed} between them is allowed; something blocks the "
                    "arm, or it follows too slowly"
                )
        return ""

    def _advance(self, interventions: list[str]) -> bool:
        """Take a step towards the command; return whether one is allowed."""
        if self._yields and not self.at_rest:
            interventions.append("workspace")
            return False
        self._yields = False
        if not self._reference.propose(self._aim(interventions), self._speed):
            interventions.append("solver")
            return False
        broken = self._breaks()
        if broken:
            interventions.append(broken)
            self._yields = broken == "workspace"
            return False
        self._reference.accept()
        return True

    def _breaks(self) -> str:
        """Return which limit the proposed step or its stop breaks; empty if it breaks none.

        Most steps surely break none, so their path is not computed.
        """
        path = None
        least, most = self._reference.proposed()
        near = False
        for a, b, (low, high) in zip(least, most, self._bounds, strict=True):
            near |= not low - ROUNDING <= a <= b <= high + ROUNDING
        if near:
            path = self._reference.path()
            if not (np.abs(path - self._middle) <= self._range).all():
                return "position"
        if self._room.surely_holds(least, most):
            return ""
        path = self._reference.path() if path is None else path
        return "" if self._room.holds(path) else "workspace"

    def _obey(self, command: Command, action: Array) -> None:
        """Follow `command`, whose action is finite (J + 1,), from now on."""
        self._command, self._stamp = command, command.stamp
        *joints, gripper = action.tolist()
        self._gripper_target = min(max(gripper, 0.0), 1.0) * self.arm.gripper.width
        joints = [min(max(asked, -LARGEST), LARGEST) for asked in joints]
        self._slowed = self._bounded = False
        if self.config.control == "joint_velocity":
            shares = [abs(v) / most for v, most in zip(joints, self._fastest, strict=True)]
            slower = max(1.0, *shares)  # all are slowed alike, so that the direction stays
            self._slowed = slower > 1 + ROUNDING
            self._leads = [v * (AHEAD / slower) for v in joints]
            self._speed = [abs(v) / slower for v in joints]
            stops = zip(self._speed, *self._stopping, strict=True)
            self._needs = [v * (v * slope + offset) for v, slope, offset in stops]
            return
        if self.config.control == "joint_delta":
            joints = [q + delta for q, delta in zip(self._reference.at, joints, strict=True)]
        clipped = [min(max(q, a), b) for q, (a, b) in zip(joints, self._bounds, strict=True)]
        self._bounded = clipped != joints
        self._target, self._speed = clipped, self._fastest

    def _aim(self, interventions: list[str]) -> list[float]:
        """Return the target of the joints (J,), rad; `_speed` limits their speed."""
        if self._slowed:
            interventions.append("velocity")
        if self.config.control == "joint_velocity":
            self._look_ahead()
        if self._bounded:
            interventions.append("position")
        return self._target

    def _look_ahead(self) -> None:
        """Aim at the end of the velocity's path; note whether a stop from it would be too long."""
        target: list[float] = []
        bounded = False
        joints = zip(self._reference.at, self._leads, self._bounds, self._needs, strict=True)
        for q, lead, (low, high), need in joints:
            end = q + lead
            end = low if end < low else high if end > high else end
            bounded |= -need < end - q < need
            target.append(end)
        self._target, self._bounded = target, bounded

    def _move_gripper(self) -> None:
        step = self.arm.gripper.speed * self.config.dt
        self._gripper += min(max(self._gripper_target - self._gripper, -step), step)

    def _bound(self, q: Array | None = None, ee: Array | None = None) -> None:
        """Set the limits of the joints and the box, widened to include q (J,) and ee (3,)."""
        low, high = self.low, self.high
        if q is not None:
            low, high = np.minimum(low, q), np.maximum(high, q)
        self._bounds = list(zip(low.tolist(), high.tolist(), strict=True))
        self._middle, self._range = (low + high) / 2, (high - low) / 2 + ROUNDING
        low, high = self._box
        if ee is not None:
            low, high = np.minimum(low, ee), np.maximum(high, ee)
        self._room = Workspace(self._chain, low - ROUNDING, high + ROUNDING)
