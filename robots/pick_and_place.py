"""Pick and place: the motion of an arm from one place to another, within all of its limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentplan.errors import ShapeError, check_range
from latentplan.robots.description import Arm
from latentplan.robots.kinematics import Kinematics, Unreachable, downward
from latentplan.robots.trajectory import Limits, Path, Trajectory, nodes
from latentplan.shapes import check, check_finite
from latentplan.types import Array

PHASES = ("approach", "grasp", "lift", "move", "lower", "release", "retreat")


@dataclass(frozen=True)
class Motion:
    """A motion of an arm, sampled at equal times: S instants, J joints."""

    dt: float  # s between instants
    q: Array  # (S, J) rad
    dq: Array  # (S, J) rad/s
    ee: Array  # (S, 7) end effector: x, y, z in m, quaternion w, x, y, z
    gripper: Array  # (S,) m between the fingers
    phase: Array  # (S,) index into PHASES

    def __len__(self) -> int:
        """Return S."""
        return len(self.q)

    @property
    def carrying(self) -> slice:
        """The instants at which the gripper holds an object: lift, move and lower."""
        first, last = np.searchsorted(self.phase, [PHASES.index("lift"), PHASES.index("release")])
        return slice(int(first), int(last))

    def part(self, instants: slice) -> Motion:
        """Return the motion at some of the instants."""
        q, dq, ee = self.q[instants], self.dq[instants], self.ee[instants]
        return Motion(self.dt, q, dq, ee, self.gripper[instants], self.phase[instants])


@dataclass(frozen=True)
class _Piece:
    phase: str
    path: Path
    length: float  # m of the end effector's straight line; 0 if the joints move straight


class PickAndPlace:
    """A planner of approach, grasp, lift, move, lower, release and retreat, from home to home.

    Over the table the end effector moves straight down, up, across, down and up; between home and
    the place above the pick the joints move straight. Every path is checked for contacts with the
    table and of the arm with itself, and timed within the arm's limits.
    """

    @dataclass(frozen=True)
    class Config:
        """The heights of a motion, and its speed."""

        share: float = 0.8  # of the maker's velocity limit
        speed: float = 0.5  # m/s of the end effector over the table, at most
        hover: float = 0.05  # m above the table before the grasp and after the release
        grip: float = 0.01  # m between the fingers when they hold an object
        points: int = 7  # way points of a straight line
        deviation: float = 2e-3  # m from the straight line, at most

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("PickAndPlace.share", self.share, 1e-3, 1)
            check_range("PickAndPlace.speed", self.speed, 1e-3, 5)
            check_range("PickAndPlace.hover", self.hover, 0.01, 0.5)
            check_range("PickAndPlace.grip", self.grip, 0, 0.5)
            check_range("PickAndPlace.points", self.points, 3, 30)
            check_range("PickAndPlace.deviation", self.deviation, 1e-5, 0.1)

    STEP = 0.05  # rad, largest turn of a joint between two checks for contacts

    def __init__(
        self, arm: Arm, config: Config | None = None, *, limits: Limits | None = None
    ) -> None:
        """Build the arm's kinematics; `limits` replace `share` of the arm's own."""
        self.arm = arm
        self.config = config or self.Config()
        check_range("PickAndPlace.grip", self.config.grip, 0, arm.gripper.width)
        self.kinematics = Kinematics(arm)
        self._limits = limits or Limits.of(arm, share=self.config.share)

    def plan(
        self,
        pick: Array,
        place: Array,
        *,
        lift: float,
        yaw: float | None = None,
        normal: Array | None = None,
        grip: float | None = None,
        start: Array | None = None,
        dt: float = 0.008,
    ) -> Motion:
        """Return the motion that moves the object at `pick` (3,), m, to `place` (3,), m.

        `lift`, m, is the carrying height above the higher of the two. `yaw`, rad about the
        vertical, is the direction of the end effector's x; the fingers close across it. None leaves
        it free. The hand approaches the pick against `normal` (3,), by default the vertical, and
        keeps that tilt until the release. `grip`, m between the fingers when they hold an object,
        defaults to the config's. A grasp too deep for the finger tips is made as deep as possible.
        `start` (J,), rad, is the arm's present position, by default home; the motion ends at home.
        Raises Unreachable if a part of it is out of reach, collides or leaves the straight line.
        """
        pick, place = np.asarray(pick, np.float64), np.asarray(place, np.float64)
        for where, point in (("pick", pick), ("place", place)):
            check(f"PickAndPlace.{where}", point, "xyz", xyz=3)
            check_finite(f"PickAndPlace.{where}", point)
        check_range("PickAndPlace.lift", lift, 0, 1)
        check_range("PickAndPlace.dt", dt, 1e-4, 0.1)
        grip = self.config.grip if grip is None else grip
        check_range("PickAndPlace.grip", grip, 0, self.arm.gripper.width)
        if normal is not None:
            normal = _unit(normal)
        begin = self.kinematics.home if start is None else np.asarray(start, np.float64)
        try:
            pieces = self._pieces(pick, place, lift=lift, yaw=yaw, normal=normal, begin=begin)
        except Unreachable:
            if yaw is None:
                raise
            # A parallel gripper is the same after half a turn.
            turned = yaw + np.pi
            pieces = self._pieces(pick, place, lift=lift, yaw=turned, normal=normal, begin=begin)
        return self._sampled(pieces, dt, grip=grip)

    def straight(self, start: Array, end: Array, *, dt: float = 0.008) -> Motion:
        """Return the motion with all joints straight from `start` (J,) to `end` (J,), rad.

        The gripper stays open. Raises Unreachable if the path has a contact.
        """
        path = self._checked(Path(np.stack([start, end])))
        return self._sampled([_Piece("retreat", path, 0.0)], dt, grip=self.config.grip)

    def _pieces(
        self,
        pick: Array,
        place: Array,
        *,
        lift: float,
        yaw: float | None,
        normal: Array | None,
        begin: Array,
    ) -> list[_Piece]:
        """Return the motion's paths, with the first position over the pick that allows them all."""
        lowest = self.arm.gripper.tip + 2 * self.kinematics.config.clearance
        pick, place = (np.array([p[0], p[1], max(p[2], lowest)]) for p in (pick, place))
        come = self.config.hover * (np.array([0, 0, 1.0]) if normal is None else normal)
        over = downward(pick + come, yaw=yaw or 0.0, normal=normal)
        refused: Unreachable | None = None
        for ready in self.kinematics.solutions(over, turn=yaw is not None):
            try:
                return self._from(begin, ready, pick, place, come=come, lift=lift, free=yaw is None)
            except Unreachable as e:
                refused = refused or e
        assert refused is not None  # else `solutions` had raised
        raise refused

    def _from(
        self,
        begin: Array,
        ready: Array,
        pick: Array,
        place: Array,
        *,
        come: Array,
        lift: float,
        free: bool,
    ) -> list[_Piece]:
        """Return the motion's paths from `begin` (J,), with the joints at `ready` over the pick."""
        kinematics, hover = self.kinematics, self.config.hover
        bottom, end = pick[2], place[2]
        height = max(bottom, end) + lift
        above = kinematics.forward(ready)
        grasp = _at_height(np.concatenate([above[:2] - come[:2], above[2:]]), bottom)
        lifted = _at_height(grasp, height)
        down, q = self._line(above, grasp, start=ready)
        up, q = self._line(grasp, lifted, start=q)
        over = np.concatenate([place[:2], lifted[2:]])
        if free:  # the gripper may turn on the way
            over = kinematics.forward(kinematics.near(over, q, turn=False))
        across, q = self._line(lifted, over, start=q)
        lowered, away = _at_height(over, end), _at_height(over, end + hover)
        lower, q = self._line(over, lowered, start=q)
        leave, q = self._line(lowered, away, start=q)
        return [
            _Piece("approach", self._high(begin, ready, over=above[2]), 0.0),
            _Piece("grasp", down, hover),
            _Piece("lift", up, height - bottom),
            _Piece("move", across, float(np.linalg.norm(over[:2] - lifted[:2]))),
            _Piece("lower", lower, height - end),
            _Piece("release", leave, hover),
            _Piece("retreat", self._high(q, kinematics.home, over=away[2]), 0.0),
        ]

    def _line(self, first: Array, last: Array, *, start: Array) -> tuple[Path, Array]:
        """Return a joint path on which the end effector moves straight, and its end (J,)."""
        if np.allclose(first, last, atol=1e-9):
            return Path(np.stack([start, start])), start
        points = [start]
        for pose in _between(first, last, nodes(self.config.points)[1:]):
            points.append(self.kinematics.near(pose, points[-1]))
        path = self._checked(Path(np.stack(points)))
        # If joints flip on the way, the way points are right, but the path between them is not.
        s = np.linspace(0, 1, 3 * self.config.points)
        gap = self.kinematics.forward(path.at(s))[:, :3] - _between(first, last, s)[:, :3]
        worst = float(np.linalg.norm(gap, axis=1).max())
        if worst > self.config.deviation:
            raise self._refused(path, f"only off the straight line, by {worst:.3f} m")
        return path, path.end

    def _high(self, first: Array, last: Array, *, over: float) -> Path:
        """Return the path on which all joints move straight, no lower than `over` m."""
        path = self._checked(Path(np.stack([first, last])))
        heights = self.kinematics.forward(path.at(np.linspace(0, 1, 3 * self.config.points)))[:, 2]
        if heights.min() < over - self.config.deviation:
            raise self._refused(path, f"only through {heights.min():.3f} m above the table")
        return path

    def _checked(self, path: Path) -> Path:
        """Return the path; Unreachable if it leaves the joint limits or has a contact."""
        turned = float(np.abs(path.at(np.linspace(0, 1, 16), order=1)).max())
        positions = path.at(np.linspace(0, 1, 4 + int(turned / self.STEP)))
        low, high = self.arm.column("low"), self.arm.column("high")
        if not np.allclose(positions, np.clip(positions, low, high), rtol=0, atol=1e-6):
            raise self._refused(path, "only beyond the joints' limits")
        for q in positions:
            touching = self.kinematics.contact(q)
            if touching:
                raise self._refused(path, f"only with {touching} in contact")
        return path

    def _refused(self, path: Path, why: str) -> Unreachable:
        x, y, z = self.kinematics.forward(path.end)[:3]
        return Unreachable(
            f"{self.arm.name}.path: ({x:.3f}, {y:.3f}, {z:.3f}) m is reached {why}; "
            "choose another pick, place or angle"
        )

    def _sampled(self, pieces: list[_Piece], dt: float, *, grip: float) -> Motion:
        """Return the motion of the pieces in order, with the gripper's moves between them."""
        gripper, c = self.arm.gripper, self.config
        pause = (gripper.width - grip) / gripper.speed  # s for the fingers' move
        q, dq, width, phase = [], [], [], []
        opening = gripper.width
        for piece in pieces:
            speed = c.speed / piece.length if piece.length > 0 else np.inf
            timed = Trajectory(piece.path, self._limits, speed=speed)
            closing = piece.phase == "grasp"  # at its end; the release opens at its start
            waits = pause if closing or piece.phase == "release" else 0.0
            t = np.arange(1, 1 + int(np.ceil((timed.duration + waits) / dt))) * dt
            moved = timed.at(t if closing else t - waits)
            since = t - timed.duration if closing else t
            if waits:
                ends = (gripper.width, grip) if closing else (grip, gripper.width)
                widths = np.interp(since, [0, pause], ends)
                opening = ends[1]
            else:
                widths = np.full(len(t), opening)
            q.append(moved[0])
            dq.append(moved[1])
            width.append(widths)
            phase.append(np.full(len(t), PHASES.index(piece.phase)))
        positions = np.concatenate([pieces[0].path.start[None], *q])
        return Motion(
            dt=dt,
            q=positions,
            dq=np.concatenate([np.zeros_like(positions[:1]), *dq]),
            ee=self.kinematics.forward(positions),
            gripper=np.concatenate([[gripper.width], *width]),
            phase=np.concatenate([[0], *phase]),
        )


