"""A jerk-limited trajectory generator that can stop at any tick: Ruckig, joint by joint."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from latentplan.errors import MissingDependency
from latentplan.robots.trajectory import Limits
from latentplan.types import Array

_State = tuple[list[float], list[float], list[float]]  # position and its derivatives
SLOW = 1e-3  # rad/s
NEAR = 1e-3  # rad, a slow joint stops this far before its target


class TrajectoryGenerator:
    """The generator of the motors' setpoints: position, velocity and acceleration, each (J,).

    `propose` computes a step and the stop that would follow it, `path` returns their positions, and
    `accept` takes the step. Without an accepted step, `carry_on` follows the stop that was computed
    with the last one.
    """

    def __init__(self, limits: Limits, *, dt: float) -> None:
        """Take the limits and the time between ticks, s; MissingDependency without ruckig."""
        try:
            import ruckig
        except ImportError as e:
            raise MissingDependency(
                f'the arm needs {e.name}: pip install "latentplan[arm]"'
            ) from None
        joints = len(limits.velocity)
        self.dt = dt
        self._failures = (ruckig.RuckigError, ValueError)  # ValueError for unnamed results
        self._otg: Any = ruckig.Ruckig(joints)
        self._interfaces = ruckig.ControlInterface.Position, ruckig.ControlInterface.Velocity
        self._move: Any = ruckig.InputParameter(joints)
        self._halt: Any = ruckig.InputParameter(joints)
        for task in (self._move, self._halt):
            task.synchronization = ruckig.Synchronization.No
            task.max_velocity = limits.velocity.tolist()
            task.max_acceleration = limits.acceleration.tolist()
            task.max_jerk = limits.jerk.tolist()
        self._halt.control_interface = ruckig.ControlInterface.Velocity
        self._way: Any = ruckig.Trajectory(joints)
        # One stop is carried out while another is computed.
        self._stop: Any = ruckig.Trajectory(joints)
        self._spare: Any = ruckig.Trajectory(joints)
        self._rest = [0.0] * joints
        self._half: list[float] = (0.5 / limits.jerk).tolist()
        self.settle(np.zeros(joints))

    def settle(self, q: Array) -> None:
        """Rest at q (J,) rad."""
        self._state: _State = (q.tolist(), self._rest, self._rest)
        self._next = self._state
        self._plan_stop()
        self.accept()

    @property
    def at(self) -> list[float]:
        """Return the position as a list of J numbers, rad."""
        return self._state[0]

    @property
    def q(self) -> Array:
        """Return the position (J,), rad."""
        return np.array(self._state[0])

    @property
    def dq(self) -> Array:
        """Return the velocity (J,), rad/s."""
        return np.array(self._state[1])

    @property
    def ddq(self) -> Array:
        """Return the acceleration (J,), rad/s^2."""
        return np.array(self._state[2])

    @property
    def at_rest(self) -> bool:
        """Return whether the stop that would follow now is over."""
        return bool(self._since >= self._stop.duration)

    def propose(self, target: list[float], speed: list[float]) -> bool:
        """Compute a step towards `target` and its stop; return whether Ruckig finds profiles.

        The J joints go to `target`, rad, no faster than `speed`, rad/s, unless they already are;
        a joint of speed 0 stops.
        """
        q, dq, ddq = self._state
        move = self._move
        move.current_position, move.current_velocity, move.current_acceleration = q, dq, ddq
        reaching, drifting = self._interfaces
        # Ruckig finds no profile that takes hours, so a slow joint goes at its velocity instead.
        slow = [most < SLOW for most in speed]
        move.per_dof_control_interface = [drifting if is_slow else reaching for is_slow in slow]
        move.target_velocity = [
            _drift(end - at, most) if is_slow else 0.0
            for is_slow, at, end, most in zip(slow, q, target, speed, strict=True)
        ]
        move.max_velocity = [max(most, SLOW) for most in speed]
        move.target_position = target
        try:
            self._otg.calculate(move, self._way)
            self._next = self._way.at_time(self.dt)
            self._plan_stop()
        except self._failures:
            return False
        return True

    def proposed(self) -> tuple[list[float], list[float]]:
        """Return the bounds (J,), rad, on the end of the proposed step and all of its stop.

        A stop moves in one direction, to its end, unless the velocity changes sign before the jerk
        has removed the acceleration; then the largest possible speed bounds its travel.
        """
        duration = self._spare.duration
        ends = self._spare.at_time(duration)[0]
        least: list[float] = []
        most: list[float] = []
        for q, v, a, half, end in zip(*self._next, self._half, ends, strict=True):
            gained = a * abs(a) * half
            if v * (v + gained) < 0:
                way = duration * (abs(v) + abs(gained))
                least.append(q - way)
                most.append(q + way)
            else:
                least.append(min(q, end))
                most.append(max(q, end))
        return least, most

    def path(self) -> Array:
        """Return the positions (M, J) at the ticks of the proposed step and of its stop."""
        ticks = int(np.ceil(self._spare.duration / self.dt - 1e-9))
        stop = (self._spare.at_time((i + 1) * self.dt)[0] for i in range(ticks))
        return np.array([self._next[0], *stop])

    def accept(self) -> None:
        """Take the step that was proposed."""
        self._state, self._since = self._next, 0.0
        self._stop, self._spare = self._spare, self._stop

    def carry_on(self) -> None:
        """Take a step along the stop."""
        self._since += self.dt
        self._state = self._stop.at_time(self._since)

    def _plan_stop(self) -> None:
        halt = self._halt
        halt.current_position, halt.current_velocity, halt.current_acceleration = self._next
        self._otg.calculate(halt, self._spare)


def _drift(way: float, speed: float) -> float:
    """Return the velocity of a slow joint that has `way` rad to go."""
    return math.copysign(speed, way) if abs(way) > NEAR else 0.0
