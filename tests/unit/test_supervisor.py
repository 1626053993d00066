"""The state machine that lets an arm move: every transition, and the setpoints it allows."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from supervised_arm import DT, HOME, MOVE, STAY, STILL, SupervisedArm, check_fault, in_state

from latentplan.errors import ConfigError, RobotError
from latentplan.real_robot.loop.supervisor import (
    TRANSITIONS,
    Event,
    State,
    Supervisor,
    transition_table,
)
from latentplan.real_robot.robot import CameraImage, Reading, Setpoint


def cause(arm: SupervisedArm, event: Event) -> None:
    supervisor = arm.supervisor
    if event is Event.HEARD:
        arm.tick()
    elif event is Event.LOST:
        arm.muted = {"joints"}
        for _ in range(7):
            arm.tick(STAY)
    elif event is Event.REST:
        arm.until_silent()
    elif event is Event.ARM:
        supervisor.arm(now=arm.now)
    elif event is Event.RESET:
        supervisor.reset(now=arm.now)
    elif event is Event.CLOSE:
        supervisor.close()
    else:
        (supervisor.stop if event is Event.STOP else supervisor.fault)("because")


ASKED = (Event.ARM, Event.RESET, Event.CLOSE, Event.STOP, Event.FAULT)


@pytest.mark.parametrize(("state", "event"), sorted(product(State, Event)))
def test_every_transition(state: State, event: Event) -> None:
    arm = in_state(state)
    assert arm.supervisor.state is state
    after = TRANSITIONS.get((state, event))
    if after is not None:
        cause(arm, event)
        assert arm.supervisor.state is after
    elif event in (Event.ARM, Event.RESET, Event.CLOSE):
        with pytest.raises(RobotError, match=str(event)):
            cause(arm, event)
        assert arm.supervisor.state is state
    elif event is not Event.REST:  # what rests cannot come to rest
        cause(arm, event)
        assert arm.supervisor.state is state


def test_a_fault_during_a_stop_ends_in_fault() -> None:
    arm = SupervisedArm().moving()
    arm.supervisor.stop("enough")
    arm.tick()
    arm.supervisor.fault("emergency stop")
    arm.supervisor.fault("another")
    arm.until_silent()
    assert arm.supervisor.state is State.FAULT
    assert arm.supervisor.reason == "emergency stop"


def test_a_broken_action_is_a_fault_at_once() -> None:
    arm = SupervisedArm().moving()
    arm.tick(np.full(8, np.nan))
    assert arm.supervisor.state is State.STOPPING
    check_fault(arm, "every number must be finite", within=0)


def test_neither_arm_nor_reset_while_it_moves_or_nothing_is_heard() -> None:
    arm = SupervisedArm()
    arm.tick()
    arm.dq = STILL + 0.05
    arm.tick()
    with pytest.raises(RobotError, match=r"arm: refused; joint1 moves at 0\.050 rad/s"):
        arm.supervisor.arm(now=arm.now)
    arm.dq = STILL
    arm.tick()
    with pytest.raises(RobotError, match="arm: refused; joints: silent for"):
        arm.supervisor.arm(now=arm.now + 1)
    arm.supervisor.fault("emergency stop")
    arm.dq = STILL + 0.05
    arm.tick()
    with pytest.raises(RobotError, match="reset: refused; joint1 moves"):
        arm.supervisor.reset(now=arm.now)
    assert arm.supervisor.reason == "emergency stop"
    arm = SupervisedArm()
    arm.muted = {"front"}
    arm.tick()
    with pytest.raises(RobotError, match="front: no data so far"):
        arm.supervisor.arm(now=arm.now)


def test_it_arms_where_the_arm_is_not_where_it_was_sent() -> None:
    arm = SupervisedArm().moving()
    arm.supervisor.fault("protective stop")
    arm.until_silent()
    arm.q = HOME + 0.1  # moved by hand
    arm.tick()
    arm.supervisor.reset(now=arm.now)
    arm.supervisor.arm(now=arm.now)
    first = arm.tick(MOVE)
    assert first is not None
    assert np.abs(first.q - (HOME + 0.1)).max() < 0.3 * DT


def test_health_says_what_happened() -> None:
    arm = SupervisedArm().moving()
    arm.tick(np.append(np.full(7, 50.0), 0))
    health = arm.supervisor.health(now=arm.now)
    assert health.state == "armed" and health.reason == ""
    assert health.ages == {"joints": 0.0, "front": 0.0}
    assert health.interventions == {"velocity": 1}
    assert health.ticks == 12


def test_the_table_shows_every_transition() -> None:
    lines = transition_table().splitlines()
    assert len(lines) == 2 + len(State)
    for line, state in zip(lines[2:], State, strict=True):
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        for cell, event in zip(cells, Event, strict=True):
            after = TRANSITIONS.get((state, event))
            assert (after is None) == (cell == "") and (after is None or str(after) in cell)


def test_the_page_shows_the_table_that_the_code_has() -> None:
    page = Path(__file__).parents[2] / "docs" / "safety.md"
    assert f"supervisor.transition_table() -->\n{transition_table()}\n" in page.read_text()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Supervisor\.joints_age"):
        Supervisor.Config(joints_age=0)
    with pytest.raises(ConfigError, match=r"Supervisor\.late: 1\.0 is not within"):
        Supervisor.Config(late=1.0)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: silent unless armed, and never a jump."""

    def __init__(self) -> None:
        super().__init__()
        self.arm = SupervisedArm()

    @rule(ticks=st.integers(1, 15), speed=st.floats(-1, 1), broken=st.booleans())
    def ticks(self, ticks: int, speed: float, broken: bool) -> None:
        for _ in range(ticks):
            moving = self.arm.supervisor.moving
            before, speeds = self.arm.q, self.arm.dq
            action = np.full(8, np.nan if broken and ticks > 12 else speed)
            setpoint = self.arm.tick(action)
            assert moving or setpoint is None
            if setpoint is not None:
                limits = self.arm.supervisor.safety.limits
                most = limits.velocity * DT * (1 + 1e-9)
                assert (np.abs(setpoint.q - before) <= most).all()
                change = limits.acceleration * DT * (1 + 1e-9)
                assert (np.abs(setpoint.dq - speeds) <= change).all()
            elif not moving:
                assert (self.arm.dq == speeds).all()

    @rule(source=st.sampled_from(["joints", "front"]))
    def mute(self, source: str) -> None:
        self.arm.muted ^= {source}

    @rule(event=st.sampled_from(ASKED))
    def ask(self, event: Event) -> None:
        before = self.arm.supervisor.state
        try:
            cause(self.arm, event)
        except RobotError:
            assert self.arm.supervisor.state is before
        else:
            if event is Event.ARM:
                assert before is State.READY

    @precondition(lambda self: self.arm.supervisor.state is State.FAULT)
    @rule()
    def a_fault_has_a_reason(self) -> None:
        assert self.arm.supervisor.reason

    @invariant()
    def the_reference_is_finite(self) -> None:
        assert np.isfinite(self.arm.supervisor.safety.q).all()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("part", ["read", "write"])
def test_a_driver_that_fails_is_a_fault_not_an_end(part: str) -> None:
    class Broken:
        cameras = ()

        def reading(self) -> Reading | None:
            raise RobotError("no read")

        def images(self) -> dict[str, CameraImage]:
            return {}

        def write(self, setpoint: Setpoint) -> None:
            raise RobotError("no write")

    arm = SupervisedArm().moving()
    driver: Any = Broken()
    if part == "read":
        arm.supervisor.listen(driver)
    else:
        arm.supervisor.steer(driver, None, now=arm.now)
    assert arm.supervisor.state is State.STOPPING
    assert arm.supervisor.reason == f"no {part}"
    arm.until_silent()
    assert arm.supervisor.state is State.FAULT
