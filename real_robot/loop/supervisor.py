"""The state machine that decides whether an arm may move; a fault lasts until it is reset.

Pure: every time comes in as `now`, s on the robot's clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from latentplan.errors import RobotError, check_range
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.robot import CameraImage, Command, Driver, Health, Reading, Setpoint

DRIFT = 1e-3  # s that a sensor's clock may lose in a second, for ever


class State(StrEnum):
    """The state of an arm; only `armed` and `stopping` send setpoints."""

    DISCONNECTED = "disconnected"  # a sensor is silent
    READY = "ready"  # every sensor sends data, the motors get no setpoints
    ARMED = "armed"  # commands go through the filter to the motors
    STOPPING = "stopping"  # the reference slows down within its limits
    HOLD = "hold"  # stopped on request
    FAULT = "fault"  # stopped by a failed check or an emergency stop


class Event(StrEnum):
    """An event that changes the state of an arm."""

    HEARD = "heard"  # every sensor is fresh
    LOST = "lost"  # a sensor is silent
    ARM = "arm"  # a request to move
    STOP = "stop"  # a request to stop
    FAULT = "fault"  # a check failed, or the emergency stop was pressed
    REST = "rest"  # the stop is over
    RESET = "reset"  # a person has checked the arm and lets it go on
    CLOSE = "close"  # the connection is closed


_RESTING = (State.DISCONNECTED, State.READY, State.HOLD, State.FAULT)
TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.DISCONNECTED, Event.HEARD): State.READY,
    (State.READY, Event.LOST): State.DISCONNECTED,
    (State.READY, Event.ARM): State.ARMED,
    (State.READY, Event.STOP): State.HOLD,
    (State.ARMED, Event.STOP): State.STOPPING,
    (State.ARMED, Event.FAULT): State.STOPPING,
    (State.ARMED, Event.LOST): State.STOPPING,
    (State.STOPPING, Event.STOP): State.STOPPING,
    (State.STOPPING, Event.FAULT): State.STOPPING,
    (State.STOPPING, Event.LOST): State.STOPPING,
    (State.STOPPING, Event.REST): State.HOLD,  # FAULT if a fault caused the stop
    (State.HOLD, Event.STOP): State.HOLD,
    (State.HOLD, Event.RESET): State.READY,
    (State.FAULT, Event.STOP): State.FAULT,
    (State.FAULT, Event.RESET): State.READY,
    **{(state, Event.FAULT): State.FAULT for state in _RESTING},
    **{(state, Event.CLOSE): State.DISCONNECTED for state in _RESTING},
    (State.FAULT, Event.CLOSE): State.FAULT,  # until it is reset
}


class _Stamps(NamedTuple):
    """The last time stamp of a source."""

    stamp: float  # s on its clock
    received: float  # s on the robot's clock
    lead: float  # s of its clock against the robot's, when its data came soonest


class Supervisor:
    """The decision at every tick whether a setpoint is sent, and which.

    `hear` takes sensor data; `tick` then checks that each sensor is fresh, that ticks come in
    time and that the command holds, and returns a setpoint, or None to send nothing. The first
    fault is kept, with its reason, until `reset`; a stop never ends by itself in motion. After a
    stop the reference is dropped: `arm` begins at the measured joints, never at the last setpoint.
    """

    @dataclass(frozen=True)
    class Config:
        """The limits on the age and the clock of a sensor, and on late ticks."""

        joints_age: float = 0.09  # s, nine readings at 100 Hz
        image_age: float = 0.2  # s, of each camera; 0.2 is six images at 30 fps
        clock_jump: float = 0.5  # s that a sensor's clock may gain or lose between two readings
        resting: float = 0.02  # rad/s, of any joint; to arm and to reset
        overruns: int = 3  # late ticks in a row that are a fault
        late: float = 1.5  # ticks, a longer one is late
        last_points: int = 3  # setpoints at rest after a stop, before silence

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("Supervisor.joints_age", self.joints_age, 1e-3, 10)
            check_range("Supervisor.image_age", self.image_age, 1e-3, 10)
            check_range("Supervisor.clock_jump", self.clock_jump, 1e-2, 60)
            check_range("Supervisor.resting", self.resting, 1e-4, 1)
            check_range("Supervisor.overruns", self.overruns, 1, 100)
            check_range("Supervisor.late", self.late, 1.1, 100)
            check_range("Supervisor.last_points", self.last_points, 1, 100)

    def __init__(
        self,
        safety: SafetyFilter,
        config: Config | None = None,
        *,
        cameras: Sequence[str] = (),
    ) -> None:
        """Take the filter, and the names of the cameras that motion requires."""
        self.safety = safety
        self.config = config or self.Config()
        self.state = State.DISCONNECTED
        self.reason = ""  # the reason of the stop or the fault
        self.reading: Reading | None = None  # the newest
        self.ticks = self.overruns = 0
        self._cameras = dict.fromkeys(cameras, -np.inf)  # s, arrival of the last image of each
        self._stamps: dict[str, _Stamps] = {}  # by source
        self._faulted = False  # a stop that ends in FAULT
        self._odd = ""  # the first fault in the sensors' data
        self._last_tick: float | None = None
        self._late = 0  # ticks in a row
        self._rests = 0  # setpoints at rest so far

    def hear(self, reading: Reading | None, images: Mapping[str, CameraImage]) -> None:
        """Take the newest data of each sensor; data that is not newer is ignored.

        Unsound data is a fault of the next tick, and is never kept.
        """
        if reading is not None and self._is_news("joints", reading):
            wrong = self._judge(reading)
            self._odd = self._odd or wrong
            if not wrong:
                self.reading = reading
        for name, image in images.items():
            if name in self._cameras and self._is_news(name, image):
                self._cameras[name] = image.received

    def listen(self, driver: Driver) -> None:
        """Read a driver's sensors; a failure to read, or unsound data, is a fault."""
        try:
            self.hear(driver.reading(), driver.images())
        except RobotError as e:
            self.fault(str(e))

    def steer(self, driver: Driver, command: Command | None, *, now: float) -> None:
        """Tick, and write the setpoint to a driver; a failure to write is a fault."""
        setpoint = self.tick(command, now=now)
        if setpoint is not None:
            try:
                driver.write(setpoint)
            except RobotError as e:
                self.fault(str(e))

    def tick(self, command: Command | None, *, now: float) -> Setpoint | None:
        """Return the setpoint of this tick; None to send nothing."""
        self.ticks += 1
        late, silent = self._overrun(now), self._silent(now)
        self._odd = self._odd or self._ahead(now)
        if self.state in (State.DISCONNECTED, State.READY):
            self._follow_sensors(silent)
            return None
        if self.state is State.ARMED:
            wrong = late or self._odd
            if wrong:
                self.fault(wrong)
            elif silent:
                self._lose(silent)
            else:
                assert self.reading is not None
                setpoint = self.safety.step(command, measured=self.reading.q, now=now)
                if setpoint.fault:
                    self.fault(setpoint.fault)
                return setpoint
        if self.state is State.STOPPING:
            return self._slow_down()
        return None

    def arm(self, *, now: float) -> None:
        """Let commands through, starting at the measured joints.

        Raises RobotError, and changes nothing, if a sensor is silent, the arm moves or stands
        outside of its limits, or the state is not `ready`.
        """
        if self.state is State.DISCONNECTED:
            raise RobotError(f"arm: {self._silent(now) or 'no tick so far'}; nothing moves")
        self._allowed(Event.ARM)
        reading = self._steady(Event.ARM, now)
        self.safety.reset(reading.q, gripper=reading.gripper, now=now)
        self._late = self._rests = 0
        self._go(Event.ARM)

    def reset(self, *, now: float) -> None:
        """Clear the reason of the stop; it may be armed again. Raises RobotError as `arm` does."""
        self._allowed(Event.RESET)
        self._steady(Event.RESET, now)
        self.reason, self._odd, self._faulted = "", "", False
        self._go(Event.RESET)

    def stop(self, reason: str) -> None:
        """Slow down from the next tick on, on request; an arm at rest stays so."""
        if (self.state, Event.STOP) in TRANSITIONS:
            self.reason = self.reason or reason
            self._go(Event.STOP)

    def fault(self, reason: str) -> None:
        """Slow down from the next tick on, because something is wrong; from any state."""
        if not self._faulted:
            self.reason, self._faulted = reason, True
        self._go(Event.FAULT)

    def close(self) -> None:
        """Close the connection; the arm must be at rest. Raises RobotError."""
        self._go(Event.CLOSE)
        if not self._faulted:
            self.reason = ""
        self._cameras = dict.fromkeys(self._cameras, -np.inf)
        self._stamps, self.reading, self._last_tick, self._odd = {}, None, None, ""

    @property
    def moving(self) -> bool:
        """Return whether setpoints are sent: in the states armed and stopping."""
        return self.state in (State.ARMED, State.STOPPING)

    def health(self, *, now: float) -> Health:
        """Return the health of the arm."""
        ages = {name: float(now - at) for name, at in self._arrivals().items()}
        counts = dict(self.safety.interventions)
        return Health(str(self.state), self.reason, ages, counts, self.ticks, self.overruns)

    def _go(self, event: Event) -> None:
        after = self._allowed(event)
        if event is Event.REST and self._faulted:
            after = State.FAULT
        self.state = after

    def _allowed(self, event: Event) -> State:
        """Return the state after `event`; RobotError if the state allows no such event."""
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            states = ", ".join(state for state, known in TRANSITIONS if known is event)
            why = f" ({self.reason})" if self.reason else ""
            raise RobotError(f"{event}: the arm is {self.state}{why}, allowed from: {states}")
        return after

    def _follow_sensors(self, silent: str) -> None:
        if self._odd:
            self.fault(self._odd)
        elif self.state is State.READY and silent:
            self._go(Event.LOST)
        elif self.state is State.DISCONNECTED and not silent:
            self._go(Event.HEARD)

    def _lose(self, silent: str) -> None:
        self.reason, self._faulted = silent, True
        self._go(Event.LOST)

    def _slow_down(self) -> Setpoint | None:
        setpoint = self.safety.brake()
        if self.safety.at_rest:
            self._rests += 1
            if self._rests >= self.config.last_points:
                self._go(Event.REST)
        return setpoint

    def _judge(self, reading: Reading) -> str:
        """Return the fault of a reading's numbers; empty if there is none."""
        joints = (len(self.safety.arm.joints),)
        try:
            shapes = np.shape(reading.q), np.shape(reading.dq)
            if shapes != (joints, joints):
                return f"joints: found shapes {shapes[0]} and {shapes[1]}, need (J={joints[0]},)"
            finite = bool(np.isfinite([*reading.q, *reading.dq, reading.gripper]).all())
        except (TypeError, ValueError):  # no numbers at all
            finite = False
        if not finite:
            return f"joints: measured {list(reading.q)}, {list(reading.dq)}, not all finite"
        return ""

    def _is_news(self, source: str, heard: Reading | CameraImage) -> bool:
        """Return whether data is newer than its source's last; a jump of the clock is a fault."""
        stamp, received = heard.stamp, heard.received
        if not np.isfinite([stamp, received]).all():
            self._odd = self._odd or (
                f"{source}: its time stamp is {stamp}, received at {received}; both must be finite"
            )
            return False
        before, allowed = self._stamps.get(source), self.config.clock_jump
        if before is None:
            self._stamps[source] = _Stamps(stamp, received, stamp - received)
            return True
        gone, arrived = stamp - before.stamp, received - before.received
        if arrived <= 0 and gone == 0:
            return False  # the same again
        lead = max(before.lead - DRIFT * max(arrived, 0.0), stamp - received)
        behind = lead - (stamp - received)
        wrong = ""
        if abs(gone - arrived) > allowed:
            wrong = f"went {gone:.2f} s while {arrived:.2f} s passed"
        elif gone <= 0:
            return False  # out of order, or frozen: it counts as silent
        elif behind > allowed:
            wrong = f"has fallen {behind:.2f} s behind; its data comes late"
        if wrong:
            lead = stamp - received
            self._odd = self._odd or (
                f"{source}: its clock {wrong}, {allowed} s apart is allowed; set the clocks alike"
            )
        self._stamps[source] = _Stamps(stamp, received, lead)
        return True

    def _arrivals(self) -> dict[str, float]:
        """Return the arrival of each source's newest data, s; -inf before the first."""
        joints = -np.inf if self.reading is None else self.reading.received
        return {"joints": joints} | self._cameras

    def _ahead(self, now: float) -> str:
        """Return which source delivers data from the future; empty if none does."""
        for name, at in self._arrivals().items():
            if at > now:
                return (
                    f"{name}: received at {at:.3f} s, but the robot's clock is at {now:.3f} s; its "
                    "driver must use that clock"
                )
        return ""

    def _silent(self, now: float) -> str:
        """Return which source is silent; empty if none is."""
        for name, at in self._arrivals().items():
            allowed = self.config.image_age if name in self._cameras else self.config.joints_age
            age = now - at
            if not age <= allowed:
                found = "no data so far" if np.isinf(age) else f"silent for {age:.3f} s"
                return f"{name}: {found}, {allowed} s is allowed; check that its driver runs"
        return ""

    def _overrun(self, now: float) -> str:
        """Return the fault of the tick times; empty if there is none."""
        before, self._last_tick = self._last_tick, now
        if not np.isfinite(now) or (before is not None and now < before):
            self._last_tick = None
            return f"tick: the robot's clock went from {before} s to {now} s; it must go forward"
        dt = self.safety.config.dt
        late = before is not None and now - before > self.config.late * dt
        self.overruns += late
        self._late = self._late + 1 if late else 0
        if self._late < self.config.overruns:
            return ""
        return (
            f"tick: {self._late} in a row came later than {self.config.late * dt:.3f} s after the "
            "one before; the machine is too busy"
        )

    def _steady(self, event: Event, now: float) -> Reading:
        """Return the newest reading of an arm that rests; RobotError if there is none."""
        wrong = self._silent(now) or self._ahead(now)
        if wrong or self.reading is None:
            raise RobotError(f"{event}: refused; {wrong}")
        speeds = np.abs(self.reading.dq)
        if not speeds.max() <= self.config.resting:
            name = self.safety.arm.joints[int(speeds.argmax())].name
            raise RobotError(
                f"{event}: refused; {name} moves at {speeds.max():.3f} rad/s, "
                f"{self.config.resting} is allowed; wait until the arm rests"
            )
        return self.reading


def transition_table() -> str:
    """Return the state machine as a table in Markdown: a row a state, a column an event."""
    events = list(Event)
    lines = [
        "| | " + " | ".join(events) + " |",
        "|---" * (len(events) + 1) + "|",
    ]
    for state in State:
        cells = [TRANSITIONS.get((state, event), "") for event in events]
        if state is State.STOPPING:
            cells[events.index(Event.REST)] = f"{State.HOLD} or {State.FAULT}"
        lines.append(f"| **{state}** | " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)
