"""A small env, exact and fast, that policies are checked in: a disc that a pick and a drag move."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentplan.errors import ShapeError
from latentplan.types import ActionSpec, Array, ArraySpec, Observation, PickSpec, Spec, Step

SIDE = 64  # pixels of the image
EDGE = 0.3  # m from the middle of the table to the edge of the image
RADIUS, REACH = 0.03, 0.1  # m of the disc, and of a drag of 1
DARK, BRIGHT = 40, 200  # grey of table and disc


class Table:
    """A `protocols.Env`; actions are pick x, y and drag x, y."""

    episode_length = 6
    success_threshold = 0.01  # m

    def __init__(self) -> None:
        """Make the table."""
        self.data_spec = Spec(
            {
                "rgb": ArraySpec((SIDE, SIDE, 3), "uint8", "image from above"),
                "state": ArraySpec((2,), "float32", "middle of the disc, m"),
            },
            ActionSpec((-1.0,) * 4, (1.0,) * 4, "pick x, y (1 = 0.3 m), drag x, y (1 = 0.1 m)"),
            env="table",
            pick=PickSpec("rgb", (BRIGHT,) * 3),
        )
        middles = ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1) * EDGE
        self._x, self._y = np.meshgrid(middles, -middles)
        self._rng = np.random.default_rng(0)
        self._disc = np.zeros(2)
        self._goal: Observation = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; without a goal in the options, one is drawn."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._disc, place = (self._draw(self._rng) for _ in range(2))
        given = (options or {}).get("goal")
        self._goal = self._see(place) if given is None else given
        return self._see(self._disc), {"goal": self._goal}

    def step(self, action: Array) -> Step:
        """Move the disc if the pick is on it."""
        values = np.asarray(action, np.float64)
        if values.shape != (4,) or not (np.abs(values) <= 1).all():
            raise ShapeError(f"Table.step.action: found {values}, need 4 numbers within [-1, 1]")
        if np.linalg.norm(values[:2] * EDGE - self._disc) <= RADIUS:
            self._disc = np.clip(self._disc + values[2:] * REACH, -0.9 * EDGE, 0.9 * EDGE)
        seen = self._see(self._disc)
        distance = self.distance(seen, self._goal)
        return Step(seen, -distance, False, False, {"distance": distance})

    def snapshot(self) -> Any:
        """Return disc, goal and random state."""
        return self._disc.copy(), self._goal, self._rng.bit_generator.state

    def restore(self, state: Any) -> Observation:
        """Return to a snapshot."""
        disc, self._goal, self._rng.bit_generator.state = state
        self._disc = disc.copy()
        return self._see(self._disc)

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return metres between two places of the disc."""
        return float(np.linalg.norm(observation["state"] - goal["state"]))

    def oracle(self, observation: Observation, goal: Observation) -> Array:
        """Return the pick on the disc and the drag towards the goal."""
        place = observation["state"]
        drag = (goal["state"] - place) / REACH
        drag = drag / max(1.0, float(np.abs(drag).max()))
        return np.concatenate([place / EDGE, drag]).astype(np.float32)

    def expert(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return the oracle's action towards the episode's goal."""
        return self.oracle(observation, self._goal)

    def goal(self, *, seed: int) -> Observation:
        """Return the observation of a random place."""
        return self._see(self._draw(np.random.default_rng(seed)))

    def close(self) -> None:
        """Do nothing."""

    def _draw(self, rng: np.random.Generator) -> Array:
        return rng.uniform(-0.8, 0.8, 2) * EDGE

    def _see(self, place: Array) -> Observation:
        image = np.full((SIDE, SIDE, 3), DARK, np.uint8)
        image[(self._x - place[0]) ** 2 + (self._y - place[1]) ** 2 <= RADIUS**2] = BRIGHT
        return {"rgb": image, "state": place.astype(np.float32)}
