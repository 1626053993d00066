"""Noise on the actions of another policy, so that data include mistakes and corrections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentplan.errors import check_range
from latentplan.types import Array, Spec


@dataclass(frozen=True)
class NoiseConfig:
    """The noise of the actions; 1 is half of an action's range."""

    noise: float = 0.2  # std on the numbers of the action other than picks
    aim: float = 0.03  # std on the numbers of a pick

    def __post_init__(self) -> None:
        """Raise ConfigError if a std is out of range."""
        name = type(self).__qualname__.partition(".")[0]
        check_range(f"{name}.noise", self.noise, 0.0, 10.0)
        check_range(f"{name}.aim", self.aim, 0.0, 10.0)

    def std(self, spec: Spec) -> Array:
        """Return the std (A,) of the actions of `spec`."""
        share = np.full(spec.action.size, self.noise)
        if spec.pick is not None:
            share[:2] = self.aim
        std: Array = half_range(spec) * share
        return std


class ActionNoise:
    """Normal noise on actions, within their bounds."""

    def __init__(self, spec: Spec, std: Array) -> None:
        """Take the spec of the actions and the std (A,) of the noise."""
        self._low, self._high = _bounds(spec)
        self._std = std

    def add(self, action: Array, rng: np.random.Generator) -> Array:
        """Return an action (A,) float32 near `action` (A,)."""
        noisy: Array = rng.normal(action, self._std).astype(np.float32)
        return np.clip(noisy, self._low, self._high)


def half_range(spec: Spec) -> Array:
    """Return half of the range (A,) float32 of each number of an action."""
    low, high = _bounds(spec)
    return (high - low) / 2


def _bounds(spec: Spec) -> tuple[Array, Array]:
    return np.asarray(spec.action.low, np.float32), np.asarray(spec.action.high, np.float32)
