"""Bags in the three formats that ROS writes: an arm of three joints with a finger, two cameras."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FORMATS = ("bag", "mcap", "db3")
NS = 10**9
START = 1_700_000_000 * NS
NAMES = ("elbow", "base", "finger", "wrist")  # as the driver sends them
JOINTS = ("base", "elbow", "wrist")


@dataclass
class Said:
    """A message before it is written: `make(types, ros1)` returns it."""

    recorded: int
    topic: str
    kind: str
    make: Any


def at(seconds: float) -> int:
    return START + round(seconds * NS)


def joint(name: str, seconds: float) -> float:
    """Where a joint is at a time, rad (finger: m)."""
    if name == "finger":
        return 0.02 + 0.01 * np.sin(seconds)
    return JOINTS.index(name) + np.sin(seconds * (1 + JOINTS.index(name)))


def picture(number: int, *, height: int = 18, width: int = 20) -> np.ndarray:
    """Return the image (h, w, 3) of a number."""
    return np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)


def image(seconds: float, topic: str, number: int, *, encoding: str = "rgb8", **said: Any) -> Said:
    pixels = picture(number)

    def make(types: Any, ros1: bool) -> Any:
        rows = {
            "rgb8": pixels,
            "bgr8": pixels[..., ::-1],
            "rgba8": np.concatenate([pixels, pixels[..., :1]], axis=2),
            "mono8": pixels[..., :1],
        }[encoding].reshape(len(pixels), -1)
        rows = np.pad(rows, ((0, 0), (0, 6)))  # padded, as `step` allows
        return types["sensor_msgs/msg/Image"](
            header=header(types, ros1, said.get("stamp", at(seconds))),
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding=encoding,
            is_bigendian=0,
            step=rows.shape[1],
            data=rows.reshape(-1)[: said.get("bytes")],
        )

    return Said(at(seconds) + 2_000_000, topic, "sensor_msgs/msg/Image", make)


def compressed(seconds: float, topic: str, number: int, *, format: str = "png") -> Said:
    def make(types: Any, ros1: bool) -> Any:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(picture(number)).save(file, format)
        return types["sensor_msgs/msg/CompressedImage"](
            header=header(types, ros1, at(seconds)),
            format=f"rgb8; {format} compressed bgr8",
            data=np.frombuffer(file.getvalue(), np.uint8),
        )

    return Said(at(seconds) + 3_000_000, topic, "sensor_msgs/msg/CompressedImage", make)


def joints(seconds: float, *, names: tuple[str, ...] = NAMES, value: Any = joint) -> Said:
    def make(types: Any, ros1: bool) -> Any:
        numbers = np.array([value(name, seconds) for name in names], np.float64)
        return types["sensor_msgs/msg/JointState"](
            header=header(types, ros1, at(seconds)),
            name=list(names),
            position=numbers,
            velocity=numbers * 0.5,
            effort=np.zeros(0),
        )

    return Said(at(seconds) + 1_000_000, "/joint_states", "sensor_msgs/msg/JointState", make)


def trajectory(seconds: float, values: Any, *, velocity: bool = False, points: int = 1) -> Said:
    def make(types: Any, ros1: bool) -> Any:
        none, numbers = np.zeros(0), np.array(values[::-1], np.float64)
        point = types["trajectory_msgs/msg/JointTrajectoryPoint"](
            positions=none if velocity else numbers,
            velocities=numbers if velocity else none,
            accelerations=none,
            effort=none,
            time_from_start=types["builtin_interfaces/msg/Duration"](sec=0, nanosec=40_000_000),
        )
        return types["trajectory_msgs/msg/JointTrajectory"](
            header=header(types, ros1, 0), joint_names=list(JOINTS[::-1]), points=[point] * points
        )

    kind = "trajectory_msgs/msg/JointTrajectory"
    return Said(at(seconds), "/arm/joint_trajectory", kind, make)


def numbers(seconds: float, values: Any) -> Said:
    def make(types: Any, ros1: bool) -> Any:
        layout = types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
        data = np.asarray(values, np.float64)
        return types["std_msgs/msg/Float64MultiArray"](layout=layout, data=data)

    return Said(at(seconds), "/arm/commands", "std_msgs/msg/Float64MultiArray", make)


def twist(seconds: float, values: Any) -> Said:
    def make(types: Any, ros1: bool) -> Any:
        vector = types["geometry_msgs/msg/Vector3"]
        parts = [vector(*map(float, part)) for part in np.reshape(values, (2, 3))]
        told = types["geometry_msgs/msg/Twist"](*parts)
        stamped = types["geometry_msgs/msg/TwistStamped"]
        return stamped(header=header(types, ros1, at(seconds)), twist=told)

    return Said(at(seconds), "/servo/twist", "geometry_msgs/msg/TwistStamped", make)


def header(types: Any, ros1: bool, stamp: int) -> Any:
    time = types["builtin_interfaces/msg/Time"](sec=stamp // NS, nanosec=stamp % NS)
    first = {"seq": 0} if ros1 else {}
    return types["std_msgs/msg/Header"](**first, stamp=time, frame_id="")


def recording(seconds: float = 1.0, *, seed: int = 0) -> list[Said]:
    """Write a camera at 20 Hz, a compressed one at 10, joints at 100."""
    frames = range(int(seconds * 20))
    return [
        *(joints(0.01 * i) for i in range(int(seconds * 100))),
        *(image(0.05 * i + 0.004, "/front/image_raw", seed + i) for i in frames),
        *(
            compressed(0.05 * i + 0.001, "/wrist/image_raw/compressed", 1000 + seed + i)
            for i in frames[::2]
        ),
    ]


def save(path: Path, said: list[Said]) -> Path:
    """Write a bag; its suffix says which format."""
    pytest.importorskip("rosbags")
    from rosbags.rosbag1 import Writer as Ros1
    from rosbags.rosbag2 import StoragePlugin
    from rosbags.rosbag2 import Writer as Ros2
    from rosbags.typesys import Stores, get_typestore

    ros1 = path.suffix == ".bag"
    store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_JAZZY)
    folder = path.with_suffix("")
    if ros1:
        writer: Any = Ros1(path)
    else:
        plugin = StoragePlugin.MCAP if path.suffix == ".mcap" else StoragePlugin.SQLITE3
        writer = Ros2(folder, version=9, storage_plugin=plugin)
    with writer:
        connections: dict[str, Any] = {}
        for message in sorted(said, key=lambda one: one.recorded):
            topic, kind = message.topic, message.kind
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            made = message.make(store.types, ros1)
            raw = (store.serialize_ros1 if ros1 else store.serialize_cdr)(made, kind)
            writer.write(connections[topic], message.recorded, raw)
    if ros1:
        return path
    (file,) = folder.glob(f"*{path.suffix}")
    file.rename(path)  # the file alone, as many people keep it
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()
    return path


def write(folder: Path) -> Path:
    """Write a folder of three bags, one of each format, and return it."""
    folder.mkdir(parents=True)
    for index, suffix in enumerate(FORMATS):
        save(folder / f"run_{index}.{suffix}", recording(seed=100 * index))
    return folder
