"""The execution of picks on a real table: image points become motions of an arm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentplan.data.images import LIFT, action_to_pixel
from latentplan.errors import ShapeError, check_range
from latentplan.real_robot.link.remote import RemoteRobot
from latentplan.real_robot.motion.hold_position import hold_position_while
from latentplan.real_robot.motion.tracking import Tracking, TrackingResult
from latentplan.real_robot.robot import Robot, View
from latentplan.robots.camera import CalibratedCamera
from latentplan.robots.description import Arm
from latentplan.robots.kinematics import Unreachable
from latentplan.robots.pick_and_place import Motion, PickAndPlace
from latentplan.robots.trajectory import Limits
from latentplan.shapes import check, check_finite
from latentplan.types import Array

SHOWN = 50  # points of a motion's preview


@dataclass(frozen=True)
class PickResult:
    """The outcome of one action."""

    pick: tuple[float, float]  # m on the table
    place: tuple[float, float]  # m on the table
    refused: str = ""  # the reason that nothing moved; empty if the arm moved
    tracked: TrackingResult | None = None  # the tracking errors of the motion


class Picking:
    """The execution of a `PickSpec`'s actions by a `Robot`: approach, grasp, drag, release.

    An action is (x, y) of the image, +-1 at its edges, then the drag in units of `drag` metres
    along the image's right and up, then, if there is a fifth, the lift, as in the envs `rope` and
    `cloth`. The camera maps a pixel to a point of the table. A motion is planned from the measured
    joints, within shares of the limits of the arm's filter, so that the filter changes nothing; it
    ends at home, out of the camera's view.
    """

    @dataclass(frozen=True)
    class Config:
        """The heights on the table, and the speeds of the motion."""

        drag: float = 0.1  # m, length of a drag of 1
        workspace: float = 0.25  # m, largest |x|, |y| of a drag's end
        surface: float = 0.009  # m above the table: the height that pixels are projected to
        height: float = 0.016  # m above the table, the end effector's height at a grasp
        lift: float = 0.03  # m, height of a drag's middle if an action has no fifth number
        velocity: float = 0.8  # share of the filter's limit
        acceleration: float = 0.5  # share of the filter's limit
        jerk: float = 0.5  # share of the filter's limit

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("Picking.drag", self.drag, 1e-3, 1)
            check_range("Picking.workspace", self.workspace, 1e-2, 2)
            check_range("Picking.surface", self.surface, 0, 0.5)
            check_range("Picking.height", self.height, 0, 0.5)
            check_range("Picking.lift", self.lift, 0, 0.5)
            for name in ("velocity", "acceleration", "jerk"):
                check_range(f"Picking.{name}", getattr(self, name), 0.05, 0.95)

    def __init__(
        self,
        robot: Robot,
        arm: Arm,
        *,
        camera: View,
        config: Config | None = None,
        tracking: Tracking.Config | None = None,
    ) -> None:
        """Take a connected robot, its description, and the camera whose image actions refer to."""
        self.robot, self.arm, self.camera = robot, arm, camera
        self.config = c = config or self.Config()
        spec = robot.spec
        limits = Limits(
            c.velocity * np.array(spec.velocity),
            c.acceleration * np.array(spec.acceleration),
            c.jerk * np.array(spec.jerk),
        )
        self._planner = PickAndPlace(arm, limits=limits)
        self._tracking = Tracking(robot, tracking, width=arm.gripper.width)

    def act(self, action: Array) -> PickResult:
        """Execute an action (4,) or (5,); one out of reach is refused, and nothing moves.

        Raises ShapeError if the action is invalid, RobotError if the arm stops.
        """
        action = np.asarray(action, np.float64)
        check("Picking.action", action, "A", A=5 if len(action) == 5 else 4)
        check_finite("Picking.action", action)
        if np.abs(action).max() > 1 + 1e-6:
            raise ShapeError(f"Picking.action: {action.tolist()} is not within [-1, 1]")
        pick, place = self.points(action)
        lift = self.config.lift if len(action) == 4 else np.interp(action[4], (-1, 1), LIFT)
        known = (float(pick[0]), float(pick[1])), (float(place[0]), float(place[1]))
        q = self.robot.observe()["q"].astype(np.float64)
        height = self.config.height
        ends = np.append(pick, height), np.append(place, height)
        try:
            motion = hold_position_while(
                self.robot, lambda: self._planner.plan(*ends, lift=float(lift), start=q)
            )
        except Unreachable as e:
            return PickResult(*known, refused=str(e))
        return PickResult(*known, tracked=self._follow(motion))

    def home(self) -> TrackingResult:
        """Move the arm home, straight in joints, with the gripper open. Raises Unreachable."""
        q = self.robot.observe()["q"].astype(np.float64)
        home = self._planner.kinematics.home
        return self._follow(
            hold_position_while(self.robot, lambda: self._planner.straight(q, home))
        )

    def points(self, action: Array) -> tuple[Array, Array]:
        """Return the pick and the place of an action, each (2,) m on the table."""
        c, camera = self.config, self.camera
        row, column = action_to_pixel(
            action[0], action[1], height=camera.height, width=camera.width
        )
        pick = on_table(camera, np.array([column, row]), height=c.surface)
        right, down = camera.extrinsics()[:2, :3]
        along = action[2] * _level(right) - action[3] * _level(down)
        return pick, np.clip(pick + c.drag * along, -c.workspace, c.workspace)

    def _follow(self, motion: Motion) -> TrackingResult:
        """Publish the path as a preview, and follow it."""
        if isinstance(self.robot, RemoteRobot):
            self.robot.preview(motion.ee[:: max(1, len(motion) // SHOWN), :3])
        return self._tracking.follow(motion)


def on_table(camera: View, pixel: Array, *, height: float) -> Array:
    """Return the point (2,), m, at `height` m above the table that a pixel (u, v) shows.

    Raises ShapeError if the pixel's ray misses the table.
    """
    if isinstance(camera, CalibratedCamera):  # removes the lens's distortion, too
        seen: Array = camera.on_plane(pixel, np.array([0.0, 0.0, 1.0, -height]))[:2]
        if not np.isfinite(seen).all():
            raise _past(camera, pixel)
        return seen
    extrinsics = camera.extrinsics()
    ray = extrinsics[:3, :3].T @ np.linalg.solve(camera.intrinsics(), [*pixel, 1.0])
    eye = -extrinsics[:3, :3].T @ extrinsics[:3, 3]
    if ray[2] > -1e-6:
        raise _past(camera, pixel)
    point: Array = eye[:2] + (height - eye[2]) / ray[2] * ray[:2]
    return point


def _past(camera: View, pixel: Array) -> ShapeError:
    return ShapeError(f"camera {camera.name}: pixel {pixel.tolist()} does not show the table")


def _level(axis: Array) -> Array:
    """Return the direction (2,) on the table of an image's axis (3,)."""
    flat: Array = axis[:2] / np.linalg.norm(axis[:2])
    return flat