def _unit(normal: Array) -> Array:
    """Return a direction (3,) of length 1; ShapeError if it does not point up from the table."""
    normal = np.asarray(normal, np.float64)
    check("PickAndPlace.normal", normal, "xyz", xyz=3)
    check_finite("PickAndPlace.normal", normal)
    length = float(np.linalg.norm(normal))
    if not length > 1e-6 or normal[2] / length < 0.5:
        raise ShapeError(
            f"PickAndPlace.normal: found {normal.tolist()}, need a direction within 60 degrees of "
            "the vertical; the hand approaches from above"
        )
    return np.asarray(normal / length)


def _at_height(pose: Array, height: float) -> Array:
    """Return the pose (7,) at another height."""
    return np.concatenate([pose[:2], [height], pose[3:]])


def _between(first: Array, last: Array, s: Array) -> Array:
    """Return the poses (S, 7) at shares s (S,) of the straight line between two poses (7,)."""
    # Both grippers point down, so the quaternions differ by a turn about one axis.
    end = last if first[3:] @ last[3:] >= 0 else np.concatenate([last[:3], -last[3:]])
    angle = np.arccos(np.clip(first[3:] @ end[3:], -1, 1))
    poses: Array = first + np.asarray(s)[:, None] * (end - first)
    if angle > 1e-6:  # slerp (Shoemake 1985)
        share = np.asarray(s)[:, None]
        turned = np.sin((1 - share) * angle) * first[3:] + np.sin(share * angle) * end[3:]
        poses[:, 3:] = turned / np.sin(angle)
    return poses
