"""Recording of episodes, each determined by a recipe and its index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from latentplan.errors import UnstablePhysics, check_range
from latentplan.protocols import Env, EnvPolicy, GoalChoosingPolicy, Policy
from latentplan.types import Array, Episode, Label, Observation, Spec

REFUSED = "refused"  # key of a step's info: number of actions so far that the env did not execute
UNSTABLE = "unstable_tries"  # key of an episode's info: number of diverged attempts before it


@dataclass(frozen=True)
class CollectConfig:
    """The length of episodes, and the number of attempts at one."""

    length: int = 20  # actions per episode, if the env does not end it
    attempts: int = 20  # attempts at one episode if the physics diverges

    def __post_init__(self) -> None:
        """Raise ConfigError if a number is out of range."""
        check_range("CollectConfig.length", self.length, 1)
        check_range("CollectConfig.attempts", self.attempts, 1)


@dataclass(frozen=True)
class Recipe:
    """Everything that an episode depends on besides its index; it is sent to the workers."""

    env: Callable[[Any], Env]  # importable class, called with its config
    policy: Callable[[Spec, Any], Policy]  # importable class, called with spec and config
    env_config: Any
    policy_config: Any
    config: CollectConfig
    seed: int


class Recording(NamedTuple):
    """An episode and the cost of recording it."""

    episode: Episode
    unstable: int  # attempts dropped because the physics diverged
    env_seconds: float  # time in the env, s: goal, reset and steps, with dropped attempts


class Recorder:
    """An env and a policy that record any episode of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        """Build the env and the policy."""
        self.recipe = recipe
        self.env = recipe.env(recipe.env_config)
        self.policy = recipe.policy(self.env.data_spec, recipe.policy_config)
        self._privileged = set(self.env.data_spec.privileged)
        if isinstance(self.policy, EnvPolicy):
            self.policy.attach(self.env)
            self._privileged = set()
        self._seconds = 0.0

    def record(self, index: int) -> Recording:
        """Record the episode of an index, again with other seeds if the physics diverges.

        Raises UnstablePhysics if all attempts diverge.
        """
        self._seconds = 0.0
        for attempt in range(self.recipe.config.attempts):
            try:
                return Recording(self._attempt(index, attempt), attempt, self._seconds)
            except UnstablePhysics as e:
                reason = e
        raise UnstablePhysics(
            f"collect: episode {index} was unstable in all of {self.recipe.config.attempts} "
            f"attempts ({reason}); change the env's settings, or CollectConfig.attempts"
        )

    def _attempt(self, index: int, attempt: int) -> Episode:
        source = np.random.SeedSequence(self.recipe.seed, spawn_key=(index, attempt))
        for_env, for_policy = source.spawn(2)
        seed = int(for_env.generate_state(1, np.uint64)[0] >> np.uint64(1))  # fits an int64
        self._timed(self.policy.reset, seed=for_policy)  # it may draw a goal in the env
        goal = self.policy.goal_chosen if isinstance(self.policy, GoalChoosingPolicy) else None
        options = None if goal is None else {"goal": goal.observation}
        observation, info = self._timed(self.env.reset, seed=seed, options=options)
        observations: list[Observation] = [observation]
        actions: list[Array] = []
        rewards: list[float] = []
        terminated = truncated = False
        while len(actions) < self.recipe.config.length and not (terminated or truncated):
            action = self.policy.act(self._given(observation))
            observation, reward, terminated, truncated, ended = self._timed(self.env.step, action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
        refused = {REFUSED: float(ended[REFUSED])} if REFUSED in ended else {}
        return Episode(
            observations={
                key: np.stack([o[key] for o in observations])
                for key in self.env.data_spec.observation
            },
            actions=np.stack(actions).astype(np.float32),
            rewards=np.asarray(rewards, np.float32),
            terminated=bool(terminated),
            truncated=bool(truncated),
            seed=seed,
            info=_numbers(info) | {UNSTABLE: float(attempt)} | refused,
            labels=_labels(info),
        )

    def _given(self, observation: Observation) -> Observation:
        """Return the keys that the policy may read: privileged ones for a policy of the env."""
        return {k: v for k, v in observation.items() if k not in self._privileged}

    def _timed(self, of_env: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        start = perf_counter()
        try:
            return of_env(*arguments, **named)
        finally:
            self._seconds += perf_counter() - start


def _labels(info: Mapping[str, Any]) -> tuple[Label, ...]:
    """Return a label of the whole episode from the strings `text` and `task` of the env's info."""
    texts = {name: info[name] for name in ("text", "task") if isinstance(info.get(name), str)}
    return (Label(**{"text": "", **texts}),) if any(texts.values()) else ()


def _numbers(info: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars of an env's info, with those in mappings named `key.name`."""
    kinds = bool | int | float | np.bool_ | np.integer | np.floating
    found = {}
    for key, value in info.items():
        if isinstance(value, kinds):
            found[key] = float(value)
        elif isinstance(value, Mapping):
            found |= {f"{key}.{name}": number for name, number in _numbers(value).items()}
    return found
