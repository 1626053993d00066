"""Baselines of CALVIN's evaluations: policies that have learnt nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentplan.types import Array, Goal, Observation


class Noop:
    """Baseline: no motion, the gripper open."""

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Do nothing."""

    def act(self, observation: Observation) -> Array:
        """Return no motion (7,)."""
        return np.array([0, 0, 0, 0, 0, 0, 1.0])


class Random:
    """Baseline: random actions."""

    def __init__(self, seed: int = 0) -> None:
        """Draw from a seed."""
        self.rng = np.random.default_rng(seed)

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Do nothing."""

    def act(self, observation: Observation) -> Array:
        """Return a random action (7,)."""
        return self.rng.uniform(-1, 1, 7)


class Presser:
    """Baseline that succeeds at one task: it presses the button of scene D, whatever the goal."""

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Go up first."""
        self.above = False

    def act(self, observation: Observation) -> Array:
        """Return a motion (7,) to a place above the button, then down onto it."""
        here = observation["robot_obs"][:3]
        error = np.array([-0.12, -0.12, 0.57]) - here
        self.above = self.above or bool(np.abs(error).max() < 0.02)
        if self.above:
            error[2] = 0.44 - here[2]
        return np.array([*np.clip(error / 0.04, -1, 1), 0, 0, 0, -1])
