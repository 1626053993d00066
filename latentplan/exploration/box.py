"""Actions drawn from the whole box of an action space, independent or smooth in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from latentplan.errors import check_range
from latentplan.types import Array, Goal, Observation, Spec

PERIOD = 256  # actions after which new noise is drawn within an episode


class Box:
    """Actions uniform in their bounds, with noise of a chosen colour over time.

    Each number of each action is uniform whatever the colour; the colour sets how long it stays
    on one side. Coloured noise explores far where actions are velocities or forces (Eberhard et
    al. 2023, Pink noise is all you need; Timmer and Koenig 1995 for the spectrum). It differs from
    theirs: Gaussian noise goes through its distribution function, so that nothing is clipped.
    """

    @dataclass(frozen=True)
    class Config:
        """How actions correlate over time."""

        colour: float = 0.0  # exponent of 1 / frequency^colour: 0 white, 1 pink, 2 red

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
        """Start an episode, with noise of its own; there is no goal."""
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
        """Return (PERIOD, A) numbers, each uniform in [0, 1]."""
        size = (PERIOD, len(self.low))
        if self.config.colour == 0:
            return rng.random(size)
        length = 2 * PERIOD  # half of it is used, so that the ends need not meet
        scale = np.zeros(PERIOD + 1)
        scale[1:] = np.arange(1, PERIOD + 1) ** (-self.config.colour / 2)
        spectrum = scale[:, None] * (rng.normal(size=(PERIOD + 1, size[1], 2)) @ (1, 1j))
        noise = np.fft.irfft(spectrum, length, axis=0)[:PERIOD]
        std = np.sqrt(4 * (scale[:-1] ** 2).sum() + scale[-1] ** 2) / length
        return np.asarray(ndtr(noise / std))
