"""An arm whose control loop runs in the caller's process: for simulation, tests and replay."""

from __future__ import annotations

import math
import threading
from types import TracebackType
from typing import Self

import numpy as np

from latentplan.errors import ConfigError, RobotError, check_range
from latentplan.real_robot.loop.guard import stopping_first
from latentplan.real_robot.loop.realtime import next_tick
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import State, Supervisor
from latentplan.real_robot.robot import Command, Driver, Health, RobotSpec
from latentplan.types import ActionSpec, Array, ArraySpec, Convention, Observation, Spec

MEANINGS = {
    "joint_velocity": "joint velocities, rad/s",
    "joint_position": "joint positions, rad",
    "joint_delta": "joint positions from here, rad",
}


class LocalRobot:
    """A `Robot` that runs its control loop inside `send`; nothing moves between two calls.

    A slow planner therefore stops a real arm, because the ticks come too late: `Node` runs the
    loop of such an arm in a process of its own. A simulated clock waits for the planner.

    Threads may share it: calls wait for each other, except that `stop` ends a `send` at its next
    tick, and `health` answers at once. Whatever is raised, the arm is stopped first.
    """

    def __init__(
        self, driver: Driver, supervisor: Supervisor, *, period: float = 0.1, patience: float = 5.0
    ) -> None:
        """Take the driver and the supervisor; an action holds for `period` s.

        `__enter__` waits at most `patience` s for the sensors.
        """
        check_range("LocalRobot.patience", patience, 0, 3600)
        check_range("LocalRobot.period", period, 1e-3, 10)
        self._dt = supervisor.safety.config.dt
        self._ticks = round(period / self._dt)
        if self._ticks < 1 or abs(self._ticks * self._dt - period) > 1e-9:
            raise ConfigError(f"LocalRobot.period: {period} s is not a multiple of {self._dt} s")
        self.driver, self.supervisor = driver, supervisor
        self.period, self.patience = period, patience
        self._sequence, self._due = 0, 0.0
        self._spec: RobotSpec | None = None
        self._lock = threading.RLock()
        self._stop = ""  # the reason of another thread's stop, which waits for the lock

    @property
    def spec(self) -> RobotSpec:
        """Return names, units, limits and rates; RobotError before it is connected."""
        if self._spec is None:
            raise RobotError("robot: not connected; use it in a with block")
        return self._spec

    def __enter__(self) -> Self:
        """Connect, wait for data of every sensor, and arm at the measured joints."""
        self.driver.open()
        try:
            self._due = self.driver.now()
            self._stop = ""
            for _ in range(math.ceil(self.patience / self._dt) + 1):
                self._tick(None)
                if self.supervisor.state is not State.DISCONNECTED:
                    break
            self.supervisor.arm(now=self.driver.now())
        except BaseException:
            self.driver.close()
            raise
        images = {name: p.pixels.shape for name, p in self.driver.images().items()}
        self._spec = describe(self.supervisor.safety, images=images, period=self.period)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the arm, wait until it rests, and disconnect."""
        try:
            self.stop("the robot was left")
            self.supervisor.close()
        finally:
            self.driver.close()

    def observe(self) -> Observation:
        """Return the newest sensor data."""
        with self._lock, stopping_first(self.driver, self.supervisor):
            self.supervisor.listen(self.driver)
            reading = self.supervisor.reading
            if reading is None:
                raise RobotError("observe: no sensor data came; use the robot in a with block")
            seen = {"q": reading.q, "dq": reading.dq, "gripper": [reading.gripper]}
            observation = {name: np.asarray(value, np.float32) for name, value in seen.items()}
            images = self.driver.images()
            return observation | {name: images[name].pixels for name in self.driver.cameras}

    def send(self, action: Array) -> Array:
        """Send `action` (A,) for `period` s; return the action that was sent."""
        with self._lock, stopping_first(self.driver, self.supervisor):
            self._refuse_unless_armed()
            safety = self.supervisor.safety
            before = safety.q
            self._sequence += 1
            command = Command(action, self._sequence, self.driver.now())
            for _ in range(self._ticks):
                self._tick(command)
                if self.supervisor.state is not State.ARMED:
                    self._come_to_rest()
                    self._refuse_unless_armed()
            return safety.sent(before, period=self.period).astype(np.float32)

    def stop(self, reason: str) -> None:
        """Bring the arm to rest; call `reset` before the next `send`."""
        self._stop = reason or "stop"  # ends a `send` of another thread
        with self._lock, stopping_first(self.driver, self.supervisor):
            self._stop = ""
            self.supervisor.stop(reason)
            self._come_to_rest()

    def reset(self) -> None:
        """Clear the reason of the stop and arm at the measured joints; RobotError if refused."""
        with self._lock, stopping_first(self.driver, self.supervisor):
            self._due = self.driver.now()
            self._tick(None)
            self.supervisor.reset(now=self.driver.now())
            self.supervisor.arm(now=self.driver.now())

    def health(self) -> Health:
        """Return the health of the arm."""
        return self.supervisor.health(now=self.driver.now())

    def _tick(self, command: Command | None) -> None:
        """Do one control tick and wait for the next."""
        if self._stop:
            self.supervisor.stop(self._stop)
        self.supervisor.listen(self.driver)
        now = self.driver.now()
        self.supervisor.steer(self.driver, command, now=now)
        self._due = next_tick(self._due, now=now, dt=self._dt)
        self.driver.wait(self._due)

    def _come_to_rest(self) -> None:
        while self.supervisor.state is State.STOPPING:
            self._tick(None)

    def _refuse_unless_armed(self) -> None:
        supervisor = self.supervisor
        if supervisor.state is not State.ARMED:
            why = supervisor.reason or "it was never armed"
            raise RobotError(f"robot {supervisor.safety.arm.name}: {supervisor.state}; {why}")


def describe(
    safety: SafetyFilter, *, images: dict[str, tuple[int, ...]], period: float
) -> RobotSpec:
    """Return the RobotSpec of the arm of `safety`, with `images` as shapes (h, w, 3) by name."""
    arm, limits, control = safety.arm, safety.limits, safety.config.control
    joints, velocity = len(arm.joints), limits.velocity
    low, high = {
        "joint_velocity": (-velocity, velocity),
        "joint_position": (safety.low, safety.high),
        "joint_delta": (-velocity * period, velocity * period),
    }[control]
    observation = {
        "q": ArraySpec((joints,), "float32", "joint positions, rad"),
        "dq": ArraySpec((joints,), "float32", "joint velocities, rad/s"),
        "gripper": ArraySpec((1,), "float32", "width between the fingers, m"),
    } | {name: ArraySpec(shape, "uint8", "image") for name, shape in images.items()}
    meaning = f"{MEANINGS[control]}; gripper, 0 closed to 1 open"
    convention = Convention(control, gripper="open_is_1")
    action = ActionSpec((*low.tolist(), 0.0), (*high.tolist(), 1.0), meaning, convention)
    return RobotSpec(
        name=arm.name,
        joints=tuple(joint.name for joint in arm.joints),
        low=tuple(safety.low.tolist()),
        high=tuple(safety.high.tolist()),
        velocity=tuple(velocity.tolist()),
        acceleration=tuple(limits.acceleration.tolist()),
        jerk=tuple(limits.jerk.tolist()),
        dt=safety.config.dt,
        period=period,
        data=Spec(observation, action, dt=period),
    )
