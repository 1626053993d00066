"""A simulated arm as a ROS 1 node, for dry runs.

`python -m latentplan.real_robot.ros1.simulated_arm`: it publishes sensor_msgs/JointState on
`joint_states` and follows trajectories and positions on the topics where ros_control's controllers
usually listen.
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable
from typing import Any

from latentplan.errors import RobotError
from latentplan.real_robot.backends.simulated_controller import JointStates, SimulatedController
from latentplan.real_robot.backends.topics import MODES
from latentplan.robots import description


def serve(
    name: str, *, alter: Callable[[JointStates], JointStates | None] = lambda states: states
) -> None:
    """Run the arm of that name until SIGTERM or SIGINT; `alter` changes or drops its messages."""
    import rospy
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Float64MultiArray
    from trajectory_msgs.msg import JointTrajectory

    arm = SimulatedController(description.load(name))
    leave = leaving()
    rospy.init_node("simulated_arm", disable_signals=True)

    def go(message: Any) -> None:
        point = message.points[-1]
        due = point.time_from_start.to_sec()
        attempt(message.joint_names, point.positions, point.velocities, due)

    def attempt(names: Any, positions: Any, velocities: Any = (), due: float = 0.0) -> None:
        try:
            arm.follow(names, positions, velocities, due=due)
        except RobotError as e:
            rospy.logerr(str(e))

    hear = {"queue_size": 1, "tcp_nodelay": True}
    publisher = rospy.Publisher("joint_states", JointState, queue_size=2, tcp_nodelay=True)

    def publish(states: JointStates) -> None:
        altered = alter(states)
        if altered is None:
            return
        message = JointState(name=altered.names, position=altered.q, velocity=altered.dq)
        message.header.stamp = rospy.Time.from_sec(altered.stamp)
        publisher.publish(message)

    rospy.Subscriber(MODES["trajectory"], JointTrajectory, go, **hear)
    rospy.Subscriber(
        MODES["positions"], Float64MultiArray, lambda m: attempt(arm.names, m.data), **hear
    )
    rospy.Subscriber(
        "gripper_controller/commands", Float64MultiArray, lambda m: arm.grip(m.data[0]), **hear
    )
    print("ready", flush=True)
    arm.run(publish, leave)
    rospy.signal_shutdown("SIGTERM or SIGINT")


def leaving() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    leave = threading.Event()
    for wanted in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wanted, lambda *_: leave.set())
    return leave


def main() -> None:
    """Read the command line; remappings (`from:=to`, `__name:=x`) are rospy's."""
    import rospy

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--robot", default="panda", help="a name, or a file that describes an arm")
    given = parser.parse_args(rospy.myargv()[1:])
    serve(given.robot)


if __name__ == "__main__":
    main()
