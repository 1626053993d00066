"""An env's scripted expert at work: as it is, with noise, and for a share of the episodes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from latentplan.errors import check_range
from latentplan.exploration.box import Box
from latentplan.exploration.picks import RandomPick
from latentplan.protocols import Env, Explorer
from latentplan.types import Array, Observation, Spec


class Oracle:
    """Explorer: the env's own expert, which sees the simulator's state, on its way to a goal.

    A new goal is drawn for every episode: the one that the env draws, else one of its starts.
    """

    @dataclass(frozen=True)
    class Config:
        """Nothing to set."""

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Explore for `spec`; the expert comes with the env."""

    def begin(self, env: Env, rng: np.random.Generator) -> Observation:
        """Draw a goal and return it."""
        self._env = env
        seen, info = env.reset(seed=int(rng.integers(2**63)))
        goal: Observation = info.get("goal", seen)
        self._goal = {key: np.array(value) for key, value in goal.items()}  # buffers are reused
        return self._goal

    def act(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return the expert's action (A,)."""
        return self._env.oracle(observation, self._goal)


class NoisyOracle:
    """Explorer: the env's own expert with noise on its actions, so that data has its mistakes."""

    @dataclass(frozen=True)
    class Config:
        """How much noise; 1 is half of an action's range."""

        noise: float = 0.2  # std on every number of the action that does not point
        aim: float = 0.03  # std on where an action points into a picture

        def __post_init__(self) -> None:
            """Raise ConfigError where a std is out of range."""
            check_range("NoisyOracle.noise", self.noise, 0.0, 10.0)
            check_range("NoisyOracle.aim", self.aim, 0.0, 10.0)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Explore for `spec`; the expert comes with the env."""
        config = config or self.Config()
        self.low = np.asarray(spec.action.low, np.float32)
        self.high = np.asarray(spec.action.high, np.float32)
        share = np.full(len(self.low), config.noise)
        if spec.pick is not None:
            share[:2] = config.aim
        self._std = share * (self.high - self.low) / 2
        self._expert = Oracle(spec)

    def begin(self, env: Env, rng: np.random.Generator) -> Observation:
        """Draw a goal and return it."""
        return self._expert.begin(env, rng)

    def act(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return an action (A,) float32 inside the bounds."""
        action = rng.normal(self._expert.act(observation, rng), self._std)
        return np.clip(action.astype(np.float32), self.low, self.high)


class Mixture:
    """Explorer: a noisy expert in a share of the episodes, random actions in the others.

    Random are picks on the object where actions point into a picture, else the whole box.
    """

    @dataclass(frozen=True)
    class Config:
        """Who acts how often, and how."""

        share: float = 0.5  # of the episodes that are the expert's
        expert: NoisyOracle.Config = field(default_factory=NoisyOracle.Config)
        picks: RandomPick.Config = field(default_factory=RandomPick.Config)  # where actions point
        box: Box.Config = field(default_factory=Box.Config)  # where they do not

        def __post_init__(self) -> None:
            """Raise ConfigError where the share is out of range."""
            check_range("Mixture.share", self.share, 0.0, 1.0)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Explore for `spec`; any will do."""
        self.config = config or self.Config()
        self._expert = NoisyOracle(spec, self.config.expert)
        self._random: Explorer = (
            Box(spec, self.config.box) if spec.pick is None else RandomPick(spec, self.config.picks)
        )
        self._acting: Explorer = self._random

    def begin(self, env: Env, rng: np.random.Generator) -> Observation | None:
        """Choose who acts in the episode, and return the goal where it is the expert."""
        by_expert = rng.random() < self.config.share
        self._acting = self._expert if by_expert else self._random
        return self._acting.begin(env, rng)

    def act(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return an action (A,) inside the bounds."""
        return self._acting.act(observation, rng)
