"""A node for one arm: `python node.py BACKEND CAMERAS PORT FILE [SECTION.KEY=VALUE ...]`.

CAMERAS are names with commas, of pictures of 64x64 pixels. It prints `ready` when it listens, and
`left` when it ended well. For the backend `sim` it also stands in for the stations of an arm and
its camera: it obeys their words on stdin, and writes what goes to the motors into FILE.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from real.words import Faults

from latentplan import config, registry
from latentplan.errors import LatentplanError
from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.node import Node
from latentplan.real_robot.robot import Picture, Reading, Setpoint, in_order
from latentplan.real_robot.safety import SafetyFilter
from latentplan.real_robot.stand_in import JointStates
from latentplan.real_robot.supervisor import Supervisor
from latentplan.robots import description
from latentplan.sim.cameras import Camera


class FaultySimulation(SimulatedDriver):
    """A simulated arm whose sensors fail as they are told to."""

    def open(self) -> None:
        super().open()
        self.faults = Faults()
        self.last: tuple[Reading | None, Mapping[str, Picture]] = super().reading(), {}
        self.file = Path(sys.argv[4]).open("w")

    def reading(self) -> Reading | None:
        reading = super().reading()
        if reading is None or self.faults.word == "silent":
            return self.last[0]
        names = tuple(joint.name for joint in self.arm.joints)
        if reading is not self.last[0]:
            self.write_down("joints", reading.q.tolist(), reading.dq.tolist())
        told = self.faults(JointStates(reading.stamp, names, tuple(reading.q), tuple(reading.dq)))
        self.last = reading, self.last[1]
        if told is None:
            return self.last[0]
        q, dq = in_order(names, told.names, told.q), in_order(names, told.names, told.dq)
        return Reading(told.stamp, reading.received, q, dq, reading.gripper)

    def pictures(self) -> Mapping[str, Picture]:
        if self.faults.word != "blind":
            self.last = self.last[0], dict(super().pictures())
        return self.last[1]

    def write(self, setpoint: Setpoint) -> None:
        self.write_down("command", setpoint.q.tolist())
        super().write(setpoint)

    def write_down(self, topic: str, q: list[float], dq: list[float] | None = None) -> None:
        row = {"t": time.monotonic(), "topic": topic, "q": q, "dq": dq}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()


def main() -> None:
    backend, cameras, port = sys.argv[1:4]
    overrides = sys.argv[5:]
    driver_class = FaultySimulation if backend == "sim" else registry.get("backend", backend)
    sections = {
        "backend": driver_class.Config,
        "safety": SafetyFilter.Config,
        "supervisor": Supervisor.Config,
    }
    settings = config.load(sections, overrides=overrides)
    arm = description.load("panda")
    views = [Camera(name, (1.1, 0.0, 0.7)) for name in cameras.split(",") if name]
    driver = driver_class(arm, settings["backend"], cameras=views)
    supervisor = Supervisor(
        SafetyFilter(arm, settings["safety"]), settings["supervisor"], cameras=driver.cameras
    )
    node = Node(driver, supervisor, address=("127.0.0.1", int(port)))
    print("ready", flush=True)
    node.run()
    print("left", flush=True)


if __name__ == "__main__":
    try:
        main()
    except LatentplanError as e:
        print(e, file=sys.stderr, flush=True)
        sys.exit(2)
