"""The control loop of an arm as a ROS 2 lifecycle node, with parameters, services and topics.

`ros2 run latentplan_ros mpc_node`, or the launch file of the package; a planner connects to the
parameter `address` from this machine or another.

- Parameters: `robot`, `address`, `period`, `autostart`, and those of the sections `backend`,
  `safety` and `supervisor`, named `safety.velocity` and so on. One that is unknown or out of its
  range is refused, and so is any change while the node is active.
- Configure checks them, activate connects to the arm, deactivate stops it and disconnects.
- Services of std_srvs/Trigger: `~/estop` stops the arm, `~/reset` lets it be armed again.
- Topics: `~/goal/image` (sensor_msgs/Image of the first camera's size) and `~/goal/text`
  (std_msgs/String) go to the planner; `~/plan` (nav_msgs/Path) is the planned path;
  `/diagnostics` reports the arm's health.
"""

from __future__ import annotations

import signal
import sys
import threading

from latentplan.errors import LatentplanError
from latentplan.real_robot.backends.ros2 import load


def serve() -> int:
    """Run the node until SIGTERM or SIGINT; the arm rests before it ends. Return the exit code."""
    rclpy = load()
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from latentplan.real_robot.ros2.lifecycle_node import MpcNode

    leaving = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: leaving.set())
    rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    try:
        mpc = MpcNode("mpc")
    except rclpy.exceptions.ParameterException as e:
        print(f"mpc_node: {e}", file=sys.stderr, flush=True)
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(mpc)
    started = True
    try:
        if mpc.get_parameter("autostart").value:
            succeeded = rclpy.lifecycle.TransitionCallbackReturn.SUCCESS
            started = mpc.trigger_configure() == succeeded and mpc.trigger_activate() == succeeded
        while started and not leaving.is_set():
            executor.spin_once(timeout_sec=0.1)
    finally:  # the arm rests, whatever ends this
        mpc.leave()
        mpc.destroy_node()
        rclpy.shutdown()
    return 0 if started else 2


def main() -> None:
    """Run the node; exit with 2 and one line if a user's mistake prevents that."""
    try:
        code = serve()
    except LatentplanError as e:
        print(f"mpc_node: {e}", file=sys.stderr, flush=True)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
