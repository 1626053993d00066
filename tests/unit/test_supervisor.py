"""The state machine that lets an arm move: every transition, every fault, and what it sends."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from latentplan.errors import ConfigError, RobotError
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import (
    TRANSITIONS,
    Event,
    State,
    Supervisor,
    transition_table,
)
from latentplan.real_robot.robot import CameraImage, Command, Reading, Setpoint, in_order
from latentplan.robots.description import load

PANDA = load("panda")
HOME = PANDA.column("home")
DT = 0.02
STILL, PIXELS = np.zeros(7), np.zeros((16, 16, 3), np.uint8)


class Bench:
    """A supervisor with a clock, and an arm that is where it is sent."""

    def __init__(self, *, cameras: tuple[str, ...] = ("front",), **values: Any) -> None:
        self.supervisor = Supervisor(
            SafetyFilter(PANDA), Supervisor.Config(**values), cameras=cameras
        )
        self.now, self.q, self.dq = 10.0, HOME, STILL
        self.muted: set[str] = set()
        self.sent: list[Setpoint | None] = []
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
        self.sent.append(setpoint)
        return setpoint

    def moving(self) -> Bench:
        self.tick()
        self.supervisor.arm(now=self.now)
        for _ in range(10):
            self.tick(np.append(np.full(7, 0.3), 0))
        assert self.dq.min() > 0.2
        return self

    def until_silent(self) -> int:
        """Return how many ticks pass until nothing is sent; what is sent must slow down."""
        for ticks in range(60):
            before = np.abs(self.dq).max()
            if self.tick(np.append(np.full(7, 0.3), 0)) is None:
                return ticks
            assert np.abs(self.dq).max() <= before
        raise AssertionError("it never fell silent")


def in_state(state: State) -> Bench:
    bench = Bench()
    if state is State.DISCONNECTED:
        return bench
    if state is State.READY:
        bench.tick()
        return bench
    bench.moving()
    if state is not State.ARMED:
        (bench.supervisor.fault if state is State.FAULT else bench.supervisor.stop)("because")
    if state in (State.HOLD, State.FAULT):
        bench.until_silent()
    return bench


def cause(bench: Bench, event: Event) -> None:
    supervisor = bench.supervisor
    if event is Event.HEARD:
        bench.tick()
    elif event is Event.LOST:
        bench.muted = {"joints"}
        for _ in range(7):
            bench.tick(np.append(STILL, 0))
    elif event is Event.REST:
        bench.until_silent()
    elif event is Event.ARM:
        supervisor.arm(now=bench.now)
    elif event is Event.RESET:
        supervisor.reset(now=bench.now)
    elif event is Event.CLOSE:
        supervisor.close()
    else:
        (supervisor.stop if event is Event.STOP else supervisor.fault)("because")


ASKED = (Event.ARM, Event.RESET, Event.CLOSE, Event.STOP, Event.FAULT)


@pytest.mark.parametrize(("state", "event"), sorted(product(State, Event)))
def test_every_transition(state: State, event: Event) -> None:
    bench = in_state(state)
    assert bench.supervisor.state is state
    after = TRANSITIONS.get((state, event))
    if after is not None:
        cause(bench, event)
        assert bench.supervisor.state is after
    elif event in (Event.ARM, Event.RESET, Event.CLOSE):
        with pytest.raises(RobotError, match=str(event)):
            cause(bench, event)
        assert bench.supervisor.state is state
    elif event is not Event.REST:  # what rests cannot come to rest
        cause(bench, event)
        assert bench.supervisor.state is state


def test_a_stop_that_tripped_ends_in_fault() -> None:
    bench = Bench().moving()
    bench.supervisor.stop("enough")
    bench.tick()
    bench.supervisor.fault("emergency stop")
    bench.supervisor.fault("another")
    bench.until_silent()
    assert bench.supervisor.state is State.FAULT
    assert bench.supervisor.reason == "emergency stop"


def faults(bench: Bench, message: str, within: float) -> None:
    """Keep asking for motion; hold that the arm slows down in time, and stays stopped."""
    begin = bench.now
    while bench.supervisor.state is State.ARMED:
        bench.tick(np.append(np.full(7, 0.3), 0))
        assert bench.now - begin <= within + 1e-9
    assert message in bench.supervisor.reason
    assert "\n" not in bench.supervisor.reason
    bench.until_silent()
    assert bench.supervisor.state is State.FAULT
    np.testing.assert_allclose(bench.dq, 0, atol=1e-9)
    assert bench.now - begin <= within + bench.supervisor.safety.stopping_time + 5 * DT
    bench.muted = set()
    for _ in range(20):  # what comes back does not start it again
        assert bench.tick(np.append(np.full(7, 0.3), 0)) is None
    bench.supervisor.reset(now=bench.now)
    bench.tick()
    bench.supervisor.arm(now=bench.now)
    np.testing.assert_array_equal(bench.supervisor.safety.q, bench.q)


def test_silent_joints_trip() -> None:
    bench = Bench().moving()
    bench.muted = {"joints"}
    faults(bench, "joints: silent for", within=0.1 + DT)


def test_a_silent_camera_trips() -> None:
    bench = Bench().moving()
    bench.muted = {"front"}
    faults(bench, "front: silent for", within=0.2 + DT)


def test_a_frozen_clock_counts_as_silence() -> None:
    bench = Bench().moving()
    bench.muted = {"joints"}
    frozen, begin = bench.now, bench.now
    while bench.supervisor.state is State.ARMED:
        bench.supervisor.hear(Reading(frozen, bench.now, bench.q, bench.dq, 0.04), {})
        bench.tick(np.append(np.full(7, 0.3), 0))
    assert "joints: silent" in bench.supervisor.reason
    assert bench.now - begin <= 0.1 + 2 * DT


def test_readings_out_of_order_are_left_out() -> None:
    bench = Bench().moving()
    newest = bench.supervisor.reading
    bench.supervisor.hear(Reading(bench.now - 0.05, bench.now, HOME, STILL, 0.0), {})
    assert bench.supervisor.reading is newest


@pytest.mark.parametrize("jump", [-100.0, 100.0])
def test_a_clock_that_jumps_trips(jump: float) -> None:
    bench = Bench().moving()
    reading = Reading(bench.now + jump, bench.now + 0.001, bench.q, bench.dq, 0.04)
    bench.supervisor.hear(reading, {})
    bench.tick()
    assert bench.supervisor.state is State.STOPPING
    assert "its clock went" in bench.supervisor.reason


NOT_FINITE = (np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("field", ["stamp", "received"])
@pytest.mark.parametrize("source", ["joints", "front"])
def test_a_time_that_is_not_finite_trips_at_once(source: str, field: str, value: float) -> None:
    bench = Bench().moving()
    bench.muted = {source}
    now = bench.now + 0.001
    if source == "joints":
        reading = Reading(now, now, bench.q, bench.dq, 0.04)
        bench.supervisor.hear(reading._replace(**{field: value}), {})
    else:
        image = CameraImage(now, now, PIXELS)
        bench.supervisor.hear(None, {"front": image._replace(**{field: value})})
    faults(bench, f"{source}: its time stamp is", within=DT)


@pytest.mark.parametrize("value", [*NOT_FINITE, -100.0, 9.9])
def test_a_clock_of_the_robot_that_does_not_go_on_trips(value: float) -> None:
    bench = Bench().moving()
    setpoint = bench.supervisor.tick(Command(np.zeros(8), 99, bench.now), now=value)
    assert bench.supervisor.state is State.STOPPING
    assert "the robot's clock went from" in bench.supervisor.reason
    assert setpoint is not None and np.isfinite(setpoint.q).all()
    with pytest.raises(RobotError):
        bench.until_silent()
        bench.supervisor.reset(now=value)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_nothing_is_armed_or_reset_at_a_time_that_is_none(value: float) -> None:
    bench = in_state(State.READY)
    with pytest.raises(RobotError, match="arm: refused"):
        bench.supervisor.arm(now=value)
    bench = in_state(State.FAULT)
    bench.tick()
    with pytest.raises(RobotError, match="reset: refused"):
        bench.supervisor.reset(now=value)


@pytest.mark.parametrize("source", ["joints", "front"])
def test_data_from_the_future_is_no_fresh_data(source: str) -> None:
    """A driver that takes the time from another clock than the robot's."""
    bench = Bench().moving()
    bench.muted = {source}
    later = bench.now + 0.3
    if source == "joints":
        bench.supervisor.hear(Reading(later, later, bench.q, bench.dq, 0.04), {})
    else:
        bench.supervisor.hear(None, {"front": CameraImage(later, later, PIXELS)})
    bench.tick(np.append(np.full(7, 0.3), 0))
    assert bench.supervisor.state is State.STOPPING
    assert f"{source}: received at" in bench.supervisor.reason


