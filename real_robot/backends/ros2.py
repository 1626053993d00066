"""ROS 2 as a backend: joint states and images come in, setpoints go to the arm's controller."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from latentplan.errors import MissingDependency, RobotError
from latentplan.real_robot.backends.topics import Inbox, TopicDriver, Topics, twist_of
from latentplan.real_robot.robot import Setpoint, View
from latentplan.robots.description import Arm

DISCOVERY = 1.0  # s in which other publishers of commands are found
LOOK = 0.5  # s between checks for other publishers of commands


class Ros2Driver(TopicDriver["Ros2Driver.Config"]):
    """A `Driver` on rclpy: one thread keeps the newest messages, the control loop itself sends.

    Subscriptions are best effort and without a deadline, since drivers of cameras and arms offer
    none; the supervisor checks the age of messages. The graph does not show which nodes live: a
    killed one stays in it for some 20 s. It serves only to find other publishers of commands.

    A trajectory is one point without a time stamp, due `ahead` ticks from now: a controller with
    `interpolate_from_desired_state` starts it in motion, and stops there if no more come.
    """

    @dataclass(frozen=True)
    class Config(Topics):
        """The topics and message types of an arm."""

        node: str = "latentplan"  # its name in the graph
        namespace: str = ""  # of the node, and of topics without a leading /

    def __init__(
        self,
        arm: Arm,
        config: Config | None = None,
        *,
        cameras: Sequence[View] = (),
        arguments: Sequence[str] = (),
    ) -> None:
        """Take the arm, its topics, its cameras, and ROS arguments (`--ros-args ...`)."""
        self._arguments = tuple(arguments)
        super().__init__(arm, config or self.Config(), cameras=cameras)
        self._node: Any = None
        self._leave = contextlib.ExitStack()
        self._send: Callable[[Setpoint], None] = _closed

    def open(self) -> None:
        """Join the graph; MissingDependency without ROS 2.

        RobotError if no controller listens, or another node commands the arm.
        """
        config = self.config
        self._inbox = Inbox(self.arm, self._views, config)
        with contextlib.ExitStack() as stack:
            self._node = stack.enter_context(
                graph(config.node, config.namespace, arguments=self._arguments)
            )
            self._subscribe()
            self._wait_for_controller(self._advertise())
            if config.exclusive:
                self._node.create_timer(LOOK, self._look_around)
            self._leave = stack.pop_all()

    def write(self, setpoint: Setpoint) -> None:
        """Send a setpoint to the controllers of the arm and of its gripper."""
        self._send(setpoint)
        self._inbox.sent(setpoint)

    def close(self) -> None:
        """Leave the graph; the arm's controller ends at the last setpoint."""
        self._send = _closed
        self._leave.close()

    def _subscribe(self) -> None:
        from rclpy.event_handler import SubscriptionEventCallbacks
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import Image, JointState

        # The newest alone; a late subscriber does not delay the others.
        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        node, config = self._node, self.config

        def events(topic: str) -> SubscriptionEventCallbacks:
            return SubscriptionEventCallbacks(incompatible_qos=lambda e: self._differ(topic, e))

        inbox = self._inbox
        topic = config.joint_states
        node.create_subscription(
            JointState,
            topic,
            lambda message: inbox.joints(message, stamp=_seconds(message)),
            newest,
            event_callbacks=events(topic),
        )
        for name, topic in zip(self.cameras, self._image_topics, strict=True):

            def see(message: Any, name: str = name) -> None:
                inbox.image(name, message, stamp=_seconds(message))

            node.create_subscription(Image, topic, see, newest, event_callbacks=events(topic))

    def _advertise(self) -> Any:
        """Create the publishers; return the one of the arm's commands."""
        from rclpy.event_handler import PublisherEventCallbacks
        from rclpy.qos import QoSProfile
        from std_msgs.msg import Float64MultiArray

        node, config, topic = self._node, self.config, self.config.command_topic
        events = PublisherEventCallbacks(incompatible_qos=lambda e: self._differ(topic, e))
        kind, fill = self._command()
        arm = node.create_publisher(kind, topic, QoSProfile(depth=1), event_callbacks=events)
        fingers = None
        if config.gripper:
            fingers = node.create_publisher(Float64MultiArray, config.gripper, QoSProfile(depth=1))

        def send(setpoint: Setpoint) -> None:
            arm.publish(fill(setpoint))
            if fingers is not None:
                width = setpoint.gripper / config.finger_scale
                fingers.publish(Float64MultiArray(data=[width]))

        self._send = send
        return arm

    def _command(self) -> tuple[Any, Callable[[Setpoint], Any]]:
        """Return a message type, and a function from a setpoint to such a message."""
        from builtin_interfaces.msg import Duration
        from geometry_msgs.msg import TwistStamped
        from std_msgs.msg import Float64MultiArray
        from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

        config = self.config
        if config.mode == "positions":
            return Float64MultiArray, lambda setpoint: Float64MultiArray(data=setpoint.q.tolist())
        if config.mode == "twist":
            twist = TwistStamped()
            twist.header.frame_id = config.frame

            def turn(setpoint: Setpoint) -> Any:
                twist.header.stamp = self._node.get_clock().now().to_msg()
                linear, angular = twist.twist.linear, twist.twist.angular
                velocity = twist_of(self.arm, setpoint.q, setpoint.dq).tolist()
                linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = velocity
                return twist

            return TwistStamped, turn
        fraction, whole = math.modf(config.ahead * config.dt)
        point = JointTrajectoryPoint()
        point.time_from_start = Duration(sec=int(whole), nanosec=round(fraction * 1e9))
        # A stamp of 0 means now; with one in the past a controller hurries.
        trajectory = JointTrajectory(joint_names=list(self._inbox.names), points=[point])

        def go(setpoint: Setpoint) -> Any:
            point.positions = setpoint.q.tolist()
            point.velocities = config.end_velocities(setpoint)
            return trajectory

        return JointTrajectory, go

    def _wait_for_controller(self, publisher: Any) -> None:
        """Wait until a controller subscribes to commands, and no other node publishes any."""
        begin = time.monotonic()
        while publisher.get_subscription_count() == 0:
            if time.monotonic() - begin > self.config.patience:
                raise RobotError(
                    f"backend.command: no subscriber of {self.config.command_topic} for "
                    f"{self.config.patience} s; start the controller, or name its topic"
                )
            time.sleep(0.02)
        end = time.monotonic() + DISCOVERY
        while self.config.exclusive and time.monotonic() < end:
            self._look_around()
            time.sleep(0.1)
        self._inbox.reading()  # raises any error so far

    def _look_around(self) -> None:
        """Fail if another node publishes commands."""
        publishers = self._node.get_publishers_info_by_topic(self.config.command_topic)
        if len(publishers) > 1:
            others = [f"{p.node_namespace.rstrip('/')}/{p.node_name}" for p in publishers]
            others = ["another node" if "UNKNOWN" in name else name for name in others]
            if self._node.get_fully_qualified_name() in others:
                others.remove(self._node.get_fully_qualified_name())
            self._inbox.fail(
                f"backend.command: {', '.join(others)} publishes {self.config.command_topic}, too; "
                "stop it (one that was killed is gone after 20 s), or set backend.exclusive=false"
            )

    def _differ(self, topic: str, event: Any) -> None:
        """Fail if the QoS of a topic's other end does not match this one."""
        from rclpy.qos import qos_policy_name_from_kind

        name = qos_policy_name_from_kind(event.last_policy_kind)
        self._inbox.fail(f"{topic}: its other end has another QoS {name}; set the default there")


