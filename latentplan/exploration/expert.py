"""An env's scripted expert at work on the task that the episode began with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentplan.errors import ConfigError, check_range
from latentplan.protocols import Env, ExpertEnv
from latentplan.types import Array, Observation, Spec


class Expert:
    """Explorer: does the task that the env drew, as a demonstration; with noise if wanted.

    The noise spares a gripper, which would let go.
    """

    @dataclass(frozen=True)
    class Config:
        """How much noise; 1 is half of an action's range."""

        noise: float = 0.0  # std on every number of the action
        turning: float = 1.0  # share of it that rotations have, where numbers 4 to 6 are such

        def __post_init__(self) -> None:
            """Raise ConfigError where a number is out of range."""
            check_range("Expert.noise", self.noise, 0.0, 10.0)
            check_range("Expert.turning", self.turning, 0.0, 10.0)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Explore for `spec`; the expert comes with the env."""
        config = config or self.Config()
        self.low = np.asarray(spec.action.low, np.float32)
        self.high = np.asarray(spec.action.high, np.float32)
        self._std = config.noise * (self.high - self.low) / 2
        convention = spec.action.convention
        if convention is not None and convention.control == "ee_delta":
            self._std[3:6] *= config.turning
        if convention is not None and convention.gripper:
            self._std[-1] = 0
        self._env: ExpertEnv | None = None

    def begin(self, env: Env, rng: np.random.Generator) -> None:
        """Take the env whose expert acts; ConfigError where it has none."""
        if not isinstance(env, ExpertEnv):
            raise ConfigError(
                f"explorer 'expert': env {env.data_spec.env!r} has none that needs no goal; "
                "take explorer 'oracle'"
            )
        self._env = env

    def act(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return an action (A,) float32 inside the bounds."""
        if self._env is None:
            raise ConfigError("explorer 'expert': begin(env, rng) comes before act")
        action = rng.normal(self._env.expert(observation, rng), self._std)
        return np.clip(action.astype(np.float32), self.low, self.high)
