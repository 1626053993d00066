"""A jerk-limited joint reference that can stop at any tick: Ruckig, each joint on its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentplan.errors import MissingDependency
from latentplan.robots.trajectory import Limits
from latentplan.types import Array

STILL = 1e-6  # rad/s, slower is no motion


class Reference:
    """Where the motors are told to be: position, velocity and acceleration, each (J,).

    `propose` computes a step and the stop that would follow it; `accept` takes the step. Without
    one, `carry_on` goes along the stop that was computed with the last step taken.
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
        self._failures = (ruckig.RuckigError, ValueError)  # the latter for results without a name
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
        self.settle(np.zeros(joints))

    def settle(self, q: Array) -> None:
        """Rest at q (J,) rad."""
        self._state = (q.tolist(), self._rest, self._rest)
        self._next = self._state
        self._plan_stop()
        self.accept()

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

    def propose(self, target: Array, speed: Array) -> Array | None:
        """Return the positions (M, J) at the ticks of a step towards `target` and of its stop.

        The first is the step's; the joints go to target (J,) rad, no faster than speed (J,) rad/s
        unless they are now, and stand still where that is 0. None where Ruckig finds no profile.
        """
        q, dq, ddq = self._state
        move, speeds = self._move, speed.tolist()
        move.current_position, move.current_velocity, move.current_acceleration = q, dq, ddq
        moving, standing = self._interfaces
        move.per_dof_control_interface = [moving if s > STILL else standing for s in speeds]
        move.max_velocity = [s if s > STILL else 1.0 for s in speeds]  # not used by those that stop
        move.target_position = target.tolist()
        try:
            self._otg.calculate(move, self._way)
            self._next = self._way.at_time(self.dt)
            self._plan_stop()
        except self._failures:
            return None
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
