"""The protocols of an arm: `Robot` for planners, `Driver` for backends.

`Robot` is for users and planners; its `send` has the safety filter inside. `Driver` is the
bare transport beneath: it reads sensors and writes setpoints, and checks nothing.
Units are SI: rad, rad/s, m, s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from latentplan.errors import RobotError, StoreError
from latentplan.types import Array, Observation, Spec


class Command(NamedTuple):
    """A planner's command, with its sequence number and time stamp."""

    action: Array  # (J + 1,): J joints in the filter's `control`, gripper 0 closed to 1 open
    sequence: int  # grows with every new action; the same number is the same action, held
    stamp: float  # s on the robot's clock: time of the observation that the command answers


class Setpoint(NamedTuple):
    """The setpoint of one tick, and the filter's changes to the command."""

    q: Array  # (J,) rad
    dq: Array  # (J,) rad/s
    ddq: Array  # (J,) rad/s^2
    gripper: float  # m between the fingers
    interventions: tuple[str, ...] = ()  # late, velocity, position, workspace, solver
    fault: str = ""  # the reason, if this is the first setpoint of a stop


class Reading(NamedTuple):
    """A reading of the joint sensors."""

    stamp: float  # s on the sensors' clock: time of the measurement
    received: float  # s on the robot's clock: time of arrival
    q: Array  # (J,) rad, in the order of the arm's joints
    dq: Array  # (J,) rad/s
    gripper: float  # m between the fingers


class CameraImage(NamedTuple):
    """An image of a camera."""

    stamp: float  # s on the camera's clock
    received: float  # s on the robot's clock
    pixels: Array  # (h, w, 3) uint8


@dataclass(frozen=True)
class RobotSpec:
    """The joints, limits and rates of an arm, shared by planner and safety filter."""

    name: str
    joints: tuple[str, ...]  # names, in the order of every (J,)
    low: tuple[float, ...]  # (J,) rad, a limit on setpoints, as are the next four
    high: tuple[float, ...]  # (J,) rad
    velocity: tuple[float, ...]  # (J,) rad/s
    acceleration: tuple[float, ...]  # (J,) rad/s^2
    jerk: tuple[float, ...]  # (J,) rad/s^3
    dt: float  # s between setpoints
    period: float  # s that an action holds
    data: Spec  # its observations and actions, in a store and a model

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` is the inverse."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"data": self.data.to_json()}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> RobotSpec:
        """Return the RobotSpec of the values of `to_json`; RobotError if they are invalid."""
        try:
            data = Spec.from_json(values["data"])
            lists = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            filled: dict[str, Any] = lists | {"data": data}
            return RobotSpec(**filled)
        except (KeyError, TypeError, StoreError) as e:
            raise RobotError(f"robot spec: invalid ({type(e).__name__}: {e})") from None


@dataclass(frozen=True)
class Health:
    """The health of an arm, for people and for logs."""

    state: str  # disconnected, ready, armed, stopping, hold, fault
    reason: str  # the reason that it is no longer armed; else empty
    ages: Mapping[str, float]  # s since the last data of each source: `joints` and the cameras
    interventions: Mapping[str, int] = field(default_factory=dict)  # how often, by kind
    ticks: int = 0  # control ticks so far
    overruns: int = 0  # late ticks so far


class Robot(Protocol):
    """An arm under a planner's control: a context manager that stops the arm at exit."""

    @property
    def spec(self) -> RobotSpec:
        """Return names, units, limits and rates; they do not change while connected."""

    def __enter__(self) -> Self:
        """Connect, wait for data of every sensor, and arm at the measured joints.

        Raises RobotError if a sensor stays silent or the arm moves or is out of its limits.
        """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the arm, wait until it rests, and disconnect."""

    def observe(self) -> Observation:
        """Return the newest sensor data: `q`, `dq`, `gripper`, and an image per camera."""

    def send(self, action: Array) -> Array:
        """Filter and send `action` (A,) for `spec.period` s; return the action that was sent.

        Raises RobotError, with the arm at rest, if a limit or a sensor fails; ShapeError if
        `action` is invalid.
        """

    def stop(self, reason: str) -> None:
        """Bring the arm to rest within its limits, now; `send` is refused until it is armed."""

    def health(self) -> Health:
        """Return the health of the arm; safe at any time."""


class View(Protocol):
    """A camera, simulated or real: the size of its images, its lens and its pose."""

    @property
    def name(self) -> str:
        """Return the key of its images in observations."""

    @property
    def width(self) -> int:
        """Return pixels from left to right."""

    @property
    def height(self) -> int:
        """Return pixels from top to bottom."""

    def intrinsics(self) -> Array:
        """Return K (3, 3): pixels (u, v, 1) ~ K (x, y, z) of the camera frame."""

    def extrinsics(self) -> Array:
        """Return (4, 4) world -> camera, homogeneous."""


class Driver(Protocol):
    """The transport to one arm: no limits, no checks; a failure raises RobotError.

    A class is called as `Driver(arm, config, *, cameras)` with views as `cameras`, has a dataclass
    `Config` of its settings, and is registered as a `backend`.
    """

    cameras: tuple[str, ...]

    def open(self) -> None:
        """Connect; the first data of a sensor may come later."""

    def now(self) -> float:
        """Return the robot's clock, s: monotonic, and of this process."""

    def wait(self, until: float) -> None:
        """Wait until `until` s on that clock; return at once if it has passed."""

    def reading(self) -> Reading | None:
        """Return the newest joint reading; None before the first."""

    def images(self) -> Mapping[str, CameraImage]:
        """Return the newest image of each camera that has sent one."""

    def write(self, setpoint: Setpoint) -> None:
        """Send a setpoint to the motors; finite, within limits, and due at the next tick."""

    def close(self) -> None:
        """Disconnect; the arm holds its last setpoint. May be called twice."""


def in_order(wanted: Sequence[str], names: Sequence[str], values: Sequence[float]) -> Array:
    """Return the values (J,) of the joints `wanted`, from a message that names its own order.

    Joints that are not wanted (a gripper's, a wheel's, another arm's) are left out. Raises
    RobotError if one is missing, named twice, or without a value.
    """
    absent = [name for name in wanted if name not in names]
    if absent:
        raise missing(absent, names)
    if any(list(names).count(name) > 1 for name in wanted) or len(values) != len(names):
        raise RobotError(
            f"joint_states: found {len(values)} values for the names {', '.join(names)}; "
            "each joint needs one name and one value"
        )
    return np.array([values[names.index(name)] for name in wanted], np.float64)


def missing(joints: Sequence[str], names: Sequence[str]) -> RobotError:
    """Return the error for joints that are not among the names of a message."""
    return RobotError(
        f"joint_states.name: {', '.join(joints)} missing, found {', '.join(names) or 'none'}; "
        "use the description of the arm that sends them"
    )
