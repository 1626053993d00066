"""A simulated arm as a ROS 2 node, for dry runs.

`python -m latentplan.real_robot.ros2.simulated_arm`: it publishes sensor_msgs/JointState on
`joint_states` and follows trajectories and positions on the topics where ros2_control's
controllers usually listen.
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable
from typing import Any

from latentplan.errors import RobotError
from latentplan.real_robot.backends.ros2 import graph
from latentplan.real_robot.backends.simulated_controller import JointStates, SimulatedController
from latentplan.real_robot.backends.topics import MODES
from latentplan.robots import description


def serve(
    name: str,
    *,
    alter: Callable[[JointStates], JointStates | None] = lambda states: states,
    namespace: str = "",
) -> None:
    """Run the arm of that name until SIGTERM or SIGINT; `alter` changes or drops its messages."""
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Float64MultiArray
    from trajectory_msgs.msg import JointTrajectory

    arm = SimulatedController(description.load(name))
    leave = threading.Event()
    for wanted in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wanted, lambda *_: leave.set())
    with graph("simulated_arm", namespace) as node:

        def go(message: Any) -> None:
            point = message.points[-1]
            due = point.time_from_start.sec + 1e-9 * point.time_from_start.nanosec
            attempt(message.joint_names, point.positions, point.velocities, due)

        def attempt(names: Any, positions: Any, velocities: Any = (), due: float = 0.0) -> None:
            try:
                arm.follow(names, positions, velocities, due=due)
            except RobotError as e:
                node.get_logger().error(str(e))

        node.create_subscription(JointTrajectory, MODES["trajectory"], go, 1)
        node.create_subscription(
            Float64MultiArray, MODES["positions"], lambda m: attempt(arm.names, m.data), 1
        )
        node.create_subscription(
            Float64MultiArray, "gripper_controller/commands", lambda m: arm.grip(m.data[0]), 1
        )
        publisher = node.create_publisher(JointState, "joint_states", 10)

        def publish(states: JointStates) -> None:
            altered = alter(states)
            if altered is None:
                return
            message = JointState(
                name=list(altered.names), position=list(altered.q), velocity=list(altered.dq)
            )
            stamp(message, altered.stamp)
            publisher.publish(message)

        print("ready", flush=True)
        arm.run(publish, leave)


def stamp(message: Any, seconds: float) -> None:
    """Write a time, s since 1970, into a message's header."""
    whole = int(seconds)
    message.header.stamp.sec, message.header.stamp.nanosec = whole, int((seconds - whole) * 1e9)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--robot", default="panda", help="a name, or a file that describes an arm")
    parser.add_argument("--namespace", default="", help="of its topics")
    given = parser.parse_args()
    serve(given.robot, namespace=given.namespace)


if __name__ == "__main__":
    main()
