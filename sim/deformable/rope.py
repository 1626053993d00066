"""A rope on a table, moved by pick-and-drag, seen from above.

The task `goal` is that of the contrastive forward model (Yan et al. 2020, arXiv 2003.05436,
section 4): bring the rope into the shape of a goal image. It differs from the paper's env: an
explicit chain instead of MuJoCo's `composite`, a lift-move-lower path of a gripper that holds one
link instead of a push along the table, and goals drawn from the distribution of starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from latentplan.errors import check_range
from latentplan.shapes import check
from latentplan.sim.deformable import curves, distances, lookahead
from latentplan.sim.deformable.config import DeformableConfig, check_choice
from latentplan.sim.deformable.engines.engine import Curve
from latentplan.sim.deformable.env import Deformable
from latentplan.types import Array, ArraySpec, Observation, PickSpec


class Rope(Deformable):
    """A rope on a table, brought into the shape of a goal; see `Deformable` for actions and info.

    Tasks: `goal`, a shape from the distribution of starts; `straighten`, a line at any pose;
    `shape`, a letter or a circle at a pose. `keypoints` (links + 1, 2) float32 are the links' ends
    in metres. The distance is the mean distance of the points to their targets, for the better of
    the rope's two orders; for `straighten` after the best rotation and translation in the plane.
    Success: a distance of at most 0.03 m, `straighten` 0.008 m, `shape` 0.015 m. The gripper holds
    a link at its centre; invisible walls keep the rope in view.
    """

    THRESHOLD = {"goal": 0.03, "straighten": 0.008, "shape": 0.015}  # m, distance to the goal
    LIFT = 0.03  # m, height of the middle of a drag
    PARTS = 10  # parts of the rope; the expert of `shape` drags one link of each
    BEYOND = (0.0, 0.03)  # m, distances of its drags beyond the target of a link
    BENT = 0.04  # m, least distance of a start of `straighten` from a straight line

    @dataclass(frozen=True)
    class Config(DeformableConfig):
        """The settings of a rope; lengths in metres, masses in kilograms."""

        task: str = "goal"  # or straighten, shape
        shape: str = "U"  # of the goal, task=shape; one of curves.SHAPES
        links: int = 20  # rigid links of the rope
        length: float = 0.4  # m, of the whole rope
        radius: float = 0.009  # m, of the rope
        mass: float = 0.04  # of the whole rope
        friction: float = 1.0  # sliding, rope on table
        stiffness: float = 0.0  # N m/rad at every joint
        damping: float = 2e-3  # N m s/rad at every joint
        bend: float = 0.2  # rad between links (smoothed) of the most bent start

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            super().__post_init__()
            check_choice("Rope.task", self.task, ("goal", "straighten", "shape"))
            check_choice("Rope.shape", self.shape, tuple(curves.SHAPES))
            check_range("Rope.links", self.links, 2, 200)
            for name in ("length", "radius", "mass"):
                check_range(f"Rope.{name}", getattr(self, name), 1e-4, 10)
            check_range("Rope.bend", self.bend, 0.1, 2)
            check_range("Rope.friction", self.friction, 0, 10)
            check_range("Rope.stiffness", self.stiffness, 0, 1)
            check_range("Rope.damping", self.damping, 0, 1)
            check_range("Rope.length", self.length, 0, 2 * self.workspace)

    name = "rope"

    def __init__(self, config: Config | None = None) -> None:
        """Build the engine; rendering is checked when the first image is taken."""
        c = config or self.Config()
        self.success_threshold = self.THRESHOLD[c.task]
        super().__init__(
            c,
            lift=False,
            keypoints=ArraySpec((c.links + 1, 2), "float32", "rope from end to end, m"),
            pick=PickSpec(image="rgb", low=(120, 120, 120)),
        )

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the mean distance of the points to their targets in metres; see the class."""
        missing = self._target(observation, goal) - observation["keypoints"]
        return float(np.linalg.norm(missing, axis=1).mean())

    def oracle(self, observation: Observation, goal: Observation) -> Array:
        """Return the action that drags the link that is farthest from its target there.

        For `shape`, which such drags seldom reach, the action is the best of some drags that are
        simulated: `observation` must be the current one. The episode continues unchanged.
        """
        if self.config.task == "shape":
            drags, cost = partial(self.candidates, goal=goal), partial(self.distance, goal=goal)
            return lookahead.best(self, observation, propose=drags, cost=cost)
        return next(self.candidates(observation, goal))

    def candidates(self, observation: Observation, goal: Observation) -> Iterator[Array]:
        """Yield drags (4,) of links to their targets and beyond, the farthest link first."""
        c, points = self.config, observation["keypoints"]
        error = self._target(observation, goal) - points
        missing = (error[1:] + error[:-1]) / 2  # error of the links' centres
        centres = (points[1:] + points[:-1]) / 2
        apart = max(1, c.links // self.PARTS)
        left = np.ones(c.links, bool)
        for link in np.argsort(-np.linalg.norm(missing, axis=1), kind="stable"):
            if not left[link]:
                continue
            left[max(0, link - apart + 1) : link + apart] = False
            short = float(np.linalg.norm(missing[link]))
            for beyond in self.BEYOND:
                way = missing[link] * (1 + beyond / max(short, 1e-6))
                action = np.concatenate([centres[link] / c.view, way / c.drag])
                yield np.clip(action, -1, 1).astype(np.float32)

    def _lay_start(self, rng: np.random.Generator) -> None:
        curve = self._random_shape(rng)
        if self.config.task == "straighten":
            orders = distances.rope_orders(self.config.links + 1)
            line = np.linspace((0, 0), (self.config.length, 0), self.config.links + 1)
            while distances.aligned(curve.points(), line, orders=orders) < self.BENT:
                curve = self._random_shape(rng)
        self._engine.lay(curve)

    def _lay_goal(self, rng: np.random.Generator) -> None:
        c = self.config
        if c.task == "goal":
            self._engine.lay(self._random_shape(rng))
            return
        bends = curves.bends("straight" if c.task == "straighten" else c.shape, c.links)
        while True:
            heading = rng.uniform(-np.pi, np.pi)
            curve = Curve(np.zeros(2), heading, bends=bends, step=c.length / c.links)
            low, high = self._room(curve.points())
            if (low < high).all():
                self._engine.lay(replace(curve, start=rng.uniform(low, high)))
                return

    def _random_shape(self, rng: np.random.Generator) -> Curve:
        """Return a random smooth shape that does not cross itself."""
        c = self.config
        while True:
            heading = rng.uniform(-np.pi, np.pi)
            scale = rng.uniform(0.05, c.bend) * np.sqrt(20 / c.links)
            noise = rng.normal(0, scale, c.links + 3)
            bends = np.convolve(noise, np.ones(5) / 2, "valid")  # smooth over five links
            curve = Curve(np.zeros(2), heading, bends=bends, step=c.length / c.links)
            points = curve.points()
            low, high = self._room(points)
            gaps = np.linalg.norm(points[:, None] - points[None], axis=2)
            apart = np.abs(np.subtract.outer(np.arange(len(points)), np.arange(len(points)))) > 3
            if (low < high).all() and (gaps[apart] > 3 * c.radius).all():
                return replace(curve, start=rng.uniform(low, high))

    def _room(self, points: Array) -> tuple[Array, Array]:
        """Return the least and the largest shift (2,) that keep points in the workspace."""
        reach = self.config.workspace - self.config.radius
        return -reach - points.min(0), reach - points.max(0)

    def _lift(self, action: Array) -> float:
        return self.LIFT

    def _keypoints(self) -> Array:
        points: Array = self._engine.points()[:, :2].astype(np.float32)
        return points

    def _target(self, observation: Observation, goal: Observation) -> Array:
        """Return the points' target places (points, 2), in the nearest order and pose."""
        points, target = observation["keypoints"], goal["keypoints"]
        check("goal.keypoints", target, "points xy", points=len(points), xy=2)
        orders = distances.rope_orders(len(points))
        if self.config.task != "straighten":
            return distances.best_order(points, target, orders=orders)
        best = distances.best_pose(points, target, orders=orders)
        low, high = self._room(best)
        return np.asarray(best + np.clip(0, low, high))
