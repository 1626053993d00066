"""A cloth on a table, flattened, folded and placed by pick-and-place, seen from above."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from latentplan.data.images import LIFT
from latentplan.errors import ConfigError, check_range
from latentplan.shapes import check
from latentplan.sim.deformable import distances, folds, lookahead
from latentplan.sim.deformable.config import DeformableConfig, check_choice
from latentplan.sim.deformable.engines import engine
from latentplan.sim.deformable.env import Deformable
from latentplan.types import Array, ArraySpec, Observation, PickSpec


class Cloth(Deformable):
    """A cloth on a table; see `Deformable` for actions and info.

    An action has a fifth number, the height of the gripper in the middle of a drag. A pick on
    several layers grasps the uppermost.

    Tasks: `flatten`, from crumpled, at any pose; `fold`, from flat, at any pose: in `half`,
    `diagonal`, or all `corners` to the middle; `place`, from crumpled, flat at a pose; `goal`, from
    one crumpled state to another, at its pose. `keypoints` (rows * columns, 3) float32 are the
    points of the grid, row by row. The distance is the mean distance of the points to their targets
    in metres, for the best of the grid's eight orders (four if it is not square); for `flatten` and
    `fold` in the plane, after the best rotation and translation.
    Success: `flatten`, at least 90 % of the cloth's area covered; `fold` a distance of at most
    0.009 m (corners: 0.01 m), `place` 0.015 m, `goal` 0.03 m.
    """

    @dataclass(frozen=True)
    class Config(DeformableConfig):
        """The settings of a cloth; lengths in metres, masses in kilograms."""

        task: str = "flatten"  # or fold, place, goal
        fold: str = "half"  # or diagonal, corners; task=fold
        crumple: int = 2  # least number of random drags of a crumpled start
        rows: int = 9  # points along x
        columns: int = 9  # points along y
        size: float = 0.24  # of the longer side
        mass: float = 0.1  # of the whole cloth
        friction: float = 1.0  # sliding, cloth on table
        damping: float = 2.0  # 1/s, of every point
        iterations: int = 12  # solver iterations per timestep
        drag: float = 0.25  # length of a drag of 1 along one axis
        timestep: float = 0.0125  # s
        move_steps: int = 26  # physics steps of a drag
        rest_steps: int = 20  # most physics steps after a release

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            super().__post_init__()
            check_choice("Cloth.task", self.task, ("flatten", "fold", "place", "goal"))
            check_choice("Cloth.fold", self.fold, folds.FOLDS)
            check_range("Cloth.crumple", self.crumple, 1, 20)
            check_range("Cloth.rows", self.rows, 3, 40)
            check_range("Cloth.columns", self.columns, 3, 40)
            check_range("Cloth.size", self.size, 0.01, 1.4 * self.workspace)
            check_range("Cloth.mass", self.mass, 1e-3, 10)
            check_range("Cloth.friction", self.friction, 0, 10)
            check_range("Cloth.damping", self.damping, 0, 100)
            check_range("Cloth.iterations", self.iterations, 1, 1000)
            if self.task == "fold" and self.fold != "half" and self.rows != self.columns:
                raise ConfigError(
                    f"Cloth.fold: {self.fold!r} needs a square cloth, found {self.rows} rows and "
                    f"{self.columns} columns; use half"
                )

        @property
        def spacing(self) -> float:
            """The distance of neighbouring points, m."""
            return self.size / (max(self.rows, self.columns) - 1)

        @property
        def radius(self) -> float:
            """Half the thickness, m; large enough that layers do not slip through each other."""
            return 0.4 * self.spacing

    name = "cloth"
    CRUMPLED = 0.7  # largest share of its area that a crumpled cloth covers
    FLAT = 0.9  # least share of its area that a flattened cloth covers
    POINTS = 6  # points that the oracle considers
    # Of the oracle's drags: distance beyond the target (m), and height (share of the length).
    CANDIDATES = ((0.0, 0.5), (0.06, 0.1), (0.1, 0.3))
    THRESHOLD = {  # m, distance to the goal
        "flatten": 0.02,
        "half": 0.009,
        "diagonal": 0.009,
        "corners": 0.01,
        "place": 0.015,
        "goal": 0.03,
    }

    def __init__(self, config: Config | None = None) -> None:
        """Build the engine; rendering is checked when the first image is taken."""
        c = config or self.Config()
        super().__init__(
            c,
            lift=True,
            keypoints=ArraySpec((c.rows * c.columns, 3), "float32", "points, row by row, m"),
            pick=PickSpec(image="rgb", low=(100, 60, 0)),
        )
        self.success_threshold = self.THRESHOLD[c.fold if c.task == "fold" else c.task]
        self._orders = distances.grid_orders(c.rows, c.columns)

    def coverage(self, observation: Observation) -> float:
        """Return the share of its area that the cloth covers in the plane."""
        c = self.config
        points = observation["keypoints"]
        return distances.coverage(points, rows=c.rows, columns=c.columns, area=self._area)

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the mean distance of the points to their targets in metres; see the class."""
        points, target = observation["keypoints"], goal["keypoints"]
        check("goal.keypoints", target, "points xyz", points=len(points), xyz=3)
        if self.config.task in ("flatten", "fold"):
            return distances.aligned(points, target, orders=self._orders)
        return distances.matched(points, target, orders=self._orders)

    def success(self, observation: Observation, goal: Observation) -> bool:
        """Return whether the task is done; see the class."""
        if self.config.task == "flatten":
            return self.coverage(observation) >= self.FLAT
        return super().success(observation, goal)

    def oracle(self, observation: Observation, goal: Observation) -> Array:
        """Return the best of several drags of points that are far from their targets.

        Each drag is simulated, so `observation` must be the current one; this takes as long as 18
        steps, or 72 if no single drag helps. The episode continues unchanged.
        """
        drags, cost = partial(self.candidates, goal=goal), partial(self._cost, goal=goal)
        return lookahead.best(self, observation, propose=drags, cost=cost)

    def candidates(self, observation: Observation, goal: Observation) -> Iterator[Array]:
        """Yield drags (5,) of the points that are farthest from their targets, to and beyond."""
        points = observation["keypoints"]
        missing = self._places(observation, goal) - points[:, :2]
        for grip in self._worst(points, missing):
            short = float(np.linalg.norm(missing[grip]))
            for beyond, height in self.CANDIDATES:
                way = missing[grip] * (1 + beyond / max(short, 1e-6))
                lift = height * float(np.linalg.norm(way))
                yield self._drag(points[grip], way, lift=lift)

    def _places(self, observation: Observation, goal: Observation) -> Array:
        """Return the points' targets (P, 2) in the plane, for the nearest order and pose."""
        points, target = observation["keypoints"], goal["keypoints"]
        if self.config.task in ("flatten", "fold"):
            return distances.best_pose(points, target, orders=self._orders)
        return distances.best_order(points, target, orders=self._orders)[:, :2]

    def _worst(self, points: Array, missing: Array) -> list[int]:
        """Return uppermost points that are far from their targets and from each other."""
        c = self.config
        worst: list[int] = []
        for grip in np.argsort(-np.linalg.norm(missing, axis=1)):
            near = [i for i in worst if np.linalg.norm(points[i] - points[grip]) < 1.3 * c.spacing]
            if not near and self._choose(points, points[grip, :2]) == grip:
                worst.append(int(grip))
            if len(worst) == self.POINTS:
                break
        return worst

    def _drag(self, point: Array, way: Array, *, lift: float) -> Array:
        """Return the action (5,) that drags a point (3,) along `way` (2,), m."""
        c = self.config
        height = 2 * (lift - LIFT[0]) / (LIFT[1] - LIFT[0]) - 1
        action: Array = np.concatenate([point[:2] / c.view, way / c.drag, [height]])
        return np.clip(action, -1, 1)

    def _cost(self, observation: Observation, goal: Observation) -> float:
        """Return the oracle's cost, m."""
        cost = self.distance(observation, goal)
        if self.config.task == "flatten":  # a fifth of the area costs as much as 4 cm
            cost += (1 - self.coverage(observation)) / 5
        return cost

    def _build(self, config: Config) -> None:
        super()._build(config)
        c = config
        self._flat = folds.flat(c.rows, c.columns, spacing=c.spacing) + [0, 0, c.radius]
        self._area = (c.rows - 1) * (c.columns - 1) * c.spacing**2

    def _lay_start(self, rng: np.random.Generator) -> None:
        self._engine.lay(self._anywhere(rng))
        if self.config.task != "fold":
            self._crumple(rng)

    def _lay_goal(self, rng: np.random.Generator) -> None:
        c = self.config
        if c.task == "fold":
            size = {"thickness": 2 * c.radius, "spacing": c.spacing}
            self._engine.lay(folds.fold(self._flat, c.fold, **size))
            self._settle()
        elif c.task == "flatten":
            self._engine.lay(self._flat)
        else:
            self._engine.lay(self._anywhere(rng))
            if c.task == "goal":
                self._crumple(rng)

    def _anywhere(self, rng: np.random.Generator) -> Array:
        """Return a flat cloth at a random pose in the workspace."""
        angle = rng.uniform(-np.pi, np.pi)
        turned = folds.placed(self._flat, angle=angle, centre=np.zeros(2))
        room = self.config.workspace - np.abs(turned[:, :2]).max(0)
        return folds.placed(self._flat, angle=angle, centre=rng.uniform(-room, room))

    def _crumple(self, rng: np.random.Generator) -> None:
        """Drag random points until the cloth is crumpled."""
        c = self.config
        drags = 0
        while drags < c.crumple or self.coverage({"keypoints": self._keypoints()}) > self.CRUMPLED:
            grip = int(rng.integers(len(self._flat)))
            start = self._engine.grips()[grip]
            angle, length = rng.uniform(-np.pi, np.pi), rng.uniform(0.5, 1) * c.size
            end = start[:2] + length * np.array([np.cos(angle), np.sin(angle)])
            end = np.clip(end, -c.workspace, c.workspace)
            lift = rng.uniform(0.05, 0.15)
            self._engine.grasp(grip)
            self._engine.follow(engine.arc(start, end, lift=lift, steps=c.move_steps))
            self._engine.release()
            self._engine.wait(c.rest_steps)
            self._engine.check()
            drags += 1
        self._settle()

    def _settle(self) -> None:
        self._engine.wait(100)
        self._engine.check()
        self._engine.rest()

    def _choose(self, grips: Array, point: Array) -> int:
        """Return the grip at `point` (2,), the uppermost of several layers; -1 for none."""
        c = self.config
        gap = np.linalg.norm(grips[:, :2] - point, axis=1)
        if gap.min() > c.pick_radius:
            return -1
        near = gap <= max(gap.min(), 0.6 * c.spacing)
        top = near & (grips[:, 2] >= grips[near, 2].max() - c.radius)
        return int(np.where(top, gap, np.inf).argmin())

    def _keypoints(self) -> Array:
        points: Array = self._engine.points().astype(np.float32)
        return points
