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


class ActionNoise:
    """Normal noise on actions, within their bounds."""

    def __init__(self, spec: Spec, config: NoiseConfig) -> None:
        """Take the spec of the actions."""
        self.low = np.asarray(spec.action.low, np.float32)
        self.high = np.asarray(spec.action.high, np.float32)
        share = np.full(len(self.low), config.noise)
        if spec.pick is not None:
            share[:2] = config.aim
        self._std = share * (self.high - self.low) / 2

    def add(self, action: Array, rng: np.random.Generator) -> Array:
        """Return an action (A,) float32 near `action` (A,)."""
        noisy: Array = rng.normal(action, self._std).astype(np.float32)
        return np.clip(noisy, self.low, self.high)
