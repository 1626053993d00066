"""Episodes collected by worker processes into a store.

Episode i is a function of (seed, i) and the recipe alone, and episodes are stored in their order:
the data is the same for any number of workers, and after any interruption.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import numpy as np

from latentplan.errors import LatentplanError, UnstablePhysics, check_range
from latentplan.protocols import Env, EpisodeStore, Explorer
from latentplan.types import Array, Episode, Observation, Spec

AHEAD = 4  # episodes in flight for each worker: keeps it busy, and memory flat


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


class Progress(NamedTuple):
    """How far a collection is; counts are of this call alone."""

    episodes: int = 0
    transitions: int = 0
    unstable: int = 0  # tries dropped because the physics diverged


def collect(
    store: EpisodeStore,
    recipe: Recipe,
    *,
    episodes: int,
    workers: int,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Append to `store` until it holds `episodes`, and return what this call added.

    Goes on where the store ends. `workers` processes step envs (0 or 1: this one); `report` is
    called after every episode. Raises UnstablePhysics where an episode fails in every attempt,
    LatentplanError where a worker dies; what was stored by then is kept.
    """
    progress = Progress()
    recorded = _episodes(recipe, range(len(store), episodes), workers)
    try:
        for episode, unstable in recorded:
            store.append(episode)
            progress = Progress(
                progress.episodes + 1,
                progress.transitions + len(episode),
                progress.unstable + unstable,
            )
            report(progress)
    except BrokenProcessPool:
        raise LatentplanError(
            f"collect: a worker process died (killed, out of memory, or its env crashed); "
            f"{len(store)} of {episodes} episodes are kept; run the same again to go on"
        ) from None
    finally:
        recorded.close()
    return progress


class Recorder:
    """An env and an explorer that make any episode of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        """Build the env; it lives as long as the recorder."""
        self.recipe = recipe
        self.env = recipe.env(recipe.env_config)
        self.explorer = recipe.explorer(self.env.data_spec, recipe.explorer_config)

    def record(self, index: int) -> tuple[Episode, int]:
        """Return episode number `index` and how many tries before it met unstable physics."""
        for attempt in range(self.recipe.config.attempts):
            try:
                return self._attempt(index, attempt), attempt
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

        observation, _ = self.env.reset(seed=seed)
        observations: list[Observation] = [observation]
        actions: list[Array] = []
        rewards: list[float] = []
        terminated = truncated = False
        while len(actions) < self.recipe.config.length and not (terminated or truncated):
            action = self.explorer.act(observation, rng)
            observation, reward, terminated, truncated, _ = self.env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
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
        )


def _episodes(recipe: Recipe, indices: range, workers: int) -> Generator[tuple[Episode, int]]:
    """Yield the episodes in order, made here or by worker processes."""
    if workers <= 1:
        recorder = Recorder(recipe)
        try:
            yield from map(recorder.record, indices)
        finally:
            recorder.env.close()
        return
    with _one_thread_each():
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(recipe,)
        )
        try:
            flying: deque[Future[tuple[Episode, int]]] = deque()
            for index in indices:
                flying.append(pool.submit(_record, index))
                if len(flying) >= workers * AHEAD:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


_recorder: Callable[[], Recorder]  # of a worker process


def _start(recipe: Recipe) -> None:
    """Prepare a worker: it leaves Ctrl-C to its parent, and does not outlive it."""
    global _recorder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _recorder = cache(lambda: Recorder(recipe))  # built by the first task, which can tell errors


def _record(index: int) -> tuple[Episode, int]:
    return _recorder().record(index)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let every worker started within use one core."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