@pytest.mark.parametrize("jump", [-0.4, 0.4])
def test_a_small_jump_of_a_sensor_s_clock_in_motion(jump: float) -> None:
    """Forward is no harm; back, the data counts as silent until the clock has caught up."""
    bench = Bench().moving()
    action = np.append(np.full(7, 0.3), 0)
    bench.muted = {"joints"}
    for _ in range(30):
        stamp = bench.now + DT + jump
        bench.supervisor.hear(Reading(stamp, bench.now + DT, bench.q, bench.dq, 0.04), {})
        bench.tick(action)
        if bench.supervisor.state is not State.ARMED:
            break
    assert (bench.supervisor.state is State.ARMED) == (jump > 0)
    assert jump > 0 or "joints: silent" in bench.supervisor.reason


def test_data_that_comes_later_and_later_trips() -> None:
    """A queue that fills up: every message arrives, each a little later after it was measured."""
    bench = Bench(clock_jump=0.5).moving()
    action = np.append(np.full(7, 0.3), 0)
    bench.muted = {"front"}
    begin = bench.now
    while bench.supervisor.state is State.ARMED:
        bench.tick(action)
        stamp = begin + 0.5 * (bench.now - begin)
        image = CameraImage(stamp, bench.now, PIXELS)
        bench.supervisor.hear(None, {"front": image})
        assert bench.now - begin < 1.2
    assert "front: its clock has fallen 0.5" in bench.supervisor.reason


