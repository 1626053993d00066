"""Policy `noop`: no motion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from latentplan.data.images import pixel_to_action, segment
from latentplan.types import Array, Goal, Observation, Spec


class Noop:
    """Policy of zero actions; picks are at the pixel farthest from the object."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Take the spec of the actions."""
        self.spec = spec

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Do nothing; goal and seed are not used."""

    def act(self, observation: Observation) -> Array:
        """Return the action (A,) float32 of no motion."""
        low, high = np.array(self.spec.action.low), np.array(self.spec.action.high)
        action = np.clip(np.zeros(self.spec.action.size), low, high)
        pick = self.spec.pick
        if pick is not None:
            away = distance_transform_edt(~segment(observation[pick.image], pick))  # h w, pixels
            row, column = np.unravel_index(away.argmax(), away.shape)
            height, width = away.shape
            action[:2] = pixel_to_action(row, column, height=height, width=width)
        return action.astype(np.float32)
