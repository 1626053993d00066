"""Writes down what goes over an arm's topics: `python tests/real/ros1_recorder.py FILE`.

A line of JSON a message: `t` is when it came, s on the machine's monotonic clock.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from threading import Lock
from typing import Any

import rospy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from latentplan.real_robot.backends.topics import MODES
from latentplan.robots.description import load

NAMES = [joint.name for joint in load("panda").joints]


def ordered(names: list[str], values: list[float]) -> list[float]:
    """Return the values of the arm's joints in its order."""
    found = dict(zip(names, values, strict=True))
    return [found[name] for name in NAMES]


def main() -> None:
    lock = Lock()
    with Path(sys.argv[1]).open("w") as file:

        def write(topic: str, q: Any, dq: Any = ()) -> None:
            row = {"t": time.monotonic(), "topic": topic, "q": list(q), "dq": list(dq)}
            with lock:
                file.write(json.dumps(row) + "\n")
                file.flush()

        def hear(message: JointState) -> None:
            names = message.name
            if set(NAMES) <= set(names):  # what an arm leaves out is not heard
                write("joints", ordered(names, message.position), ordered(names, message.velocity))

        rospy.init_node("recorder", disable_signals=True)
        rospy.Subscriber(
            MODES["trajectory"],
            JointTrajectory,
            lambda m: write("command", m.points[0].positions, m.points[0].velocities),
            tcp_nodelay=True,
        )
        rospy.Subscriber(
            MODES["positions"],
            Float64MultiArray,
            lambda m: write("command", m.data),
            tcp_nodelay=True,
        )
        rospy.Subscriber("joint_states", JointState, hear, tcp_nodelay=True)
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
