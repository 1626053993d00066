"""Policy `box`: random actions within their bounds, independent or correlated over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from latentplan.errors import check_range
from latentplan.types import Array, Goal, Observation, Spec

PERIOD = 256  # actions per draw of noise; a longer episode draws again


class Box:
    """Policy of uniform actions with coloured noise over time.

    Each number of an action is uniform within its bounds for any colour; a higher colour changes
    more slowly, which explores further if actions are velocities or forces (Eberhard et al. 2023,
    "Pink noise is all you need"; the spectrum is that of Timmer and Koenig 1995). Unlike there,
    the Gaussian noise is mapped through its distribution function, so that nothing is clipped.
    """

    @dataclass(frozen=True)
    class Config:
        """The correlation of actions over time."""

        colour: float = 0.0  # exponent of the spectrum 1 / frequency^colour: 0 white, 1 pink, 2 red

        def __post_init__(self) -> None:
            """Raise ConfigError if the colour is out of range."""
            check_range("Box.colour", self.colour, 0.0, 3.0)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Take the spec of the actions."""
        self.config = config or self.Config()
        self.low = np.asarray(spec.action.low, np.float32)
        self.high = np.asarray(spec.action.high, np.float32)
        self.reset()

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode with new noise; the goal is not used."""
        self._rng = np.random.default_rng(seed)
        self._ahead = iter(np.empty((0, len(self.low))))

    def act(self, observation: Observation) -> Array:
        """Return an action (A,) float32 inside the bounds."""
        share = next(self._ahead, None)
        if share is None:
            self._ahead = iter(self._draw(self._rng))
            share = next(self._ahead)
        action = self.low + share * (self.high - self.low)
        return np.clip(action.astype(np.float32), self.low, self.high)

    def _draw(self, rng: np.random.Generator) -> Array:
        """Return noise (PERIOD, A), each number uniform in [0, 1]."""
        size = (PERIOD, len(self.low))
        if self.config.colour == 0:
            return rng.random(size)
        length = 2 * PERIOD  # the noise is periodic; half a period is used
        scale = np.zeros(PERIOD + 1)
        scale[1:] = np.arange(1, PERIOD + 1) ** (-self.config.colour / 2)
        spectrum = scale[:, None] * (rng.normal(size=(PERIOD + 1, size[1], 2)) @ (1, 1j))
        noise = np.fft.irfft(spectrum, length, axis=0)[:PERIOD]
        std = np.sqrt(4 * (scale[:-1] ** 2).sum() + scale[-1] ** 2) / length
        return np.asarray(ndtr(noise / std))
