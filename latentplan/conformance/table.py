"""A fast, exact env for the checks of policies: a disc moved by picks and drags."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentplan.errors import ShapeError
from latentplan.types import ActionSpec, Array, ArraySpec, Observation, PickSpec, Spec, Step

SIDE = 64  # pixels of the image
EDGE = 0.3  # from the centre of the table to the edge of the image, m
RADIUS, REACH = 0.03, 0.1  # of the disc, and of a drag of 1, m
DARK, BRIGHT = 40, 200  # grey values of table and disc


class Table:
    """A `protocols.Env`; actions are pick x, y and drag x, y."""

    episode_length = 6
    success_threshold = 0.01  # m

    def __init__(self) -> None:
        """Set the disc at the centre of the table."""
        self.data_spec = Spec(
            {
                "rgb": ArraySpec((SIDE, SIDE, 3), "uint8", "image from above"),
                "state": ArraySpec((2,), "float32", "centre of the disc, m"),
            },
            ActionSpec((-1.0,) * 4, (1.0,) * 4, "pick x, y (1 = 0.3 m), drag x, y (1 = 0.1 m)"),
            env="table",
            pick=PickSpec("rgb", (BRIGHT,) * 3),
        )
        centres = ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1) * EDGE  # of the pixels, m
        self._x, self._y = np.meshgrid(centres, -centres)
        self._rng = np.random.default_rng(0)
        self._disc = np.zeros(2)
        self._goal: Observation = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, with the goal of the options or a random one."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._disc, target = (self._draw(self._rng) for _ in range(2))
        given = (options or {}).get("goal")
        self._goal = self._observe(target) if given is None else given
        return self._observe(self._disc), {"goal": self._goal}

    def step(self, action: Array) -> Step:
        """Move the disc if the pick is on it."""
        values = np.asarray(action, np.float64)
        if values.shape != (4,) or not (np.abs(values) <= 1).all():
            raise ShapeError(f"Table.step.action: found {values}, need 4 numbers within [-1, 1]")
        if np.linalg.norm(values[:2] * EDGE - self._disc) <= RADIUS:
            self._disc = np.clip(self._disc + values[2:] * REACH, -0.9 * EDGE, 0.9 * EDGE)
        seen = self._observe(self._disc)
        distance = self.distance(seen, self._goal)
        return Step(seen, -distance, False, False, {"distance": distance})

    def snapshot(self) -> Any:
        """Return the disc, the goal and the random state."""
        return self._disc.copy(), self._goal, self._rng.bit_generator.state

    def restore(self, state: Any) -> Observation:
        """Return to a snapshot."""
        disc, self._goal, self._rng.bit_generator.state = state
        self._disc = disc.copy()
        return self._observe(self._disc)

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the distance between two positions of the disc, m."""
        return float(np.linalg.norm(observation["state"] - goal["state"]))

    def oracle(self, observation: Observation, goal: Observation) -> Array:
        """Return the pick on the disc and the drag towards the goal."""
        position = observation["state"]
        drag = (goal["state"] - position) / REACH
        drag = drag / max(1.0, float(np.abs(drag).max()))
        return np.concatenate([position / EDGE, drag]).astype(np.float32)

    def expert(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return the oracle's action towards the episode's goal."""
        return self.oracle(observation, self._goal)

    def goal(self, *, seed: int) -> Observation:
        """Return the observation of a random position."""
        return self._observe(self._draw(np.random.default_rng(seed)))

    def close(self) -> None:
        """Do nothing."""

    def _draw(self, rng: np.random.Generator) -> Array:
        return rng.uniform(-0.8, 0.8, 2) * EDGE

    def _observe(self, position: Array) -> Observation:
        image = np.full((SIDE, SIDE, 3), DARK, np.uint8)
        x, y = position
        image[(self._x - x) ** 2 + (self._y - y) ** 2 <= RADIUS**2] = BRIGHT
        return {"rgb": image, "state": position.astype(np.float32)}
