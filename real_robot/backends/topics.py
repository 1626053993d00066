"""The topic settings and message contents that ROS 1, ROS 2 and rosbridge share.

Imports no ROS: a message is an object with the fields of sensor_msgs/JointState or Image.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from latentplan.data import ros_images
from latentplan.errors import ConfigError, RobotError, SourceError, check_range, unknown
from latentplan.real_robot.backends.joint_readings import JointReadings
from latentplan.real_robot.robot import CameraImage, Reading, Setpoint, View, in_order
from latentplan.robots.chain import flange
from latentplan.robots.description import Arm
from latentplan.types import Array

MODES = {  # message of a setpoint, and its usual topic
    "trajectory": "joint_trajectory_controller/joint_trajectory",  # JointTrajectory, one point
    "positions": "forward_position_controller/commands",  # Float64MultiArray
    "twist": "servo_node/delta_twist_cmds",  # TwistStamped of the end effector
}
END_VELOCITIES = ("none", "zero", "setpoint")
SMALL = 1e-4  # s, of a finite difference


@dataclass(frozen=True)
class Topics:
    """The topics and message types of an arm; the defaults are those of ros(2)_control.

    Names are relative, so that a namespace and remapping hold.
    """

    mode: str = "trajectory"  # message of a setpoint: trajectory, positions or twist
    command: str = ""  # topic of setpoints; empty: the usual one of the mode
    joint_states: str = "joint_states"  # topic of sensor_msgs/JointState
    joints: tuple[str, ...] = ()  # joints' names in messages, in the arm's order; (): the arm's
    images: tuple[str, ...] = ()  # topic of each camera, in their order; (): NAME/image_raw
    ahead: float = 2.0  # ticks until a trajectory's point is due
    dt: float = 0.02  # s, a tick
    end_velocity: str = "none"  # of a trajectory's point: none, zero or setpoint
    exclusive: bool = True  # nothing moves while another node sends commands
    patience: float = 5.0  # s that `open` waits for a subscriber of commands
    frame: str = "base_link"  # frame of a twist
    finger: str = ""  # gripper's joint in joint_states; empty: the width is as sent
    finger_scale: float = 2.0  # m of width for a metre (or a radian) of that joint
    gripper: str = ""  # topic, Float64MultiArray of that joint's position; empty: no command

    def __post_init__(self) -> None:
        """Raise ConfigError if a field is out of its range."""
        where = type(self).__qualname__.removesuffix(".Config")
        if self.mode not in MODES:
            raise unknown(f"{where}.mode", self.mode, MODES)
        if self.end_velocity not in END_VELOCITIES:
            raise unknown(f"{where}.end_velocity", self.end_velocity, END_VELOCITIES)
        check_range(f"{where}.patience", self.patience, 0, 3600)
        check_range(f"{where}.ahead", self.ahead, 1, 50)
        check_range(f"{where}.dt", self.dt, 1e-3, 0.1)
        check_range(f"{where}.finger_scale", self.finger_scale, 1e-6, 1e3)
        if not self.joint_states:
            raise ConfigError(f"{where}.joint_states: empty; need the name of a topic")

    @property
    def command_topic(self) -> str:
        """Return the topic of setpoints."""
        return self.command or MODES[self.mode]

    def end_velocities(self, setpoint: Setpoint) -> list[float]:
        """Return the velocities (J,) of a trajectory's point, rad/s; empty if it has none."""
        asked = {"none": setpoint.dq[:0], "zero": 0 * setpoint.dq, "setpoint": setpoint.dq}
        return list(asked[self.end_velocity].tolist())

    def joint_names(self, arm: Arm) -> tuple[str, ...]:
        """Return the names of the joints (J,) in messages; ConfigError if their number differs."""
        names = tuple(joint.name for joint in arm.joints)
        if self.joints and len(set(self.joints)) != len(names):
            where = type(self).__qualname__.removesuffix(".Config")
            raise ConfigError(
                f"{where}.joints: found {', '.join(self.joints)}; need a name of its own for each "
                f"of {', '.join(names)}"
            )
        return self.joints or names

    def image_topics(self, cameras: Sequence[str]) -> tuple[str, ...]:
        """Return the topic of each camera; ConfigError if their numbers differ."""
        if self.images and len(self.images) != len(cameras):
            where = type(self).__qualname__.removesuffix(".Config")
            raise ConfigError(
                f"{where}.images: found {len(self.images)} topics for the cameras "
                f"{', '.join(cameras) or 'none'}; each needs one"
            )
        return self.images or tuple(f"{name}/image_raw" for name in cameras)


TopicsT = TypeVar("TopicsT", bound=Topics)