@contextlib.contextmanager
def graph(name: str, namespace: str = "", *, arguments: Sequence[str] = ()) -> Iterator[Any]:
    """Yield a ROS 2 node whose callbacks run in a thread of their own until the block ends.

    rclpy handles no signals: the caller stops the arm before it ends. `arguments` are ROS
    arguments (`--ros-args ...`). MissingDependency if this python has no ROS 2.
    """
    rclpy = load()
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    context = rclpy.context.Context()
    no_signals = rclpy.signals.SignalHandlerOptions.NO
    rclpy.init(args=list(arguments), context=context, signal_handler_options=no_signals)
    node = rclpy.create_node(
        name, namespace=namespace or None, context=context, start_parameter_services=False
    )
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield node
    finally:
        executor.shutdown(timeout_sec=1.0)
        thread.join(2.0)
        node.destroy_node()
        context.try_shutdown()


def load() -> Any:
    """Return rclpy, set to use UDP; MissingDependency if this python cannot import it."""
    # With shared memory, a process that freezes at a bad moment blocks its senders as long:
    # 0.8 s without a setpoint, in 1 of 12 trials. With UDP, none in 21.
    os.environ.setdefault("FASTDDS_BUILTIN_TRANSPORTS", "UDPv4")
    try:
        import rclpy
        import rclpy.context
        import rclpy.signals
        import sensor_msgs.msg  # noqa: F401
        import trajectory_msgs.msg  # noqa: F401
    except ImportError as e:
        raise MissingDependency(
            f"backend 'ros2' needs {e.name}: source ROS 2 (. /opt/ros/DISTRO/setup.sh) and run "
            "this with its python"
        ) from None
    return rclpy


def _seconds(message: Any) -> float:
    stamp = message.header.stamp
    return float(stamp.sec + 1e-9 * stamp.nanosec)


def _closed(setpoint: Setpoint) -> None:
    raise RobotError("backend ros2: not open")
