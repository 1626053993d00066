"""The control loop of an arm as a ROS 1 node, with parameters, services and topics.

`rosrun latentplan_ros mpc_node`, or the launch file of the package; a planner connects to
`~address` from this machine or another.

- Parameters: `~robot`, `~address`, `~period`, and the sections `~backend`, `~safety`,
  `~supervisor`, whose keys are the fields of those classes; one that is unknown or out of its
  range ends the node before anything moves.
- Services of std_srvs/Trigger: `~estop` stops the arm, `~reset` lets it be armed again.
- Topics: `~goal/image` (sensor_msgs/Image of the first camera) and `~goal/text` (std_msgs/String)
  go to the planner; `~state` (std_msgs/String, latched) is the arm's state and its reason.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from latentplan import config
from latentplan.errors import ConfigError, LatentplanError, RobotError
from latentplan.real_robot.backends.ros1 import Ros1Driver, join
from latentplan.real_robot.backends.topics import pixels
from latentplan.real_robot.link.remote import ask
from latentplan.real_robot.loop.node import Node
from latentplan.real_robot.loop.node_process import Parameters, parse_address
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.real_robot.robot import View
from latentplan.robots import description
from latentplan.types import Observation

WATCH = 0.2  # s between checks of the state


def build(parameters: Mapping[str, Any]) -> tuple[Node, tuple[View, ...]]:
    """Return the node of these parameters, which listens, and its cameras; nothing moves.

    Raises ConfigError for a parameter that is unknown or out of its range, RobotError if the
    address is not available.
    """
    own = Parameters.__dataclass_fields__
    chosen = {"mpc": {key: value for key, value in parameters.items() if key in own}}
    chosen |= {key: value for key, value in parameters.items() if key not in own}
    sections = {
        "mpc": Parameters,
        "backend": Ros1Driver.Config,
        "safety": SafetyFilter.Config,
        "supervisor": Supervisor.Config,
    }
    settings = config.load(sections, preset=chosen)
    arm = description.load(settings["mpc"].robot)
    driver = Ros1Driver(arm, settings["backend"], cameras=arm.cameras)
    safety = SafetyFilter(arm, settings["safety"])
    if abs(safety.config.dt - driver.config.dt) > 1e-9:
        raise ConfigError(
            f"mpc.backend.dt: {driver.config.dt} s, but safety.dt is {safety.config.dt} s; "
            "set them alike"
        )
    supervisor = Supervisor(safety, settings["supervisor"], cameras=driver.cameras)
    address = parse_address(settings["mpc"].address)
    node = Node(driver, supervisor, address=address, period=settings["mpc"].period)
    return node, tuple(arm.cameras)


def serve() -> None:
    """Run the node until SIGTERM, SIGINT or `rosnode kill`; the arm rests before it ends."""
    rospy, _ = join(Ros1Driver.Config())
    node, cameras = build(rospy.get_param("~", {}))
    rospy.on_shutdown(node.leave)
    _offer(rospy, node)
    _take_goals(rospy, node, cameras)
    _publish_state(rospy, node)
    rospy.loginfo(f"planners may connect to {node.address[0]}:{node.address[1]}")
    try:
        node.run()
    finally:
        rospy.signal_shutdown("the arm rests")


def _offer(rospy: Any, node: Node) -> None:
    from std_srvs.srv import Trigger, TriggerResponse

    def stop(_: Any) -> Any:
        node.emergency_stop()
        return TriggerResponse(success=True, message="the arm stops")

    def reset(_: Any) -> Any:
        try:
            health = ask(node.address, "reset")
        except RobotError as e:
            return TriggerResponse(success=False, message=str(e))
        return TriggerResponse(success=True, message=health.state)

    rospy.Service("~estop", Trigger, stop)
    rospy.Service("~reset", Trigger, reset)


def _take_goals(rospy: Any, node: Node, cameras: tuple[View, ...]) -> None:
    from sensor_msgs.msg import Image
    from std_msgs.msg import String

    def see(message: Any) -> None:
        try:
            image = pixels("goal", message)
        except RobotError as e:
            rospy.logerr(str(e))
            return
        view = cameras[0]
        if image.shape != (view.height, view.width, 3):
            rospy.logerr(
                f"goal: an image of {image.shape[1]}x{image.shape[0]} pixels, need "
                f"{view.width}x{view.height} as of {view.name}; the goal stays as it was"
            )
            return
        give({view.name: image})

    def give(goal: Observation | str) -> None:
        try:
            node.set_goal(goal)
        except RobotError as e:
            rospy.logerr(str(e))

    if cameras:
        rospy.Subscriber("~goal/image", Image, see, queue_size=1)
    rospy.Subscriber("~goal/text", String, lambda message: give(message.data), queue_size=1)


def _publish_state(rospy: Any, node: Node) -> None:
    """Publish the state whenever it changes."""
    from std_msgs.msg import String

    publisher = rospy.Publisher("~state", String, queue_size=1, latch=True)
    published = ""

    def check(_: Any) -> None:
        nonlocal published
        supervisor = node.supervisor
        state = f"{supervisor.state}; {supervisor.reason}" if supervisor.reason else ""
        state = state or str(supervisor.state)
        if state != published:
            published = state
            publisher.publish(String(data=state))
            rospy.loginfo(state)

    rospy.Timer(rospy.Duration.from_sec(WATCH), check)


def main() -> None:
    """Run the node; exit with 2 and one line if a user's mistake prevents that."""
    try:
        serve()
    except LatentplanError as e:
        sys.exit(_refuse(str(e)))


def _refuse(line: str) -> int:
    print(f"mpc_node: {line}", file=sys.stderr, flush=True)
    return 2
