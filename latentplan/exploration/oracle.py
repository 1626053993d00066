"""Policies `oracle`, `noisy_oracle` and `mixture`, of an env's scripted expert for a goal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentplan.errors import ConfigError, check_range
from latentplan.exploration.box import Box
from latentplan.exploration.noise import ActionNoise, NoiseConfig
from latentplan.exploration.picks import RandomPick
from latentplan.protocols import CandidateExpert, Env, Policy
from latentplan.types import Array, Goal, Observation, Spec

FIRST = 0.25  # probability of an expert's first candidate; of the next, as much of what is left


class Oracle:
    """Policy of the env's expert, which reads the simulator's state, for a goal.

    Without a goal it chooses one: the goal that the env draws in a reset, or else the observation
    of that reset.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Take the spec of the actions; `attach` must follow."""
        self.goal_chosen: Goal | None = None
        self._env: Env | None = None
        self._target: Observation | None = None

    def attach(self, env: Env) -> None:
        """Set the env whose expert acts."""
        self._env = env

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode with the observation of a goal, which includes privileged keys.

        Without a goal, reset the env to draw one. Raises ConfigError if the goal has no
        observation.
        """
        self.goal_chosen = None
        if goal is None:
            goal = self.goal_chosen = drawn_goal(self._attached(), np.random.default_rng(seed))
        if goal.observation is None:
            raise ConfigError("policy oracle: found a goal without an observation, needs one")
        self._target = goal.observation

    def act(self, observation: Observation) -> Array:
        """Return the expert's action (A,)."""
        target = self._chosen()
        return self._attached().oracle(observation, target)

    def guess(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return one of the actions (A,) among which the expert chooses, the first most often.

        It is not tried in the simulator. An expert that tries none gives its action.
        """
        env = self._attached()
        if not isinstance(env, CandidateExpert):
            return self.act(observation)
        candidates = list(env.candidates(observation, self._chosen()))
        return candidates[min(int(rng.geometric(FIRST)), len(candidates)) - 1]

    def _chosen(self) -> Observation:
        if self._target is None:
            raise ConfigError("policy oracle: found no goal; reset(goal) comes before act")
        return self._target

    def _attached(self) -> Env:
        if self._env is None:
            raise ConfigError("policy oracle: found no env; attach(env) comes before reset")
        return self._env


class NoisyOracle:
    """Policy of the env's expert with noise, so that data include mistakes and corrections."""

    @dataclass(frozen=True)
    class Config(NoiseConfig):
        """The noise of the actions; 1 is half of an action's range."""

        verify: bool = True  # whether an expert that tries candidate actions in the simulator does
        # so; else one is drawn, some 20 times as fast

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Take the spec of the actions; `attach` must follow."""
        self.config = config or self.Config()
        self._noise = ActionNoise(spec, self.config.std(spec))
        self._expert = Oracle(spec)
        self._rng = np.random.default_rng()

    @property
    def goal_chosen(self) -> Goal | None:
        """The goal that the expert chose; None if `reset` had one."""
        return self._expert.goal_chosen

    def attach(self, env: Env) -> None:
        """Set the env whose expert acts."""
        self._expert.attach(env)

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode with a goal, or with one that the expert chooses."""
        self._rng = np.random.default_rng(seed)
        self._expert.reset(goal, seed=self._rng)

    def act(self, observation: Observation) -> Array:
        """Return an action (A,) float32 inside the bounds."""
        if self.config.verify:
            action = self._expert.act(observation)
        else:
            action = self._expert.guess(observation, self._rng)
        return self._noise.add(action, self._rng)


class Mixture:
    """Policy that is a noisy expert in a share of the episodes and random in the others.

    Random actions are picks on the object if the spec has picks, and otherwise uniform.
    """

    @dataclass(frozen=True)
    class Config:
        """The share of the expert, and the settings of both policies."""

        share: float = 0.5  # share of the episodes in which the expert acts
        expert: NoisyOracle.Config = field(default_factory=NoisyOracle.Config)  # noise of it
        picks: RandomPick.Config = field(default_factory=RandomPick.Config)  # of random picks
        box: Box.Config = field(default_factory=Box.Config)  # of random actions without picks

        def __post_init__(self) -> None:
            """Raise ConfigError if the share is out of range."""
            check_range("Mixture.share", self.share, 0.0, 1.0)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Take the spec of the actions; `attach` must follow."""
        self.config = config or self.Config()
        self.goal_chosen: Goal | None = None
        self._expert = NoisyOracle(spec, self.config.expert)
        self._random: Policy = (
            Box(spec, self.config.box) if spec.pick is None else RandomPick(spec, self.config.picks)
        )
        self._policy: Policy = self._random

    def attach(self, env: Env) -> None:
        """Set the env whose expert acts."""
        self._expert.attach(env)

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode with one of the two policies, drawn at random."""
        rng = np.random.default_rng(seed)
        expert = rng.random() < self.config.share
        self._policy = self._expert if expert else self._random
        self._policy.reset(goal, seed=rng)
        self.goal_chosen = self._expert.goal_chosen if expert else None

    def act(self, observation: Observation) -> Array:
        """Return an action (A,) inside the bounds."""
        return self._policy.act(observation)


def drawn_goal(env: Env, rng: np.random.Generator) -> Goal:
    """Return the goal that an env draws in a reset, or else the observation of that reset."""
    seen, info = env.reset(seed=int(rng.integers(2**63)))
    drawn: Observation = info.get("goal", seen)
    copied = {key: np.array(value) for key, value in drawn.items()}  # buffers are reused
    return Goal(observation=copied)
