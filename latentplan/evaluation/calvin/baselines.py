"""Baselines of CALVIN's evaluations: policies without learning."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentplan.types import Array, Goal, Observation


class Noop:
    """Policy that holds still with an open gripper."""

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Do nothing."""

    def act(self, observation: Observation) -> Array:
        """Return the action (7,) of no motion."""
        return np.array([0, 0, 0, 0, 0, 0, 1.0])


class Random:
    """Policy of uniformly random actions."""

    def __init__(self, seed: int = 0) -> None:
        """Seed the random generator."""
        self.rng = np.random.default_rng(seed)

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Do nothing."""

    def act(self, observation: Observation) -> Array:
        """Return a random action (7,)."""
        return self.rng.uniform(-1, 1, 7)


class Presser:
    """Policy that presses the button of scene D whatever the goal, and so succeeds at one task."""

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start with the motion to above the button."""
        self.above = False

    def act(self, observation: Observation) -> Array:
        """Return the action (7,) towards a point above the button, then down onto it."""
        here = observation["robot_obs"][:3]
        error = np.array([-0.12, -0.12, 0.57]) - here
        self.above = self.above or bool(np.abs(error).max() < 0.02)
        if self.above:
            error[2] = 0.44 - here[2]
        return np.array([*np.clip(error / 0.04, -1, 1), 0, 0, 0, -1])
