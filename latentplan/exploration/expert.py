"""Policy `expert`: an env's scripted expert for the task of the episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from latentplan.errors import ConfigError, check_range
from latentplan.exploration.noise import ActionNoise, half_range
from latentplan.protocols import Env, ExpertEnv
from latentplan.types import Array, Goal, Observation, Spec


class Expert:
    """Policy that demonstrates the task of the episode, with optional noise.

    The gripper has no noise, since it would drop objects.
    """

    @dataclass(frozen=True)
    class Config:
        """The noise of the actions; 1 is half of an action's range."""

        noise: float = 0.0  # std on every number of the action
        turning: float = 1.0  # factor of the std on numbers 4 to 6, if they are a rotation

        def __post_init__(self) -> None:
            """Raise ConfigError if a number is out of range."""
            check_range("Expert.noise", self.noise, 0.0, 10.0)
            check_range("Expert.turning", self.turning, 0.0, 10.0)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Take the spec of the actions; `attach` must follow."""
        config = config or self.Config()
        std = config.noise * half_range(spec)
        convention = spec.action.convention
        if convention is not None and convention.control == "ee_delta":
            std[3:6] *= config.turning
        if convention is not None and convention.gripper:
            std[-1] = 0
        self._noise = ActionNoise(spec, std)
        self._env: ExpertEnv | None = None
        self.reset()

    def attach(self, env: Env) -> None:
        """Set the env whose expert acts; ConfigError if it has no expert."""
        if not isinstance(env, ExpertEnv):
            raise ConfigError(
                f"policy expert: env {env.data_spec.env!r} has no expert that needs no goal "
                "(protocols.ExpertEnv); use policy oracle"
            )
        self._env = env

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode; the task is that of the env, and the goal is not used."""
        self._rng = np.random.default_rng(seed)

    def act(self, observation: Observation) -> Array:
        """Return an action (A,) float32 inside the bounds."""
        if self._env is None:
            raise ConfigError("policy expert: found no env; attach(env) comes before act")
        return self._noise.add(self._env.expert(observation, self._rng), self._rng)
