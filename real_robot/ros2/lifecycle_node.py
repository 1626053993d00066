"""The ROS 2 lifecycle node around a control loop; importing it needs ROS 2."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor, SetParametersResult
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from latentplan.errors import LatentplanError, RobotError
from latentplan.real_robot.backends.ros2 import Ros2Driver
from latentplan.real_robot.backends.topics import pixels
from latentplan.real_robot.link.remote import ask
from latentplan.real_robot.loop.node import Node
from latentplan.real_robot.loop.node_process import parse_address
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.real_robot.ros2.parameters import RANGES, defaults, settings
from latentplan.robots import description

CONNECTING = 30.0  # s in which an arm must be connected
STATE = 0.5  # s between diagnostics messages


class MpcNode(LifecycleNode):  # type: ignore[misc]
    """A lifecycle node that controls an arm while it is active."""

    def __init__(self, name: str) -> None:
        """Declare parameters, services and topics; nothing is connected yet."""
        super().__init__(name)
        self.loop: Node | None = None
        self.thread: threading.Thread | None = None
        self.shown: Any = None  # the plan that was published last
        self._declare()
        self.create_service(Trigger, "~/estop", self._stop)
        self.create_service(Trigger, "~/reset", self._reset)
        self.create_subscription(Image, "~/goal/image", self._see_goal, 1)
        self.create_subscription(String, "~/goal/text", self._hear_goal, 1)
        self.plans = self.create_publisher(Path, "~/plan", 1)
        self.diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        self.create_timer(STATE, self._publish_health)

    def _declare(self) -> None:
        for name, value in defaults().items():
            descriptor = ParameterDescriptor()
            if name in RANGES:
                least, most = RANGES[name]
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=least, to_value=most)
                ]
            if value == ():
                value = [""]  # ROS cannot infer the type of an empty list
            self.declare_parameter(
                name, list(value) if isinstance(value, tuple) else value, descriptor
            )
        self.declare_parameter("autostart", False)
        self.add_on_set_parameters_callback(self._judge)

    def _values(self, changed: Any = ()) -> dict[str, Any]:
        values = {name: self.get_parameter(name).value for name in defaults()}
        values |= {p.name: p.value for p in changed if p.name in values}
        return {k: [] if v == [""] else v for k, v in values.items()}

    def _judge(self, changed: Any) -> Any:
        """Refuse an invalid value, and any change while the arm may move."""
        if self.loop is not None:
            return SetParametersResult(successful=False, reason="active; deactivate it first")
        try:
            settings(self._values(changed))
        except LatentplanError as e:
            return SetParametersResult(successful=False, reason=str(e))
        return SetParametersResult(successful=True)

    def on_configure(self, state: Any) -> Any:
        """Check the parameters."""
        try:
            self._prepare()
        except LatentplanError as e:
            self.get_logger().error(str(e))
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: Any) -> Any:
        """Connect to the arm and start the control loop."""
        try:
            self._connect()
        except LatentplanError as e:
            self.get_logger().error(str(e))
            return TransitionCallbackReturn.FAILURE
        return super().on_activate(state)

    def on_deactivate(self, state: Any) -> Any:
        """Stop the arm and disconnect."""
        self.leave()
        return super().on_deactivate(state)

    def on_shutdown(self, state: Any) -> Any:
        """Stop the arm and disconnect."""
        self.leave()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: Any) -> Any:
        """Stop the arm and disconnect."""
        self.leave()
        return TransitionCallbackReturn.SUCCESS

    def _prepare(self) -> Callable[[], Node]:
        """Return a function that builds the node; LatentplanError for wrong parameters."""
        chosen = settings(self._values())
        own = chosen["mpc"]
        arm = description.load(own.robot)
        safety = SafetyFilter(arm, chosen["safety"])
        if abs(safety.config.dt - chosen["backend"].dt) > 1e-9:
            raise RobotError(
                f"backend.dt: {chosen['backend'].dt} s, but safety.dt is {safety.config.dt} s; "
                "set them alike"
            )
        self.views = tuple(arm.cameras)
        address = parse_address(own.address)

        def build() -> Node:
            driver = Ros2Driver(
                arm, chosen["backend"], cameras=arm.cameras, arguments=remapping(sys.argv)
            )
            supervisor = Supervisor(safety, chosen["supervisor"], cameras=driver.cameras)
            return Node(driver, supervisor, address=address, period=own.period)

        return build

    def _connect(self) -> None:
        """Start the control loop; RobotError if the arm cannot be connected."""
        node, ready = self._prepare()(), threading.Event()
        failure: list[Exception] = []

        def run() -> None:
            try:
                node.run(ready=ready.set)
            except Exception as e:  # the arm rests; a bug ends the loop, not this node
                failure.append(e)
                bug = "" if isinstance(e, LatentplanError) else f"\n{traceback.format_exc()}"
                self.get_logger().error(f"{e}{bug}")
            ready.set()

        self.thread = threading.Thread(target=run)
        self.thread.start()
        if not ready.wait(CONNECTING):
            failure.append(RobotError(f"mpc: the arm is not connected after {CONNECTING} s"))
        if failure:
            node.leave()
            self.thread.join(CONNECTING)
            raise failure[0]
        self.loop = node
        self.get_logger().info(f"planners may connect to {node.address[0]}:{node.address[1]}")

    def leave(self) -> None:
        """Stop the arm, wait until it rests, and disconnect."""
        if self.loop is not None and self.thread is not None:
            self.loop.leave()
            self.thread.join()
        self.loop = self.thread = None

    def _stop(self, _: Any, response: Any) -> Any:
        """Stop the arm, whatever clients of the node do."""
        response.success, response.message = False, "mpc: not active, nothing moves"
        if self.loop is not None:
            self.loop.emergency_stop()
            response.success, response.message = True, "the arm stops"
        return response

    def _reset(self, _: Any, response: Any) -> Any:
        try:
            if self.loop is None:
                raise RobotError("mpc: not active, nothing moves")
            response.message = ask(self.loop.address, "reset").state
            response.success = True
        except RobotError as e:
            response.success, response.message = False, str(e)
        return response

    def _see_goal(self, message: Any) -> None:
        if self.loop is None or not self.views:
            self.get_logger().error("goal: not active, or the arm's file names no camera")
            return
        view = self.views[0]
        try:
            image = pixels("goal", message)
            if image.shape != (view.height, view.width, 3):
                raise RobotError(
                    f"goal: an image of {image.shape[1]}x{image.shape[0]} pixels, need "
                    f"{view.width}x{view.height} as of {view.name}; it stays as it was"
                )
            self.loop.set_goal({view.name: image})
        except RobotError as e:
            self.get_logger().error(str(e))

    def _hear_goal(self, message: Any) -> None:
        if self.loop is None:
            return
        try:
            self.loop.set_goal(message.data)
        except RobotError as e:
            self.get_logger().error(str(e))

    def _publish_health(self) -> None:
        """Publish the arm's health, and the plan if there is a new one."""
        levels = {"armed": b"\0", "ready": b"\0", "hold": b"\1", "disconnected": b"\1"}
        status = DiagnosticStatus(name=self.get_fully_qualified_name(), level=b"\3")
        status.message = "not active"
        if self.loop is not None:
            health = self.loop.supervisor.health(now=self.loop.driver.now())
            status.level = levels.get(health.state, b"\2")
            status.message = f"{health.state}; {health.reason}".rstrip("; ")
            values = {f"age of {k}": f"{v:.3f}" for k, v in health.ages.items()}
            values |= {k: str(v) for k, v in health.interventions.items()}
            values |= {"ticks": str(health.ticks), "overruns": str(health.overruns)}
            status.values = [KeyValue(key=k, value=v) for k, v in values.items()]
            self._preview(self.loop)
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self.diagnostics.publish(array)

    def _preview(self, node: Node) -> None:
        plan = node.preview
        if plan is None or plan is self.shown:
            return
        self.shown = plan
        path = Path()
        path.header.frame_id = "world"
        path.header.stamp = self.get_clock().now().to_msg()
        for x, y, z in plan.tolist():
            pose = PoseStamped(header=path.header)
            place = pose.pose.position
            place.x, place.y, place.z = x, y, z
            path.poses.append(pose)
        self.plans.publish(path)


def remapping(words: list[str]) -> list[str]:
    """Return the ROS arguments of a command line that also apply to the arm's driver.

    They are remappings of topics and the namespace; name and parameters apply to this node alone.
    """
    if "--ros-args" not in words:
        return []
    given = words[words.index("--ros-args") + 1 :]
    rules = [b for a, b in zip(given, given[1:], strict=False) if a in ("-r", "--remap")]
    kept = [rule for rule in rules if not rule.startswith("__node:=")]
    return ["--ros-args", *(word for rule in kept for word in ("-r", rule))] if kept else []
