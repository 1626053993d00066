"""ROS 1 as a backend: rospy's topics, and a monitor of the master, whose end topics do not show.

Needs rospy and the messages of a sourced ROS 1 or of Debian, and numpy; nothing compiled, neither
cv_bridge nor tf.
"""

from __future__ import annotations

import http.client
import threading
import time
import xmlrpc.client
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latentplan.errors import MissingDependency, RobotError, check_range
from latentplan.real_robot.backends.topics import Inbox, TopicDriver, Topics, twist_of
from latentplan.real_robot.robot import Reading, Setpoint, View
from latentplan.robots.description import Arm

NODE = "latentplan"  # its name in the graph, unless __name:= gives another
CALLER = "/latentplan_watch"  # caller of the requests to the master, which keeps no record of it
FAILURES = (OSError, http.client.HTTPException, xmlrpc.client.Error)  # of a request to it
IMAGE_BUFFER = 1 << 24  # bytes; rospy's default is less than an image and delays it
LEAVING = 3.0  # s that a stop may take when the graph shuts this node down


class Ros1Driver(TopicDriver["Ros1Driver.Config"]):
    """A driver on ROS 1 topics: JointState and Image in, one of three commands out.

    Established topics go on without a master, so the driver polls its process id: a master that
    does not answer, or is another, is an error of the next `reading`. So is another node that
    publishes on the topic of setpoints. With `rosnode kill` the arm comes to rest first.
    """

    @dataclass(frozen=True)
    class Config(Topics):
        """The topics of an arm, and the time limits on the master."""

        master_age: float = 0.4  # s that the master may go without an answer
        latency: float = 2.0  # s that `open` waits for the master's first answer

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            super().__post_init__()
            check_range("Ros1Driver.master_age", self.master_age, 0.05, 10)
            check_range("Ros1Driver.latency", self.latency, 0.05, 60)

    def __init__(
        self, arm: Arm, config: Config | None = None, *, cameras: Sequence[View] = ()
    ) -> None:
        """Take the arm and its cameras; nothing of ROS is imported before `open`."""
        super().__init__(arm, config or self.Config(), cameras=cameras)
        self._master: Master | None = None
        self._subscribers: list[Any] = []
        self._publishers: dict[str, Any] = {}
        self._leaving = False
        self._written = 0.0  # s, time of the last setpoint

    def open(self) -> None:
        """Register with the master and subscribe.

        Raises MissingDependency without rospy; RobotError if no master answers, a node of this
        name runs, or another node commands the arm.
        """
        rospy, self._master = join(self.config)
        rospy.on_shutdown(self._let_rest)
        self._inbox, self._leaving = Inbox(self.arm, self._views, self.config), False
        master = self._master
        command = rospy.resolve_name(self.config.command_topic)
        try:
            if self.config.exclusive:
                master.refuse_rivals(command, rospy.get_name(), timeout=self.config.latency)
            self._advertise(rospy)
            self._subscribe(rospy)
            self._wait_for_controller()
        except FAILURES as e:
            self.close()
            raise RobotError(f"ros1: the master was lost ({e}); check that it runs") from None
        except BaseException:
            self.close()
            raise
        master.watch(command if self.config.exclusive else "", rospy.get_name())

    def reading(self) -> Reading | None:
        """Return the newest joint reading; RobotError if master, graph or a message is bad."""
        if self._leaving:
            raise RobotError("ros1: the graph shuts this node down (rosnode kill, or a twin)")
        if self._master is not None:
            self._master.check()
        return super().reading()

    def write(self, setpoint: Setpoint) -> None:
        """Publish a setpoint; RobotError if the topic was closed from outside."""
        from rospy.exceptions import ROSException

        self._written = time.monotonic()
        self._inbox.sent(setpoint)
        try:
            self._publishers["command"].publish(self._command(setpoint))
            if "gripper" in self._publishers:
                at = setpoint.gripper / self.config.finger_scale
                self._publishers["gripper"].publish(_array([at]))
        except (KeyError, ROSException) as e:
            raise RobotError(f"ros1: nothing can be published ({e}); restart the node") from None

    def close(self) -> None:
        """Unregister; the arm holds the last setpoint."""
        for registered in (*self._subscribers, *self._publishers.values()):
            registered.unregister()
        self._subscribers, self._publishers = [], {}
        if self._master is not None:
            self._master.close()

    def _advertise(self, rospy: Any) -> None:
        from geometry_msgs.msg import TwistStamped
        from std_msgs.msg import Float64MultiArray
        from trajectory_msgs.msg import JointTrajectory

        config = self.config
        kinds = {
            "trajectory": JointTrajectory,
            "positions": Float64MultiArray,
            "twist": TwistStamped,
        }
        topics = {"command": (config.command_topic, kinds[config.mode])}
        if config.gripper:
            topics["gripper"] = (config.gripper, Float64MultiArray)
        # With a queue a thread sends, so a subscriber that hangs does not block the control loop.
        self._publishers = {
            use: rospy.Publisher(topic, kind, queue_size=10, tcp_nodelay=True)
            for use, (topic, kind) in topics.items()
        }

    def _wait_for_controller(self) -> None:
        """Wait until a controller subscribes to commands."""
        end = time.monotonic() + self.config.patience
        while self._publishers["command"].get_num_connections() == 0:
            if time.monotonic() > end:
                raise RobotError(
                    f"backend.command: no subscriber of {self.config.command_topic} for "
                    f"{self.config.patience} s; start the controller, or name its topic"
                )
            time.sleep(0.02)

    def _subscribe(self, rospy: Any) -> None:
        from sensor_msgs.msg import Image, JointState

        inbox = self._inbox
        hear = {"queue_size": 1, "tcp_nodelay": True, "buff_size": IMAGE_BUFFER}
        self._subscribers = [
            rospy.Subscriber(
                self.config.joint_states,
                JointState,
                lambda message: inbox.joints(message, stamp=message.header.stamp.to_sec()),
                **hear,
            )
        ]
        for camera, topic in zip(self.cameras, self._image_topics, strict=True):
            self._subscribers.append(
                rospy.Subscriber(
                    topic,
                    Image,
                    lambda message, name: inbox.image(
                        name, message, stamp=message.header.stamp.to_sec()
                    ),
                    callback_args=camera,
                    **hear,
                )
            )

    def _command(self, setpoint: Setpoint) -> Any:
        """Return the message of a setpoint; a stamp of 0 means: from now on."""
        import rospy

        config = self.config
        if config.mode == "positions":
            return _array(setpoint.q.tolist())
        if config.mode == "twist":
            return self._twist(setpoint, rospy.Time.now())
        from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

        point = JointTrajectoryPoint(
            positions=setpoint.q.tolist(),
            velocities=config.end_velocities(setpoint),
            time_from_start=rospy.Duration.from_sec(config.ahead * config.dt),
        )
        return JointTrajectory(joint_names=list(self._inbox.names), points=[point])

    def _twist(self, setpoint: Setpoint, now: Any) -> Any:
        from geometry_msgs.msg import Twist, TwistStamped, Vector3
        from std_msgs.msg import Header

        velocity = twist_of(self.arm, setpoint.q, setpoint.dq).tolist()
        twist = Twist(linear=Vector3(*velocity[:3]), angular=Vector3(*velocity[3:]))
        return TwistStamped(header=Header(stamp=now, frame_id=self.config.frame), twist=twist)

    def _let_rest(self) -> None:
        """Delay rospy's shutdown until setpoints have ended, since it closes their topic."""
        self._leaving = True
        end = time.monotonic() + LEAVING
        while time.monotonic() < min(end, self._written + 10 * self.config.dt):
            time.sleep(self.config.dt)


