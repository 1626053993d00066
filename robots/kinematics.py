"""Forward and inverse kinematics of an arm, by MuJoCo and mink.

A pose is (7,): x, y, z in metres, then the quaternion w, x, y, z, of the end effector in the
world. The world's origin is the centre of the table top.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentplan.errors import LatentplanError, MissingDependency, ShapeError, check_range
from latentplan.robots import mjcf
from latentplan.robots.description import Arm
from latentplan.shapes import check, check_finite
from latentplan.types import Array


class Unreachable(LatentplanError, ValueError):
    """No joint position, or no collision-free path, brings the arm to its target."""


class Kinematics:
    """An arm over a table: forward and inverse kinematics, and contacts.

    Inverse kinematics is a sequence of quadratic programs (mink): they minimise the end effector's
    error and, with little weight, the distance to the home position (which fixes the redundancy of
    a seventh joint), within the joint limits and a step that the joints' velocities allow. It
    starts at home turned towards the target, then at seeded random positions.
    """

    @dataclass(frozen=True)
    class Config:
        """The tolerances of inverse kinematics, and the limits of its search."""

        tolerance: float = 1e-4  # m
        turn_tolerance: float = 1e-3  # rad
        starts: int = 6  # positions to start from before a target counts as out of reach
        iterations: int = 40  # from each start
        step: float = 0.25  # s, the longest step of a joint in an iteration, at full speed
        posture: float = 3e-4  # weight of the distance to home, against 1 for the pose
        margin: float = 0.02  # rad from the joints' limits, so that curves between points fit too
        clearance: float = 1e-3  # m between the arm and the table, at least

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("Kinematics.tolerance", self.tolerance, 1e-7, 0.1)
            check_range("Kinematics.turn_tolerance", self.turn_tolerance, 1e-7, 0.5)
            check_range("Kinematics.starts", self.starts, 1, 1000)
            check_range("Kinematics.iterations", self.iterations, 1, 10_000)
            check_range("Kinematics.step", self.step, 1e-3, 10)
            check_range("Kinematics.posture", self.posture, 0, 0.1)
            check_range("Kinematics.margin", self.margin, 0, 0.1)
            check_range("Kinematics.clearance", self.clearance, 0, 0.1)

    def __init__(self, arm: Arm, config: Config | None = None) -> None:
        """Build the arm's model; MissingDependency without mink or its solver."""
        import mujoco

        mink = _mink()
        self.arm = arm
        self.config = config or self.Config()
        self.home = arm.column("home")  # (J,) rad
        spec = mujoco.MjSpec()
        spec.worldbody.add_geom(
            name="table",
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            size=(2, 2, 0.1),
            margin=self.config.clearance,
        )
        mjcf.add(spec, arm, solid=True, fingers=False)
        # The fixed base may touch the table.
        spec.add_exclude(bodyname1="world", bodyname2="base")
        self.model = spec.compile()
        self.model.jnt_range += np.array([self.config.margin, -self.config.margin])
        self._low, self._high = self.model.jnt_range.T
        self._mujoco, self._mink = mujoco, mink
        self._configuration = mink.Configuration(self.model)
        self._data = self._configuration.data
        self._ee = self.model.body(mjcf.EE).id
        self._task = mink.FrameTask(mjcf.EE, "body", 1.0, 1.0, lm_damping=1e-3)
        self._posture = mink.PostureTask(self.model, cost=self.config.posture)
        self._posture.set_target(self.home)
        speeds = {joint.name: np.array([joint.velocity]) for joint in arm.joints}
        self._limits = [mink.ConfigurationLimit(self.model), mink.VelocityLimit(self.model, speeds)]

    def forward(self, q: Array) -> Array:
        """Return the poses (..., 7) of the end effector at joint positions (..., J), rad."""
        q = np.asarray(q, np.float64)
        joints = len(self.home)
        if q.shape[-1:] != (joints,):
            raise ShapeError(f"Kinematics.q: found shape {q.shape}, need (..., J={joints})")
        poses = np.empty((*q.shape[:-1], 7))
        for index in np.ndindex(q.shape[:-1]):
            self._place(q[index])
            poses[index] = self._pose()
        return poses

    def inverse(self, pose: Array, *, turn: bool = True) -> Array:
        """Return joint positions (J,), rad, that bring the end effector to `pose` (7,).

        Without `turn`, the angle about the end effector's z is free. The result is within the joint
        limits and free of contacts. Raises Unreachable.
        """
        return next(self.solutions(pose, turn=turn))

    def near(self, pose: Array, start: Array, *, turn: bool = True) -> Array:
        """Return the joint positions (J,) of `pose` near `start` (J,).

        As `inverse`, but from `start` alone, and as near to it as the pose allows: near poses get
        near positions. Raises Unreachable.
        """
        start = np.asarray(start, np.float64)
        return next(self._solutions(_checked(pose), [start], start, turn=turn))

    def solutions(self, pose: Array, *, turn: bool = True) -> Iterator[Array]:
        """Yield the solution of `inverse` from each of its starts, the likeliest first."""
        pose = _checked(pose)
        return self._solutions(pose, self._starts(pose), self.home, turn=turn)

    def _solutions(
        self, pose: Array, starts: list[Array], posture: Array, *, turn: bool
    ) -> Iterator[Array]:
        """Yield the solutions from `starts`; Unreachable if there is none."""
        target = self._mink.SE3(np.concatenate([pose[3:], pose[:3]]))
        nearest, touching, count = np.inf, "", 0
        for start in starts:
            # Set each time, since between two yields the caller may request another pose.
            self._task.set_target(target)
            self._task.set_orientation_cost([1.0, 1.0, 1.0 if turn else 0.0])
            self._posture.set_target(posture)
            error, found = self._descend(start)
            nearest = min(nearest, error)
            if found is None:
                continue
            touching = self.contact(found)
            if not touching:
                count += 1
                yield found
        if count == 0:
            raise Unreachable(self._refusal(pose[:3], nearest, touching))

    def contact(self, q: Array) -> str:
        """Return a contact at q (J,), such as `hand and table`; empty if there is none."""
        self._place(q)
        self._mujoco.mj_collision(self.model, self._data)
        if self._data.ncon == 0:
            return ""
        bodies = self.model.geom_bodyid[self._data.contact.geom[0]]
        names = ["table" if b == 0 else self.model.body(b).name for b in bodies]
        return " and ".join(reversed(names))

    def _starts(self, pose: Array) -> list[Array]:
        """Return the positions (J,) to start from, the likeliest first."""
        facing = self.home.copy()
        offset = pose[:2] - self.arm.position[:2]
        azimuth = np.arctan2(offset[1], offset[0])
        turn = (azimuth - self._azimuth() + np.pi) % (2 * np.pi) - np.pi
        facing[0] = np.clip(facing[0] + turn, self._low[0], self._high[0])
        spread = (self._high - self._low) / 6
        noise = np.random.default_rng(0).normal(size=(self.config.starts, len(facing)))
        noise[0] = 0
        return list(np.clip(facing + spread * noise, self._low, self._high))

    def _azimuth(self) -> float:
        """Return the direction of the end effector from the base at home, rad."""
        x, y = self.forward(self.home)[:2] - self.arm.position[:2]
        return float(np.arctan2(y, x))

    def _descend(self, q: Array) -> tuple[float, Array | None]:
        """Return the least distance, m, and the position (J,) if it is within tolerance."""
        c, configuration = self.config, self._configuration
        configuration.update(np.clip(q, self._low, self._high))
        nearest, weighted = np.inf, self._task.cost[3:] > 0
        for _ in range(c.iterations):
            error = self._task.compute_error(configuration)
            distance = float(np.linalg.norm(error[:3]))
            nearest = min(nearest, distance)
            if distance < c.tolerance and np.linalg.norm(error[3:][weighted]) < c.turn_tolerance:
                q = configuration.q.copy()
                return distance, np.clip(q, self._low, self._high)
            try:
                velocity = self._mink.solve_ik(
                    configuration,
                    [self._task, self._posture],
                    c.step,
                    "daqp",
                    damping=1e-9,
                    limits=self._limits,
                )
            except self._mink.NoSolutionFound:  # the next start may succeed
                break
            configuration.integrate_inplace(velocity, c.step)
        return nearest, None

    def _place(self, q: Array) -> None:
        self._data.qpos[:] = q
        self._mujoco.mj_kinematics(self.model, self._data)

    def _pose(self) -> Array:
        return np.concatenate([self._data.xpos[self._ee], self._data.xquat[self._ee]])

    def _refusal(self, target: Array, nearest: float, touching: str) -> str:
        x, y, z = target
        at = f"{self.arm.name}.target: ({x:.3f}, {y:.3f}, {z:.3f}) m"
        if touching:
            return f"{at} is reached only with {touching} in contact; choose another target"
        if nearest <= self.config.tolerance:
            return f"{at} is reached, but not with that angle; choose another angle or position"
        bx, by, bz = self.arm.position
        return (
            f"{at} is out of reach, {nearest:.3f} m is the nearest found; the arm reaches "
            f"{self.arm.reach} m from ({bx}, {by}, {bz}): move the target or the arm"
        )


