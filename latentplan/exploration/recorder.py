"""One episode after the other: an env, an explorer, and the number that all chance comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from latentplan.errors import UnstablePhysics, check_range
from latentplan.protocols import Env, Explorer
from latentplan.types import Array, Episode, Label, Observation, Spec

REFUSED = "refused"  # name in a step's info: actions so far that the env would not do
UNSTABLE = "unstable_tries"  # name in an episode's info: tries before it that the physics ended


@dataclass(frozen=True)
class CollectConfig:
    """How long episodes are, and how often one is tried."""

    length: int = 20  # actions an episode, unless the env ends it
    attempts: int = 20  # tries of one episode that meets unstable physics each time

    def __post_init__(self) -> None:
        """Raise ConfigError where a number is out of range."""
        check_range("CollectConfig.length", self.length, 1)
        check_range("CollectConfig.attempts", self.attempts, 1)


@dataclass(frozen=True)
class Recipe:
    """All that an episode depends on besides its number; goes to the workers."""

    env: Callable[[Any], Env]  # importable class, called with its config
    explorer: Callable[[Spec, Any], Explorer]  # importable class, called with spec and config
    env_config: Any
    explorer_config: Any
    config: CollectConfig
    seed: int


class Recording(NamedTuple):
    """What a worker gives back."""

    episode: Episode
    unstable: int  # tries dropped because the physics diverged
    env_seconds: float  # spent in the env: goal, reset and steps, dropped tries included


class Recorder:
    """An env and an explorer that make any episode of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        """Build the env; it lives as long as the recorder."""
        self.recipe = recipe
        self.env = recipe.env(recipe.env_config)
        self.explorer = recipe.explorer(self.env.data_spec, recipe.explorer_config)
        self._seconds = 0.0

    def record(self, index: int) -> Recording:
        """Return episode number `index`, made again while the physics is unstable.

        Raises UnstablePhysics where every attempt of the recipe was.
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
        for_env, for_explorer = source.spawn(2)
        seed = int(for_env.generate_state(1, np.uint64)[0] >> np.uint64(1))  # fits an int64
        rng = np.random.default_rng(for_explorer)

        goal = self._timed(self.explorer.begin, self.env, rng)
        options = None if goal is None else {"goal": goal}
        observation, info = self._timed(self.env.reset, seed=seed, options=options)
        observations: list[Observation] = [observation]
        actions: list[Array] = []
        rewards: list[float] = []
        terminated = truncated = False
        while len(actions) < self.recipe.config.length and not (terminated or truncated):
            action = self.explorer.act(observation, rng)
            observation, reward, terminated, truncated, told = self._timed(self.env.step, action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
        refused = {REFUSED: float(told[REFUSED])} if REFUSED in told else {}
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

    def _timed(self, of_env: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        start = perf_counter()
        try:
            return of_env(*arguments, **named)
        finally:
            self._seconds += perf_counter() - start


def _labels(info: Mapping[str, Any]) -> tuple[Label, ...]:
    """Return what an env says of the whole episode: the texts `text` and `task` of its info."""
    said = {name: info[name] for name in ("text", "task") if isinstance(info.get(name), str)}
    return (Label(**{"text": "", **said}),) if any(said.values()) else ()


def _numbers(info: Mapping[str, Any]) -> dict[str, float]:
    """Return what an env tells of an episode in single numbers, those in mappings as `key.name`."""
    kinds = bool | int | float | np.bool_ | np.integer | np.floating
    found = {}
    for key, value in info.items():
        if isinstance(value, kinds):
            found[key] = float(value)
        elif isinstance(value, Mapping):
            found |= {f"{key}.{name}": number for name, number in _numbers(value).items()}
    return found
