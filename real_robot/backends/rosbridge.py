"""rosbridge as a backend: an arm's ROS topics over a websocket, for machines without ROS.

The server is rosbridge_suite on the arm's side, of ROS 1 or ROS 2; the client is roslibpy. JSON
has no NaN, so a server writes null for it: null becomes NaN here.
"""

from __future__ import annotations

import base64
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from latentplan.errors import MissingDependency, RobotError, check_range
from latentplan.real_robot.backends.topics import Inbox, TopicDriver, Topics, twist_of
from latentplan.real_robot.robot import Reading, Setpoint, View
from latentplan.robots.description import Arm

GATHER = 0.05  # s between requests to rosapi
RETRY = 0.5  # s between attempts to connect while `open` waits for the server
TYPES = {
    "trajectory": "trajectory_msgs/JointTrajectory",
    "positions": "std_msgs/Float64MultiArray",
    "twist": "geometry_msgs/TwistStamped",
}


class RosbridgeDriver(TopicDriver["RosbridgeDriver.Config"]):
    """A driver on a rosbridge server: JointState and Image in, one of three commands out.

    A lost connection stays lost until `open`; otherwise messages sent while it is down would reach
    the arm when it returns. `open` requests the other publishers of commands from rosapi; later
    ones, and other clients of the same server, stay unnoticed. Images come in base64: 640x480 in
    colour is 1.2 MB each.
    """

    @dataclass(frozen=True)
    class Config(Topics):
        """The address of the server, and the topics on its side."""

        host: str = "127.0.0.1"  # of the server
        port: int = 9090  # of the server
        ros: int = 2  # version of ROS, 1 or 2; they name the parts of a time differently
        namespace: str = "/"  # of topics without a leading /
        latency: float = 5.0  # s that the server may take to start and to answer

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            super().__post_init__()
            check_range("RosbridgeDriver.port", self.port, 1, 65535)
            check_range("RosbridgeDriver.ros", self.ros, 1, 2)
            check_range("RosbridgeDriver.latency", self.latency, 0.05, 60)

    def __init__(
        self, arm: Arm, config: Config | None = None, *, cameras: Sequence[View] = ()
    ) -> None:
        """Take the arm and its cameras; roslibpy is not imported before `open`."""
        super().__init__(arm, config or self.Config(), cameras=cameras)
        self._ros: Any = None
        self._lost = ""  # the reason that the connection is lost
        self._publishers: dict[str, Any] = {}

    def open(self) -> None:
        """Connect and subscribe.

        Raises MissingDependency without roslibpy; RobotError if no server answers, no controller
        subscribes to commands, or another node publishes them.
        """
        roslibpy = _roslibpy()
        config = self.config
        self._inbox, self._lost = Inbox(self.arm, self._views, config), ""
        where = f"rosbridge {config.host}:{config.port}"
        self._ros = ros = roslibpy.Ros(config.host, config.port)
        ros.factory.maxDelay = RETRY  # a server that starts just now is connected to as well
        ros.factory.on_ready(self._prepare)
        ros.on("close", lambda _: self._lose(f"{where}: the connection is lost; open it again"))
        try:
            ros.run(timeout=config.latency)
        except roslibpy.core.RosTimeoutError:
            ros.call_later(0, ros.factory.stopTrying)
            self._ros = None
            raise RobotError(
                f"{where}: no server answers within {config.latency} s; start rosbridge_websocket "
                "on the arm's side"
            ) from None
        try:
            if config.exclusive:
                self._ask_around(roslibpy)
            self._advertise(roslibpy)
            self._subscribe(roslibpy)
        except BaseException:
            self.close()
            raise

    def reading(self) -> Reading | None:
        """Return the newest joint reading; RobotError if the server or a message fails."""
        if self._lost:
            raise RobotError(self._lost)
        return super().reading()

    def write(self, setpoint: Setpoint) -> None:
        """Publish a setpoint; RobotError if the connection is gone."""
        if self._ros is None or not self._ros.is_connected:
            raise RobotError("rosbridge: not connected; nothing can be published")
        self._inbox.sent(setpoint)
        self._publishers["command"].publish(self._command(setpoint))
        if "gripper" in self._publishers:
            at = setpoint.gripper / self.config.finger_scale
            self._publishers["gripper"].publish({"data": [at]})

    def close(self) -> None:
        """Disconnect; the arm's controller ends at the last setpoint."""
        ros, self._ros = self._ros, None
        if ros is None:
            return
        for publisher in self._publishers.values():
            publisher.unadvertise()
        self._publishers = {}
        ros.factory.remove_all_listeners("close")
        ros.close(timeout=self.config.latency)

    def _lose(self, reason: str) -> None:
        self._lost = reason

    def _topic(self, name: str) -> str:
        """Return the full name of a topic, as servers answer with."""
        return name if name.startswith("/") else f"{self.config.namespace.rstrip('/')}/{name}"

    def _kind(self, kind: str) -> str:
        return kind if self.config.ros == 1 else kind.replace("/", "/msg/")

    def _time(self, seconds: float) -> dict[str, int]:
        """Return a time or a duration in the fields of that ROS."""
        whole = int(seconds)
        parts = whole, round((seconds - whole) * 1e9)
        names = ("secs", "nsecs") if self.config.ros == 1 else ("sec", "nanosec")
        return dict(zip(names, parts, strict=True))

    def _advertise(self, roslibpy: Any) -> None:
        config = self.config
        topics = {"command": (config.command_topic, TYPES[config.mode])}
        if config.gripper:
            topics["gripper"] = (config.gripper, TYPES["positions"])
        for use, (name, kind) in topics.items():
            topic = roslibpy.Topic(
                self._ros,
                self._topic(name),
                self._kind(kind),
                queue_size=10,
                reconnect_on_close=False,
            )
            topic.advertise()
            self._publishers[use] = topic

    def _subscribe(self, roslibpy: Any) -> None:
        config, inbox = self.config, self._inbox

        def read(values: Mapping[str, Any]) -> None:
            inbox.joints(_joint_state(values), stamp=_stamp(values))

        self._listen(roslibpy, config.joint_states, "sensor_msgs/JointState", read)
        for camera, topic in zip(self.cameras, self._image_topics, strict=True):

            def see(values: Mapping[str, Any], camera: str = camera) -> None:
                inbox.image(camera, _image(values), stamp=_stamp(values))

            self._listen(roslibpy, topic, "sensor_msgs/Image", see)

    def _listen(
        self, roslibpy: Any, name: str, kind: str, take: Callable[[Mapping[str, Any]], None]
    ) -> None:
        """Call `take` with the newest message of a topic."""

        def hear(values: Mapping[str, Any]) -> None:
            try:
                take(values)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
                self._inbox.fail(f"{name}: no {kind} ({type(e).__name__}: {e})")

        topic = roslibpy.Topic(
            self._ros, self._topic(name), self._kind(kind), queue_length=1, reconnect_on_close=False
        )
        topic.subscribe(hear)

    def _prepare(self, proto: Any) -> None:
        """Send small messages at once, never reconnect, and fail on the server's errors.

        Otherwise a setpoint waits up to 40 ms for the server to acknowledge the one before, and
        reaches the arm late when a lost connection returns.
        """
        proto.transport.setTcpNoDelay(True)
        proto.factory.maxRetries = 0

        def complain(message: Mapping[str, Any]) -> None:
            if message.get("level") == "error":
                self._inbox.fail(f"rosbridge: the server reports: {message.get('msg')}")

        proto._message_handlers["status"] = complain  # roslibpy has none for them

    def _ask_around(self, roslibpy: Any) -> None:
        """Wait until a controller subscribes to commands; RobotError for another publisher."""
        topic = self._topic(self.config.command_topic)
        others = self._rosapi(roslibpy, "publishers", topic)
        if others:
            raise RobotError(
                f"backend.command: {', '.join(others)} publishes {topic}, too; end it, or set "
                "backend.exclusive=false"
            )
        end = time.monotonic() + self.config.patience
        while not self._rosapi(roslibpy, "subscribers", topic):
            if time.monotonic() > end:
                raise RobotError(
                    f"backend.command: no subscriber of {topic} for {self.config.patience} s; "
                    "start the controller, or name its topic"
                )
            time.sleep(GATHER)

    def _rosapi(self, roslibpy: Any, question: str, topic: str) -> list[str]:
        """Return the `publishers` or `subscribers` of a topic."""
        package = "rosapi" if self.config.ros == 1 else "rosapi_msgs/srv"
        kind = f"{package}/{question.capitalize()}"
        service = roslibpy.Service(self._ros, f"/rosapi/{question}", kind)
        answered, answer = threading.Event(), dict[str, Any]()

        def take(values: Mapping[str, Any]) -> None:
            answer.update(values)
            answered.set()

        request = roslibpy.ServiceRequest({"topic": topic})
        service.call(request, callback=take, errback=lambda _: answered.set())
        answered.wait(self.config.latency)
        if question not in answer:
            raise RobotError(
                f"rosbridge: rosapi does not list the {question} of {topic}; start rosapi_node, or "
                "set backend.exclusive=false"
            )
        return [str(node) for node in answer[question]]

    def _command(self, setpoint: Setpoint) -> dict[str, Any]:
        """Return the message of a setpoint; a stamp of 0 means: from now on."""
        config = self.config
        if config.mode == "positions":
            return {"data": setpoint.q.tolist()}
        if config.mode == "twist":
            velocity = twist_of(self.arm, setpoint.q, setpoint.dq).tolist()
            linear, angular = (
                dict(zip("xyz", part, strict=True)) for part in (velocity[:3], velocity[3:])
            )
            header = {"stamp": self._time(time.time()), "frame_id": config.frame}
            return {"header": header, "twist": {"linear": linear, "angular": angular}}
        point = {
            "positions": setpoint.q.tolist(),
            "velocities": config.end_velocities(setpoint),
            "time_from_start": self._time(config.ahead * config.dt),
        }
        return {"joint_names": list(self._inbox.names), "points": [point]}