def test_a_clock_that_drifts_by_its_crystal_does_not_trip() -> None:
    bench = Bench().moving()
    bench.muted = {"joints"}
    still = np.append(STILL, 0)
    for _ in range(100):
        bench.q, bench.dq = bench.supervisor.safety.q, STILL
        for _ in range(8):
            bench.now += 1.0  # hours, as far as the sensor goes
            bench.supervisor.hear(
                Reading(0.9995 * bench.now, bench.now, bench.q, bench.dq, 0.04), {}
            )
        assert not bench.supervisor._odd
        bench.tick(still)
    assert "clock" not in bench.supervisor.reason


@pytest.mark.parametrize(
    "change",
    [{"q": None}, {"q": ["a"] * 7}, {"dq": "fast"}, {"gripper": None}, {"q": [[0.0] * 7] * 2}],
)
def test_a_reading_of_other_things_than_numbers_trips(change: dict[str, Any]) -> None:
    bench = Bench().moving()
    reading = Reading(bench.now + 0.001, bench.now + 0.001, bench.q, bench.dq, 0.04)
    bench.supervisor.hear(reading._replace(**change), {})
    bench.tick(np.append(STILL, 0))
    assert bench.supervisor.state is State.STOPPING
    assert bench.supervisor.reason.startswith("joints: ")
    assert isinstance(bench.supervisor.reading, Reading)
    assert np.isfinite(bench.supervisor.reading.q).all()  # the last sound one


@pytest.mark.parametrize(
    "change", [{"q": HOME * np.nan}, {"dq": STILL + np.inf}, {"q": HOME[:5]}, {"gripper": np.nan}]
)
def test_a_reading_that_is_none_trips(change: dict[str, Any]) -> None:
    bench = Bench().moving()
    reading = Reading(bench.now + 0.001, bench.now + 0.001, bench.q, bench.dq, 0.04)
    bench.supervisor.hear(reading._replace(**change), {})
    bench.muted = {"joints"}
    setpoint = bench.tick(np.append(STILL, 0))
    assert bench.supervisor.state is State.STOPPING
    assert setpoint is not None and np.isfinite(setpoint.q).all()
    with pytest.raises(RobotError):
        bench.until_silent()
        bench.supervisor.reset(now=bench.now)


def test_a_broken_action_trips_at_once() -> None:
    bench = Bench().moving()
    bench.tick(np.full(8, np.nan))
    assert bench.supervisor.state is State.STOPPING
    faults(bench, "every number must be finite", within=0)


def test_three_late_ticks_trip_and_two_do_not() -> None:
    bench = Bench().moving()
    action = np.append(np.full(7, 0.3), 0)
    for _ in range(3):
        for dt in (0.04, 0.04, DT):
            bench.tick(action, dt=dt)
    assert bench.supervisor.state is State.ARMED
    assert bench.supervisor.health(now=bench.now).overruns == 6
    for _ in range(3):
        bench.tick(action, dt=0.04)
    assert bench.supervisor.state is State.STOPPING
    assert "the machine is too busy" in bench.supervisor.reason