def _checked(pose: Array) -> Array:
    """Return a pose (7,) with a unit quaternion; ShapeError if it is not a pose."""
    pose = np.asarray(pose, np.float64)
    check("Kinematics.pose", pose, "n", n=7)
    check_finite("Kinematics.pose", pose)
    length = float(np.linalg.norm(pose[3:]))
    if length < 1e-6:
        raise ShapeError("Kinematics.pose: found a quaternion of length 0, need w, x, y, z")
    return np.concatenate([pose[:3], pose[3:] / length])


def downward(position: Array, *, yaw: float = 0.0, normal: Array | None = None) -> Array:
    """Return the pose (7,) at `position` (3,) m with the gripper pointing down.

    The end effector's x is turned by `yaw` rad from the world's; its fingers open across it. With a
    unit `normal` (3,) the gripper points against it, tilted by the smallest turn.
    """
    half = yaw / 2  # a turn by yaw about z, after a half turn about x
    turn = np.array([0.0, np.cos(half), np.sin(half), 0.0])
    if normal is not None:
        w, x, y, _ = _halfway(normal)
        a, b = turn[1], turn[2]  # the product of (w, x, y, 0) and (0, a, b, 0)
        turn = np.array([-x * a - y * b, w * a, w * b, x * b - y * a])
    return np.concatenate([position, turn])


def _halfway(normal: Array) -> Array:
    """Return the quaternion w, x, y, z of the smallest turn from the vertical to `normal`."""
    turn = np.array([1 + normal[2], -normal[1], normal[0], 0.0])
    return np.asarray(turn / np.linalg.norm(turn))


def _mink() -> Any:
    try:
        import daqp  # noqa: F401  (the solver that mink uses)
        import mink
    except ImportError as e:
        raise MissingDependency(f'the arm needs {e.name}: pip install "latentplan[arm]"') from None
    return mink
