"""Writes down what goes over an arm's topics: `python tests/real/ros2_recorder.py FILE`.

A line of JSON a message: `t` is when it came, s on the machine's monotonic clock.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from threading import Lock
from typing import Any

from latentplan.real_robot.backends.ros2 import graph
from latentplan.real_robot.backends.topics import MODES


def main() -> None:
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Float64MultiArray
    from trajectory_msgs.msg import JointTrajectory

    lock = Lock()
    with Path(sys.argv[1]).open("w") as file, graph("recorder") as node:

        def write(topic: str, q: Any, dq: Any = ()) -> None:
            row = {"t": time.monotonic(), "topic": topic, "q": list(q), "dq": list(dq)}
            with lock:
                file.write(json.dumps(row) + "\n")
                file.flush()

        node.create_subscription(
            JointTrajectory,
            MODES["trajectory"],
            lambda m: write("command", m.points[0].positions, m.points[0].velocities),
            100,
        )
        node.create_subscription(
            Float64MultiArray, MODES["positions"], lambda m: write("command", m.data), 100
        )
        node.create_subscription(
            JointState, "joint_states", lambda m: write("joints", m.position, m.velocity), 100
        )
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
