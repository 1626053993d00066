"""An arm under a supervisor, without a node or a driver, on a clock of the test."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import State, Supervisor
from latentplan.real_robot.robot import CameraImage, Command, Reading, Setpoint
from latentplan.robots.description import load

PANDA = load("panda")
HOME = PANDA.column("home")
DT = 0.02
STILL, PIXELS = np.zeros(7), np.zeros((16, 16, 3), np.uint8)
MOVE, STAY = np.append(np.full(7, 0.3), 0), np.append(STILL, 0)  # actions


class SupervisedArm:
    """A supervisor with a clock, and an arm that is where it is sent."""

    def __init__(self, **values: Any) -> None:
        config = Supervisor.Config(**values)
        self.supervisor = Supervisor(SafetyFilter(PANDA), config, cameras=("front",))
        self.now, self.q, self.dq = 10.0, HOME, STILL
        self.muted: set[str] = set()
        self.k = 0

    def tick(self, action: Any = None, *, dt: float = DT) -> Setpoint | None:
        self.now += dt
        self.k += 1
        if "joints" not in self.muted:
            self.supervisor.hear(Reading(self.now, self.now, self.q, self.dq, 0.04), {})
        if "front" not in self.muted:
            self.supervisor.hear(None, {"front": CameraImage(self.now, self.now, PIXELS)})
        command = None if action is None else Command(action, self.k, self.now)
        setpoint = self.supervisor.tick(command, now=self.now)
        if setpoint is not None:
            self.q, self.dq = setpoint.q, setpoint.dq
        return setpoint

    def moving(self) -> SupervisedArm:
        self.tick()
        self.supervisor.arm(now=self.now)
        for _ in range(10):
            self.tick(MOVE)
        assert self.dq.min() > 0.2
        return self

    def until_silent(self) -> None:
        """Tick until no setpoint is sent; check that they slow down."""
        for _ in range(60):
            before = np.abs(self.dq).max()
            if self.tick(MOVE) is None:
                return
            assert np.abs(self.dq).max() <= before
        raise AssertionError("setpoints do not end")


def in_state(state: State) -> SupervisedArm:
    arm = SupervisedArm()
    if state is State.DISCONNECTED:
        return arm
    if state is State.READY:
        arm.tick()
        return arm
    arm.moving()
    if state is not State.ARMED:
        (arm.supervisor.fault if state is State.FAULT else arm.supervisor.stop)("because")
    if state in (State.HOLD, State.FAULT):
        arm.until_silent()
    return arm


def check_fault(arm: SupervisedArm, message: str, within: float) -> None:
    """Keep commanding motion; check that the arm slows down in time, and stays stopped."""
    begin = arm.now
    while arm.supervisor.state is State.ARMED:
        arm.tick(MOVE)
        assert arm.now - begin <= within + 1e-9
    assert message in arm.supervisor.reason
    assert "\n" not in arm.supervisor.reason
    arm.until_silent()
    assert arm.supervisor.state is State.FAULT
    np.testing.assert_allclose(arm.dq, 0, atol=1e-9)
    assert arm.now - begin <= within + arm.supervisor.safety.stopping_time + 5 * DT
    arm.muted = set()
    for _ in range(20):  # what comes back does not start it again
        assert arm.tick(MOVE) is None
    arm.supervisor.reset(now=arm.now)
    arm.tick()
    arm.supervisor.arm(now=arm.now)
    np.testing.assert_array_equal(arm.supervisor.safety.q, arm.q)