def test_neither_arm_nor_reset_while_it_moves_or_nothing_is_heard() -> None:
    bench = Bench()
    bench.tick()
    bench.dq = STILL + 0.05
    bench.tick()
    with pytest.raises(RobotError, match=r"arm: refused; joint1 moves at 0\.050 rad/s"):
        bench.supervisor.arm(now=bench.now)
    bench.dq = STILL
    bench.tick()
    with pytest.raises(RobotError, match="arm: refused; joints: silent for"):
        bench.supervisor.arm(now=bench.now + 1)
    bench.supervisor.fault("emergency stop")
    bench.dq = STILL + 0.05
    bench.tick()
    with pytest.raises(RobotError, match="reset: refused; joint1 moves"):
        bench.supervisor.reset(now=bench.now)
    assert bench.supervisor.reason == "emergency stop"
    bench = Bench()
    bench.muted = {"front"}
    bench.tick()
    with pytest.raises(RobotError, match="front: no data so far"):
        bench.supervisor.arm(now=bench.now)


def test_it_arms_where_the_arm_is_not_where_it_was_sent() -> None:
    bench = Bench().moving()
    bench.supervisor.fault("protective stop")
    bench.until_silent()
    bench.q = HOME + 0.1  # somebody moved it hold_position_while
    bench.tick()
    bench.supervisor.reset(now=bench.now)
    bench.supervisor.arm(now=bench.now)
    first = bench.tick(np.append(np.full(7, 0.3), 0))
    assert first is not None
    assert np.abs(first.q - (HOME + 0.1)).max() < 0.3 * DT


def test_health_says_what_happened() -> None:
    bench = Bench().moving()
    bench.tick(np.append(np.full(7, 50.0), 0))
    health = bench.supervisor.health(now=bench.now)
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


def test_joints_are_taken_by_name() -> None:
    found = in_order(["a", "b"], ["b", "finger", "a"], [2.0, 9.0, 1.0])
    np.testing.assert_array_equal(found, [1, 2])
    with pytest.raises(RobotError, match=r"joint_states\.name: c, d missing, found b, a"):
        in_order(["a", "c", "d"], ["b", "a"], [1, 2])
    with pytest.raises(RobotError, match="found 1 values for the names a, b"):
        in_order(["a"], ["a", "b"], [1])
    with pytest.raises(RobotError, match="each joint needs one name"):
        in_order(["a"], ["a", "a"], [1, 2])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Supervisor\.joints_age"):
        Supervisor.Config(joints_age=0)
    with pytest.raises(ConfigError, match=r"Supervisor\.late: 1\.0 is not within"):
        Supervisor.Config(late=1.0)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: silent unless armed, and never a jump."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()

    @rule(ticks=st.integers(1, 15), speed=st.floats(-1, 1), broken=st.booleans())
    def ticks(self, ticks: int, speed: float, broken: bool) -> None:
        for _ in range(ticks):
            moving = self.bench.supervisor.moving
            before, speeds = self.bench.q, self.bench.dq
            action = np.full(8, np.nan if broken and ticks > 12 else speed)
            setpoint = self.bench.tick(action)
            assert moving or setpoint is None
            if setpoint is not None:
                limits = self.bench.supervisor.safety.limits
                most = limits.velocity * DT * (1 + 1e-9)
                assert (np.abs(setpoint.q - before) <= most).all()
                change = limits.acceleration * DT * (1 + 1e-9)
                assert (np.abs(setpoint.dq - speeds) <= change).all()
            elif not moving:
                assert (self.bench.dq == speeds).all()

    @rule(source=st.sampled_from(["joints", "front"]))
    def mute(self, source: str) -> None:
        self.bench.muted ^= {source}

    @rule(event=st.sampled_from(ASKED))
    def ask(self, event: Event) -> None:
        before = self.bench.supervisor.state
        try:
            cause(self.bench, event)
        except RobotError:
            assert self.bench.supervisor.state is before
        else:
            if event is Event.ARM:
                assert before is State.READY

    @precondition(lambda self: self.bench.supervisor.state is State.FAULT)
    @rule()
    def a_fault_has_a_reason(self) -> None:
        assert self.bench.supervisor.reason

    @invariant()
    def the_reference_is_finite(self) -> None:
        assert np.isfinite(self.bench.supervisor.safety.q).all()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("part", ["read", "write"])
def test_a_driver_that_fails_is_a_trip_not_an_end(part: str) -> None:
    class Broken:
        cameras = ()

        def reading(self) -> Reading | None:
            raise RobotError("no read")

        def images(self) -> dict[str, CameraImage]:
            return {}

        def write(self, setpoint: Setpoint) -> None:
            raise RobotError("no write")

    bench = Bench().moving()
    driver: Any = Broken()
    if part == "read":
        bench.supervisor.listen(driver)
    else:
        bench.supervisor.steer(driver, None, now=bench.now)
    assert bench.supervisor.state is State.STOPPING
    assert bench.supervisor.reason == f"no {part}"
    bench.until_silent()
    assert bench.supervisor.state is State.FAULT
