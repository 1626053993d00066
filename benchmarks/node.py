"""How even the ticks of a node are, alone and beside a planner that keeps torch busy.

    python benchmarks/node.py [SECONDS] [--json benchmarks/node.json]

The node drives a simulated Panda in real time at 50 Hz in a process of its own. The planner, in
another, multiplies matrices between observations and answers at 10 Hz. Also: how long after a
planner falls silent, or is killed, the arm is told to stop, and rests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.link.remote import RemoteRobot
from latentplan.real_robot.loop.node import Node
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.real_robot.robot import Setpoint
from latentplan.robots.description import load

ACTION = np.array([0.3, 0, 0, 0, 0, 0, 0, 0.5])


class Recorder(SimulatedDriver):
    """Remembers what it was told, and when."""

    def open(self) -> None:
        """Start over."""
        super().open()
        self.told: list[tuple[float, float]] = []  # s, and the fastest joint, rad/s

    def write(self, setpoint: Setpoint) -> None:
        """Write the setpoint down, too."""
        self.told.append((self.now(), float(np.abs(setpoint.dq).max())))
        super().write(setpoint)


def serve() -> None:
    """Be the node; print its port, and at the end what it saw."""
    arm = load("panda")
    driver = Recorder(arm, SimulatedDriver.Config(real_time=True))
    # Late ticks are what is measured here; they shall not end the measurement.
    supervisor = Supervisor(SafetyFilter(arm), Supervisor.Config(overruns=100))
    node = Node(driver, supervisor)
    print(node.address[1], flush=True)
    node.run()
    late = np.abs(np.array(node.intervals)[50:] - node.dt) * 1e3
    jitter = dict(zip(("p50", "p99"), np.percentile(late, [50, 99]).round(3), strict=True))
    report = {"ticks": len(late), "jitter_ms": jitter | {"max": round(float(late.max()), 3)}}
    report |= {"overruns": supervisor.overruns, "reason": supervisor.reason}
    print(json.dumps(report | {"told": driver.told}), flush=True)


def plan(port: int, seconds: float, *, busy: bool, silent: float) -> None:
    """Be the planner; it falls silent `silent` s before it ends."""
    import torch

    matrix = torch.randn(600, 600)
    with RemoteRobot(("127.0.0.1", port), patience=20) as robot:
        end = time.monotonic() + seconds
        while time.monotonic() < end - silent:
            robot.observe()
            thought = time.monotonic() + 0.07
            while busy and time.monotonic() < thought:
                matrix = torch.tanh(matrix @ matrix / 25)
            turn = 1 if int(end - time.monotonic()) % 4 < 2 else -1
            robot.send(np.append(turn * ACTION[:-1], 0.5))
        print("silent", flush=True)
        time.sleep(silent)


def measure(seconds: float, *, busy: bool, end: str) -> dict[str, Any]:
    """Run both; return what the node saw. `end` is how the planner goes: leaves, hangs, dies."""
    here = [sys.executable, __file__]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
    node = subprocess.Popen([*here, "--serve"], **pipes)
    assert node.stdout is not None
    port = node.stdout.readline().strip()
    silent = "0" if end == "leaves" else "2"
    given = ["--plan", port, str(seconds), str(int(busy)), silent]
    planner = subprocess.Popen([*here, *given], stderr=subprocess.DEVNULL, **pipes)
    assert planner.stdout is not None
    planner.stdout.readline()
    if end == "dies":
        planner.kill()
    planner.wait()
    time.sleep(0.5)
    node.terminate()
    out, _ = node.communicate(timeout=30)
    report = dict(json.loads(out))
    told = np.array(report.pop("told"))
    slowing = np.flatnonzero(told[:, 1] > 1e-3)[-1] + 1  # the first setpoint at rest
    peak = np.flatnonzero(told[: slowing + 1, 1] > 0.9 * told[:slowing, 1].max())[-1]
    report["stop_took_s"] = round(float(told[slowing, 0] - told[peak, 0]), 3)
    return report | {"planner": "busy" if busy else "idle", "planner_ends": end}


def main() -> None:
    """Measure each case; write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--plan", nargs=4)
    given = parser.parse_args()
    if given.serve:
        return serve()
    if given.plan:
        port, seconds, busy, silent = given.plan
        return plan(int(port), float(seconds), busy=bool(int(busy)), silent=float(silent))
    cases = [(False, "leaves"), (True, "leaves"), (True, "hangs"), (True, "dies")]
    rows = []
    for busy, end in cases:
        load_average = os.getloadavg()[0]
        rows.append(measure(given.seconds, busy=busy, end=end) | {"load_average": load_average})
        print(json.dumps(rows[-1]), flush=True)
    if given.json is not None:
        with replacing(given.json) as partial:
            partial.write_text(json.dumps({"rows": rows} | provenance(), indent=1) + "\n")


if __name__ == "__main__":
    main()
