"""The description of an arm: joints, limits, links and gripper, read from a file of values.

A shipped arm is `configs/robot/<name>.yaml`; any other arm is a file of the same form, or a URDF,
so a new arm is configuration alone. There are no meshes: links are capsules, as collision checks
use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from latentplan import config
from latentplan.errors import ConfigError, check_range
from latentplan.robots import camera, urdf
from latentplan.robots.camera import CalibratedCamera
from latentplan.types import Array

NEEDED = ("low", "high", "velocity", "acceleration", "jerk")  # fields of a joint without a default
Triple = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]  # w, x, y, z
Capsules = tuple[tuple[float, ...], ...]  # from x, y, z to x, y, z, radius; m, in the link's frame


@dataclass(frozen=True)
class Joint:
    """A revolute joint about z of its frame, and the link that it turns.

    The place of that frame in the previous link is a pose (`position`, `rotation`), a
    Denavit-Hartenberg row (`a`, `alpha`, `d`) in Craig's convention (Introduction to Robotics,
    section 3.5: turn by alpha about x, move a along x, and d along the new z), or the row in the
    frame of the pose.
    """

    name: str = ""
    a: float = 0.0  # m
    alpha: float = 0.0  # rad
    d: float = 0.0  # m
    position: Triple = (0.0, 0.0, 0.0)  # m, in the frame of the previous link
    rotation: Quaternion = (1.0, 0.0, 0.0, 0.0)  # w, x, y, z, in that frame
    low: float = -np.pi  # rad
    high: float = np.pi  # rad
    velocity: float = 1.0  # rad/s
    acceleration: float = 5.0  # rad/s^2
    jerk: float = 100.0  # rad/s^3
    torque: float = 50.0  # N m
    home: float = 0.0  # rad, the waiting position, out of the camera's view
    mass: float = 1.0  # kg, of the link
    capsules: Capsules = ()  # the link's shape

    def __post_init__(self) -> None:
        """Raise ConfigError if a field is out of its range."""
        check_range("Joint.low", self.low, -4 * np.pi, 4 * np.pi)
        check_range("Joint.high", self.high, self.low + 1e-3, 4 * np.pi)
        check_range("Joint.home", self.home, self.low, self.high)
        for name in ("velocity", "acceleration", "jerk", "torque", "mass"):
            check_range(f"Joint.{name}", getattr(self, name), 1e-3, 1e6)
        for name in ("a", "alpha", "d"):
            check_range(f"Joint.{name}", getattr(self, name), -10, 10)
        _check_pose("Joint", self.position, self.rotation)
        _check_capsules("Joint.capsules", self.capsules)

    def origin(self) -> Array:
        """Return the transform (4, 4) of the joint's frame at angle 0 -> the previous link's."""
        c, s = np.cos(self.alpha), np.sin(self.alpha)
        row = np.array(
            [
                [1, 0, 0, self.a],
                [0, c, -s, -s * self.d],
                [0, s, c, c * self.d],
                [0, 0, 0, 1],
            ]
        )
        return row if _is_identity(self) else pose(self.position, self.rotation) @ row


@dataclass(frozen=True)
class Gripper:
    """A parallel gripper on the flange; its end effector frame lies between the finger tips.

    Its z points out of the hand; the fingers open along y.
    """

    name: str = ""
    yaw: float = 0.0  # rad about the flange's z
    length: float = 0.15  # m from the flange to the end effector frame
    tip: float = 0.005  # m of the fingers beyond the end effector frame
    width: float = 0.08  # m between the fingers when open
    speed: float = 0.1  # m/s at which the width changes
    force: float = 50.0  # N
    mass: float = 0.8  # kg
    finger: float = 0.05  # m, length of a finger
    capsules: Capsules = ()  # the hand's shape, from the flange; the fingers are added

    def __post_init__(self) -> None:
        """Raise ConfigError if a field is out of its range."""
        check_range("Gripper.yaw", self.yaw, -2 * np.pi, 2 * np.pi)
        check_range("Gripper.length", self.length, self.finger, 1)
        check_range("Gripper.tip", self.tip, 0, 0.1)
        for name in ("width", "speed", "force", "mass", "finger"):
            check_range(f"Gripper.{name}", getattr(self, name), 1e-3, 1e3)
        _check_capsules("Gripper.capsules", self.capsules)


@dataclass(frozen=True)
class Arm:
    """A serial arm of J revolute joints on the table, and its gripper.

    The world's origin is the centre of the table top; x points away from the arm, z up.
    """

    name: str = ""
    source: str = ""  # the source of the values
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)  # m, the base
    yaw: float = 0.0  # rad, the base's turn about z
    base_capsules: Capsules = ()  # the shape of the fixed base, in its frame
    reach: float = 1.0  # m from the shoulder to the flange, at most; for messages
    tip_position: Triple = (0.0, 0.0, 0.0)  # m, the tip's frame in that of the last link
    tip_rotation: Quaternion = (1.0, 0.0, 0.0, 0.0)  # w, x, y, z, in that frame
    flange: float = 0.0  # m along z of the tip's frame
    joints: tuple[Joint, ...] = ()
    gripper: Gripper = field(default_factory=Gripper)
    cameras: tuple[CalibratedCamera, ...] = ()  # at the table, or on the flange

    def __post_init__(self) -> None:
        """Raise ConfigError if a field is out of its range."""
        names = [joint.name for joint in self.joints]
        if "" in names or len(set(names)) < len(names):
            raise ConfigError(f"Arm.joints: found names {names}, each needs one of its own")
        views = [view.name for view in self.cameras]
        if "" in views or len(set(views)) < len(views):
            raise ConfigError(f"Arm.cameras: found names {views}, each needs one of its own")
        for axis, value in zip("xyz", self.position, strict=True):
            check_range(f"Arm.position.{axis}", value, -10, 10)
        check_range("Arm.yaw", self.yaw, -np.pi, np.pi)
        check_range("Arm.reach", self.reach, 0.05, 10)
        check_range("Arm.flange", self.flange, 0, 1)
        _check_pose("Arm.tip", self.tip_position, self.tip_rotation)
        _check_capsules("Arm.base_capsules", self.base_capsules)

    def column(self, name: str) -> Array:
        """Return one field of all joints (J,): `low`, `velocity`, `home`, ..."""
        return np.array([getattr(joint, name) for joint in self.joints], np.float64)

    def tip(self) -> Array:
        """Return the transform (4, 4) tip -> last link."""
        return pose(self.tip_position, self.tip_rotation)


def pose(position: Triple, rotation: Quaternion) -> Array:
    """Return (4, 4), homogeneous, of a position (m) and a unit quaternion w, x, y, z."""
    w, x, y, z = np.array(rotation) / np.linalg.norm(rotation)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), position[0]],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x), position[1]],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y), position[2]],
            [0, 0, 0, 1],
        ]
    )


def load(name: str) -> Arm:
    """Return the arm of that name (`panda`, `ur5e`), or of a file: YAML of the same form, or URDF.

    Values that a URDF lacks are read from the YAML file of the same name beside it. Raises
    UnknownName for a name that is not shipped, ConfigError for a file that is not an arm.
    """
    folder = Path(name).parent  # folder of the camera files that it names
    if name.endswith((".yaml", ".yml")):
        values = config.read_yaml(name)
        values.pop("base", None)
    elif name.endswith(".urdf"):
        values = urdf.read(Path(name), required=NEEDED)
    else:
        values = dict(config.resolve("robot", name).values)
    try:
        return _arm(values, folder)
    except ConfigError as e:
        raise ConfigError(f"robot {name}: {e}") from None


def _arm(values: dict[str, Any], folder: Path) -> Arm:
    rows = values.pop("joints", None)
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ConfigError("Arm.joints: need a list of joints, each a mapping of its values")
    if not 3 <= len(rows) <= 12:
        raise ConfigError(f"Arm.joints: found {len(rows)}, allowed are 3 to 12")
    for i, row in enumerate(rows):
        missing = [name for name in NEEDED if name not in row]
        if missing:
            where = f"Arm.joints.{row.get('name', i)}"
            raise ConfigError(f"{where}: {', '.join(missing)} missing; see the arm's data sheet")
    joints = tuple(config.from_values(Joint, row) for row in rows)
    views = values.pop("cameras", None) or []
    if not isinstance(views, list) or not all(isinstance(row, Mapping | str) for row in views):
        raise ConfigError(
            "Arm.cameras: need a list; each is a mapping of values, or a file of them that "
            "latentplan calibrate wrote"
        )
    cameras = tuple(
        camera.load(str(folder / row)) if isinstance(row, str) else camera.from_row(row)
        for row in views
    )
    return replace(config.from_values(Arm, values), joints=joints, cameras=cameras)


def _is_identity(joint: Joint) -> bool:
    return joint.position == (0.0, 0.0, 0.0) and joint.rotation == (1.0, 0.0, 0.0, 0.0)


def _check_pose(where: str, position: Triple, rotation: Quaternion) -> None:
    for axis, value in zip("xyz", position, strict=True):
        check_range(f"{where}.position.{axis}", value, -10, 10)
    length = float(np.linalg.norm(rotation))
    if not abs(length - 1) < 1e-3:  # NaN fails too
        raise ConfigError(
            f"{where}.rotation: found {list(rotation)} of length {length:.4g}, need a unit "
            "quaternion w, x, y, z"
        )


def _check_capsules(where: str, capsules: Capsules) -> None:
    for capsule in capsules:
        numbers = all(isinstance(value, int | float) for value in capsule)
        if len(capsule) != 7 or not numbers or not np.isfinite(capsule).all() or capsule[6] <= 0:
            raise ConfigError(
                f"{where}: found {list(capsule)}, need [x, y, z, x, y, z, radius] in m"
            )
