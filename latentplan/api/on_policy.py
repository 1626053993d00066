"""A trained run as the policy that collects: data where its planner goes, its mistakes included.

A model of random actions is accurate where random actions lead. Retrained on episodes of its own
planner as well, it becomes accurate where plans lead (Nagabandi et al., arXiv 1708.02596, "data
aggregation"). Differs: goals are drawn for each episode, and noise is added to the actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from latentplan.api.load import load
from latentplan.errors import ConfigError
from latentplan.evaluation.baselines import visible
from latentplan.exploration.noise import ActionNoise, NoiseConfig
from latentplan.exploration.oracle import drawn_goal
from latentplan.protocols import Env
from latentplan.training import checkpoint
from latentplan.types import Array, Goal, Observation, Spec


class OnPolicy:
    """Policy of a trained run towards goals that the env draws, with noise on its actions."""

    @dataclass(frozen=True)
    class Config(NoiseConfig):
        """The run and the noise of its actions; 1 is half of an action's range."""

        run: str = ""  # folder, file or shipped name
        sha256: str = ""  # of its checkpoint; empty: any
        planner: str = ""  # registry name or preset; empty: the one that the model suggests

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Load the run; `attach` must follow.

        Raises CheckpointError for a missing or another checkpoint, and ConfigError if the actions
        of the spec are not the model's.
        """
        c = self.config = config or self.Config()
        found = checkpoint.digest(checkpoint.find(c.run))
        if c.sha256 not in ("", found):
            raise ConfigError(
                f"OnPolicy.sha256: the checkpoint of {c.run!r} is {found[:12]}, the data are of "
                f"{c.sha256[:12]}; give the run as it was, or collect into another store"
            )
        self._policy = load(c.run, planner=c.planner or None)
        own = self._policy.model.spec.action
        if (own.low, own.high) != (spec.action.low, spec.action.high):
            raise ConfigError(
                f"OnPolicy.run: {c.run!r} was trained for actions of {own.size} numbers within "
                f"{own.low} and {own.high}; the env has {spec.action.size} within "
                f"{spec.action.low} and {spec.action.high}"
            )
        self.spec = spec
        self.goal_chosen: Goal | None = None
        self._noise = ActionNoise(spec, c.std(spec))
        self._rng = np.random.default_rng()
        self._env: Env | None = None

    def attach(self, env: Env) -> None:
        """Set the env that draws goals."""
        self._env = env

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode towards a goal, or towards one that the env draws."""
        self._rng = np.random.default_rng(seed)
        self.goal_chosen = None
        if goal is None:
            if self._env is None:
                raise ConfigError("policy: found no env; attach(env) comes before reset")
            goal = self.goal_chosen = drawn_goal(self._env, self._rng)
        seen = visible(self._policy, goal.observation or {}, self.spec)
        self._policy.reset(Goal(observation=seen, text=goal.text), seed=self._rng)

    def act(self, observation: Observation) -> Array:
        """Return an action (A,) float32 inside the bounds."""
        planned = self._policy.act(visible(self._policy, observation, self.spec))
        return self._noise.add(planned, self._rng)