def join(config: Ros1Driver.Config) -> tuple[Any, Master]:
    """Return rospy, with this process a node of the graph, and the master.

    Raises MissingDependency without rospy; RobotError if no master answers, or a node of this
    name runs.
    """
    rospy = _rospy()
    import rosgraph

    master = Master(rosgraph.get_master_uri(), age=config.master_age)
    master.find(config.latency)
    if not rospy.core.is_initialized():
        name = rospy.names.get_mappings().get("__name", NODE)
        master.refuse_twin(rosgraph.names.ns_join(rospy.get_namespace(), name))
        # The control loop stops the arm at a signal; rospy would close its topics instead.
        rospy.init_node(name, disable_signals=True)
    return rospy, master


class Master:
    """A client of the ROS master over XML-RPC with a time limit; rospy's own calls have none."""

    PERIOD = 0.1  # s between requests for its process id
    RIVALS = 10  # periods between requests for the publishers of commands

    def __init__(self, uri: str, *, age: float) -> None:
        """Take its address; after `age` s without an answer the master counts as lost."""
        self.uri, self.age = uri, age
        self._name = f"ros1: the master {uri}"
        self._lost = ""  # the reason that the master is lost
        self._rival = ""  # the error of another node that commands the arm
        self._pid = 0
        self._answered = 0.0  # s, monotonic
        self._closed = threading.Event()

    def find(self, patience: float) -> None:
        """Request its process id; RobotError if nothing answers within `patience` s."""
        try:
            self._pid = self._ask("getPid", timeout=patience)
        except FAILURES as e:
            raise RobotError(
                f"ros1: no master answers at {self.uri} ({e}); start roscore, or set ROS_MASTER_URI"
            ) from None

    def refuse_twin(self, node: str) -> None:
        """Raise RobotError if a node of that name runs: the master would shut it down."""
        if self._lives(node):
            raise RobotError(
                f"ros1: a node {node} runs and may move the arm; end it, or name this one by "
                "__name:=NAME"
            )

    def refuse_rivals(self, topic: str, node: str, *, timeout: float) -> None:
        """Raise RobotError if a living node other than `node` publishes on `topic`."""
        publishers = dict(self._ask("getSystemState", timeout=timeout)[0])
        for other in publishers.get(topic, ()):
            if other != node and self._lives(other):
                raise RobotError(f"ros1: {other} publishes on {topic}, too; one at a time, end it")

    def watch(self, topic: str, node: str) -> None:
        """Poll in a thread until `close`; with a topic, poll its publishers, too."""
        self._answered = time.monotonic()
        threading.Thread(target=self._watch, args=(topic, node), daemon=True).start()

    def check(self) -> None:
        """Raise RobotError if the master is silent, or another node commands the arm."""
        silent = time.monotonic() - self._answered
        if not self._lost and silent > self.age:
            raise RobotError(
                f"{self._name} has not answered for {silent:.2f} s; check that it runs"
            )
        if self._lost or self._rival:
            raise RobotError(self._lost or self._rival)

    def close(self) -> None:
        """Stop polling."""
        self._closed.set()

    def _watch(self, topic: str, node: str) -> None:
        count = 0
        while not self._closed.wait(self.PERIOD):
            count += 1
            try:
                if self._ask("getPid", timeout=self.age) != self._pid:
                    self._lost = f"{self._name} is another one now; restart this node"
                self._answered = time.monotonic()
                if topic and count % self.RIVALS == 0:
                    self.refuse_rivals(topic, node, timeout=self.age)
                    self._rival = ""
            except ConnectionRefusedError:
                self._lost = f"{self._name} is gone; start it, then restart this node"
            except RobotError as e:
                self._rival = str(e)
            except FAILURES:
                continue  # `check` finds the age of the last answer

    def _lives(self, node: str) -> bool:
        """Return whether a node answers; a killed one stays in the master's list for ever."""
        try:
            uri = self._ask("lookupNode", node, timeout=self.age)
            self._ask("getPid", timeout=self.age, uri=uri)
        except TimeoutError:
            return True  # the process is stopped, or the network is slow
        except FAILURES:
            return False
        return True

    def _ask(self, method: str, *arguments: str, timeout: float, uri: str = "") -> Any:
        """Return the answer of the master, or of the node at `uri`; OSError if there is none."""
        with xmlrpc.client.ServerProxy(uri or self.uri, Timed(timeout)) as server:
            code, message, value = getattr(server, method)(CALLER, *arguments)
        if code != 1:
            raise xmlrpc.client.Fault(code, message)
        return value


class Timed(xmlrpc.client.Transport):
    """An XML-RPC transport with a time limit."""

    def __init__(self, timeout: float) -> None:
        """Take the time limit, s."""
        super().__init__()
        self._timeout = timeout

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        """Return the connection to a host."""
        address, *_ = self.get_host_info(host)
        return http.client.HTTPConnection(address, timeout=self._timeout)


def _rospy() -> Any:
    """Return rospy; MissingDependency if it is missing."""
    try:
        import rospy
        import sensor_msgs.msg  # noqa: F401
        import trajectory_msgs.msg  # noqa: F401
    except ImportError as e:
        raise MissingDependency(
            f"backend 'ros1' needs ROS 1 in this python ({e}): source its setup.bash, or apt-get "
            "install python3-rospy python3-sensor-msgs python3-trajectory-msgs; or start the node "
            "with the interpreter that has it (python=...)"
        ) from None
    return rospy


def _array(values: Sequence[float]) -> Any:
    from std_msgs.msg import Float64MultiArray

    return Float64MultiArray(data=list(values))
