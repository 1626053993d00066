"""Policy `random`: random picks on the object in the image, and random drags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from latentplan.data.images import pixel_to_action, segment
from latentplan.errors import ConfigError, check_range
from latentplan.types import Array, Goal, Observation, Spec


class RandomPick:
    """Policy that picks a random pixel of the object and drags it in a random direction.

    Contrastive forward models are trained on such data (Yan et al. 2020, section 4). Unlike there,
    some of the drags have a uniform length, so that short drags, which complete a task, are common.
    """

    @dataclass(frozen=True)
    class Config:
        """The distributions of picks and drags."""

        uniform: float = 0.5  # share of drags uniform in their box; the others uniform in length
        miss: float = 0.02  # share of picks that are uniform over the whole image
        jitter: float = 0.5  # largest offset of a pick from the centre of its pixel, pixels

        def __post_init__(self) -> None:
            """Raise ConfigError if a share or a length is out of range."""
            check_range("RandomPick.uniform", self.uniform, 0.0, 1.0)
            check_range("RandomPick.miss", self.miss, 0.0, 1.0)
            check_range("RandomPick.jitter", self.jitter, 0.0)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Take the spec of the actions; ConfigError if they are not picks in an image."""
        if spec.pick is None:
            raise ConfigError(
                f"policy random: needs actions that point into an image; those of env "
                f"{spec.env!r} do not; use policy box"
            )
        self.config = config or self.Config()
        self.pick = spec.pick
        self.low = np.asarray(spec.action.low, np.float32)
        self.high = np.asarray(spec.action.high, np.float32)
        self.reset()

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode; the goal is not used."""
        self._rng = np.random.default_rng(seed)

    def act(self, observation: Observation) -> Array:
        """Return an action (A,) float32 inside the bounds: pick x, pick y, drag."""
        rng = self._rng
        action = np.concatenate([self._point(observation[self.pick.image], rng), self._drag(rng)])
        return np.clip(action.astype(np.float32), self.low, self.high)

    def _point(self, image: Array, rng: np.random.Generator) -> Array:
        height, width = image.shape[:2]
        on_object = np.flatnonzero(segment(image, self.pick))
        if len(on_object) == 0 or rng.random() < self.config.miss:
            return rng.uniform(-1, 1, 2)
        row, column = np.divmod(on_object[rng.integers(len(on_object))], width)
        offset = rng.uniform(-self.config.jitter, self.config.jitter, 2)
        x, y = pixel_to_action(row + offset[0], column + offset[1], height=height, width=width)
        return np.array([x, y])

    def _drag(self, rng: np.random.Generator) -> Array:
        low, high = self.low[2:], self.high[2:]
        if rng.random() < self.config.uniform:
            return rng.uniform(low, high)
        direction = rng.normal(size=len(low))
        direction *= rng.random() / np.linalg.norm(direction)
        return np.asarray((low + high) / 2 + direction * (high - low) / 2)
