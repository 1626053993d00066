"""The guard of a control loop: whatever escapes it, the arm rests first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scripted import PANDA, TURN, ScriptedNode, rests

from latentplan.errors import RobotError
from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.loop.local import LocalRobot
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import State, Supervisor


class Broken(SimulatedDriver):
    """A driver with a bug, from some time on."""

    def __init__(self, part: str, error: BaseException) -> None:
        super().__init__(PANDA)
        self.part, self.error = part, error
        self.broken = False
        self.written: list[Any] = []

    def reading(self) -> Any:
        self._fail("reading")
        return super().reading()

    def write(self, setpoint: Any) -> None:
        self._fail("write")
        self.written.append(setpoint)
        super().write(setpoint)

    def wait(self, until: float) -> None:
        super().wait(until)
        self._fail("wait")

    def _fail(self, part: str) -> None:
        if self.broken and part == self.part:
            self.broken = part == "reading"  # for ever
            raise self.error


@pytest.mark.parametrize("part", ["reading", "write", "wait"])
@pytest.mark.parametrize("error", [TypeError("a bug"), MemoryError(), KeyboardInterrupt()])
def test_whatever_escapes_a_loop_the_arm_rests_first(part: str, error: BaseException) -> None:
    driver = Broken(part, error)
    robot = LocalRobot(driver, Supervisor(SafetyFilter(PANDA)))
    with pytest.raises(type(error)), robot:
        for _ in range(5):
            robot.send(TURN)
        driver.broken = True
        try:
            robot.send(TURN)
        finally:
            assert np.abs(driver.written[-1].dq).max() < 1e-6
            state = State.HOLD if isinstance(error, KeyboardInterrupt) else State.FAULT
            assert robot.supervisor.state is state
    assert rests(driver.written, limits=robot.supervisor.safety.limits)


def test_a_bug_in_the_node_stops_the_arm_before_it_is_raised() -> None:
    bench = ScriptedNode()

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        bench.node._publish = None  # type: ignore[method-assign, assignment]
        for _ in range(200):
            yield

    with pytest.raises(TypeError):
        bench.play(script)
    assert bench.supervisor.state is State.FAULT and "TypeError" in bench.supervisor.reason
    assert rests(bench.written, limits=bench.supervisor.safety.limits)


@pytest.mark.parametrize("part", ["write", "now"])
def test_an_arm_that_cannot_be_stopped_is_an_error(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SimulatedDriver(PANDA)
    robot = LocalRobot(driver, Supervisor(SafetyFilter(PANDA)))

    def never(*_: Any) -> Any:
        raise TypeError("a bug")

    found = r"could not be stopped \(TypeError: a bug\); use its emergency stop"
    with pytest.raises(RobotError, match=found), robot:
        robot.send(TURN)
        monkeypatch.setattr(driver, part, never)
        robot.send(TURN)