def _joint_state(values: Mapping[str, Any]) -> SimpleNamespace:
    """Return the JointState of JSON values; KeyError, TypeError, ValueError... if invalid."""
    names = [str(name) for name in values["name"]]
    position, velocity = _numbers(values["position"]), _numbers(values.get("velocity") or ())
    return SimpleNamespace(name=names, position=position, velocity=velocity)


def _image(values: Mapping[str, Any]) -> SimpleNamespace:
    """Return the Image of JSON values; KeyError, TypeError or ValueError (base64) if invalid."""
    data = values["data"]
    if not isinstance(data, str | list):
        raise TypeError(f"data is a {type(data).__name__}")
    raw = base64.b64decode(data, validate=True) if isinstance(data, str) else bytes(data)
    shape = {name: int(values[name]) for name in ("height", "width", "step", "is_bigendian")}
    return SimpleNamespace(encoding=str(values["encoding"]), data=raw, **shape)


def _numbers(values: Sequence[Any]) -> list[float]:
    """Return the floats of JSON values, with NaN for null."""
    return [math.nan if value is None else float(value) for value in values]


def _stamp(values: Mapping[str, Any]) -> float:
    """Return the time of a measurement, s; ROS 1 and ROS 2 name its parts differently."""
    stamp = values["header"]["stamp"]
    if "secs" in stamp:
        return float(stamp["secs"] + 1e-9 * stamp["nsecs"])
    return float(stamp["sec"] + 1e-9 * stamp["nanosec"])


def _roslibpy() -> Any:
    """Return roslibpy; MissingDependency if it is missing."""
    try:
        import roslibpy
        import roslibpy.core
    except ImportError:
        raise MissingDependency(
            "backend 'rosbridge' needs roslibpy: pip install \"latentplan[rosbridge]\""
        ) from None
    return roslibpy