class Inbox:
    """The newest data of each sensor: callbacks of any thread write it, the control loop reads it.

    Every message is checked on arrival: the error of a bad one is kept until the loop has read it,
    even if good ones follow. The clock is `time.monotonic`.
    """

    def __init__(self, arm: Arm, views: Sequence[View], topics: Topics) -> None:
        """Take the arm, its cameras, and the names of topics."""
        self.topics = topics
        self.names = topics.joint_names(arm)
        self.width = arm.gripper.width  # m, the gripper's, as measured, else as sent
        self._views = {view.name: view for view in views}
        self._lock = threading.Lock()
        self._joints = JointReadings(self.names)
        self._reading: Reading | None = None
        self._images: dict[str, CameraImage] = {}
        self._wrong = ""

    def joints(self, message: Any, *, stamp: float) -> None:
        """Take a sensor_msgs/JointState that was measured at `stamp` s of the sensors' clock."""
        received = time.monotonic()
        names = list(message.name)
        with self._lock:
            try:
                self._see_finger(names, message.position)
                self._joints.take(
                    names, message.position, message.velocity, stamp=stamp, received=received
                )
                self._reading = None
            except RobotError as e:
                self._wrong = self._wrong or str(e)

    def image(self, name: str, message: Any, *, stamp: float) -> None:
        """Take a sensor_msgs/Image of the camera `name`."""
        received = time.monotonic()
        try:
            image = pixels(name, message)
            view = self._views[name]
            if image.shape != (view.height, view.width, 3):
                raise RobotError(
                    f"{name}: an image of {image.shape[1]}x{image.shape[0]} pixels, need "
                    f"{view.width}x{view.height}; set the camera's driver, or describe that camera"
                )
        except RobotError as e:
            self.fail(str(e))
            return
        with self._lock:
            self._images[name] = CameraImage(stamp, received, image)

    def fail(self, reason: str) -> None:
        """Make the next `reading` raise RobotError with this reason."""
        with self._lock:
            self._wrong = self._wrong or reason

    def reading(self) -> Reading | None:
        """Return the newest joint reading; RobotError, once, if a message was bad."""
        with self._lock:
            wrong, self._wrong = self._wrong, ""
            if wrong:
                raise RobotError(wrong)
            if self._reading is None:
                self._reading = self._joints.reading(self.width)
            return self._reading

    def images(self) -> Mapping[str, CameraImage]:
        """Return the newest image of each camera that has sent one."""
        with self._lock:
            return dict(self._images)

    def sent(self, setpoint: Setpoint) -> None:
        """Note the gripper's width, if no sensor measures it."""
        if not self.topics.finger:
            self.width = setpoint.gripper

    def _see_finger(self, names: Sequence[str], positions: Sequence[float]) -> None:
        finger = self.topics.finger
        if finger and finger in names:
            (at,) = in_order([finger], names, positions)
            self.width = float(at) * self.topics.finger_scale


class TopicDriver(Generic[TopicsT]):
    """A driver of an arm on topics: a clock, and an inbox of the newest messages."""

    def __init__(self, arm: Arm, config: TopicsT, *, cameras: Sequence[View]) -> None:
        """Take the arm, its topics and its cameras; nothing is connected before `open`.

        ConfigError if the topics of images do not fit the cameras.
        """
        self.arm, self.config = arm, config
        self.cameras = tuple(camera.name for camera in cameras)
        self._image_topics = config.image_topics(self.cameras)
        self._views = tuple(cameras)
        self._inbox = Inbox(arm, self._views, config)

    def now(self) -> float:
        """Return the machine's monotonic clock, s."""
        return time.monotonic()

    def wait(self, until: float) -> None:
        """Wait until `until` s on that clock."""
        time.sleep(max(0.0, until - time.monotonic()))

    def reading(self) -> Reading | None:
        """Return the newest joint reading; RobotError if the data is not of this arm."""
        return self._inbox.reading()

    def images(self) -> Mapping[str, CameraImage]:
        """Return the newest image of each camera that has sent one."""
        return self._inbox.images()


def pixels(name: str, message: Any) -> Array:
    """Return the image (h, w, 3) uint8, red green blue, of a sensor_msgs/Image.

    Rows may be padded (`step`), 16 bits are cut to 8, grey becomes three equal channels. Raises
    RobotError for an unknown encoding, or if the data is too short.
    """
    try:
        return ros_images.pixels(name, message)
    except SourceError as e:
        raise RobotError(str(e)) from None


def twist_of(arm: Arm, q: Array, dq: Array) -> Array:
    """Return the twist (6,) of the end effector in the base frame: m/s, then rad/s.

    The joints are at q (J,) rad and move at dq (J,) rad/s. The twist is the pose's derivative along
    dq, by a central difference with an error of order `SMALL` squared.
    """
    steps = np.array([[-SMALL], [0.0], [SMALL]])
    before, here, after = flange(arm, q + steps * dq)
    hand = np.array([0.0, 0.0, arm.gripper.length, 1.0])
    rate = (after - before) / (2 * SMALL)
    spin = rate[:3, :3] @ here[:3, :3].T  # skew: the angular velocity's cross product
    turn = np.array([spin[2, 1] - spin[1, 2], spin[0, 2] - spin[2, 0], spin[1, 0] - spin[0, 1]]) / 2
    c, s = np.cos(arm.yaw), np.sin(arm.yaw)
    base = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])  # world -> base
    return np.concatenate([base @ (rate @ hand)[:3], base @ turn])
