"""A simulated arm whose sensors have the fault that is written to stdin, and its record."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from real.sensor_faults import SensorFaults

from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.backends.simulated_controller import JointStates
from latentplan.real_robot.robot import CameraImage, Reading, Setpoint, in_order


class FaultySimulation(SimulatedDriver):
    """A simulated arm whose sensors fail; it records its joints and the commands."""

    def open(self) -> None:
        super().open()
        self.faults = SensorFaults()
        self.last: tuple[Reading | None, Mapping[str, CameraImage]] = super().reading(), {}
        self.file = Path(sys.argv[4]).open("w")

    def reading(self) -> Reading | None:
        reading = super().reading()
        if reading is None or self.faults.fault == "silent":
            return self.last[0]
        names = tuple(joint.name for joint in self.arm.joints)
        if reading is not self.last[0]:
            self.write_down("joints", reading.q.tolist(), reading.dq.tolist())
        states = JointStates(reading.stamp, names, tuple(reading.q), tuple(reading.dq))
        altered = self.faults(states)
        self.last = reading, self.last[1]
        if altered is None:
            return self.last[0]
        q, dq = (in_order(names, altered.names, values) for values in (altered.q, altered.dq))
        return Reading(altered.stamp, reading.received, q, dq, reading.gripper)

    def images(self) -> Mapping[str, CameraImage]:
        if self.faults.fault != "blind":
            self.last = self.last[0], dict(super().images())
        return self.last[1]

    def write(self, setpoint: Setpoint) -> None:
        self.write_down("command", setpoint.q.tolist())
        super().write(setpoint)

    def write_down(self, topic: str, q: list[float], dq: list[float] | None = None) -> None:
        row = {"t": time.monotonic(), "topic": topic, "q": q, "dq": dq}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
