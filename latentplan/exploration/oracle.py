"""Policies of an env's scripted expert: exact, with noise, or in a share of the episodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentplan.errors import ConfigError, check_range
from latentplan.exploration.box import Box
from latentplan.exploration.picks import RandomPick
from latentplan.protocols import Env, Policy
from latentplan.types import Array, Goal, Observation, Spec


class Oracle:
    """The env's own expert, which reads the simulator's state, on its way to a goal.

    Without a goal it chooses one: the goal that the env draws in a reset, else the start.
    """

    @dataclass(frozen=True)
    class Config:
        """Nothing to set."""

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Take the spec of the actions; `attach` takes the env."""
        self.goal_chosen: Goal | None = None
        self._env: Env | None = None
        self._target: Observation | None = None

    def attach(self, env: Env) -> None:
        """Take the env whose expert acts."""
        self._env = env

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode towards the observation of a goal, privileged keys included.

        Without a goal it resets the env to draw one. ConfigError for a goal without an observation.
        """
        self.goal_chosen = None
        if goal is None:
            env = self._attached()
            seen, info = env.reset(seed=int(np.random.default_rng(seed).integers(2**63)))
            drawn: Observation = info.get("goal", seen)
            copied = {key: np.array(value) for key, value in drawn.items()}  # buffers are reused
            goal = self.goal_chosen = Goal(observation=copied)
        if goal.observation is None:
            raise ConfigError("policy oracle: found a goal without an observation, needs one")
        self._target = goal.observation

    def act(self, observation: Observation) -> Array:
        """Return the expert's action (A,)."""
        if self._target is None:
            raise ConfigError("policy oracle: found no goal; reset(goal) comes before act")
        return self._attached().oracle(observation, self._target)

    def _attached(self) -> Env:
        if self._env is None:
            raise ConfigError("policy oracle: found no env; attach(env) comes before reset")
        return self._env


class NoisyOracle:
    """The env's own expert with noise on its actions, so that data has its mistakes."""

    @dataclass(frozen=True)
    class Config:
        """How much noise; 1 is half of an action's range."""

        noise: float = 0.2  # std on every number of the action that does not point
        aim: float = 0.03  # std on numbers that point into an image

        def __post_init__(self) -> None:
            """Raise ConfigError if a std is out of range."""
            check_range("NoisyOracle.noise", self.noise, 0.0, 10.0)
            check_range("NoisyOracle.aim", self.aim, 0.0, 10.0)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Take the spec of the actions; `attach` takes the env."""
        config = config or self.Config()
        self.low = np.asarray(spec.action.low, np.float32)
        self.high = np.asarray(spec.action.high, np.float32)
        share = np.full(len(self.low), config.noise)
        if spec.pick is not None:
            share[:2] = config.aim
        self._std = share * (self.high - self.low) / 2
        self._expert = Oracle(spec)
        self._rng = np.random.default_rng()

    @property
    def goal_chosen(self) -> Goal | None:
        """The goal that the expert chose; None if it was given one."""
        return self._expert.goal_chosen

    def attach(self, env: Env) -> None:
        """Take the env whose expert acts."""
        self._expert.attach(env)

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode towards a goal, or one that the expert chooses."""
        self._rng = np.random.default_rng(seed)
        self._expert.reset(goal, seed=self._rng)

    def act(self, observation: Observation) -> Array:
        """Return an action (A,) float32 inside the bounds."""
        action = self._rng.normal(self._expert.act(observation), self._std)
        return np.clip(action.astype(np.float32), self.low, self.high)


class Mixture:
    """A noisy expert in a share of the episodes, random actions in the others.

    Random are picks on the object if actions point into an image, else actions of the whole box.
    """

    @dataclass(frozen=True)
    class Config:
        """The share of the expert, and the settings of both policies."""

        share: float = 0.5  # of the episodes that are the expert's
        expert: NoisyOracle.Config = field(default_factory=NoisyOracle.Config)  # in its share
        picks: RandomPick.Config = field(default_factory=RandomPick.Config)  # if actions point
        box: Box.Config = field(default_factory=Box.Config)  # if they do not

        def __post_init__(self) -> None:
            """Raise ConfigError if the share is out of range."""
            check_range("Mixture.share", self.share, 0.0, 1.0)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Take the spec of the actions; `attach` takes the env."""
        self.config = config or self.Config()
        self.goal_chosen: Goal | None = None
        self._expert = NoisyOracle(spec, self.config.expert)
        self._random: Policy = (
            Box(spec, self.config.box) if spec.pick is None else RandomPick(spec, self.config.picks)
        )
        self._policy: Policy = self._random

    def attach(self, env: Env) -> None:
        """Take the env whose expert acts."""
        self._expert.attach(env)

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode with one of the two policies; the expert's has a goal."""
        rng = np.random.default_rng(seed)
        expert = rng.random() < self.config.share
        self._policy = self._expert if expert else self._random
        self._policy.reset(goal, seed=rng)
        self.goal_chosen = self._expert.goal_chosen if expert else None

    def act(self, observation: Observation) -> Array:
        """Return an action (A,) inside the bounds."""
        return self._policy.act(observation)
