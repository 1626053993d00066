"""Episodes collected by workers into a store.

Episode i is a function of (seed, i) and the recipe alone, and episodes are stored in their order:
the data is the same for any number and kind of workers, and after any interruption.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from latentplan.errors import LatentplanError
from latentplan.exploration import cluster, processes
from latentplan.exploration.recorder import REFUSED, Recipe
from latentplan.protocols import EpisodeStore
from latentplan.workers import WorkerDied


class Progress(NamedTuple):
    """How far a collection is; all of this call alone."""

    episodes: int = 0
    transitions: int = 0
    unstable: int = 0  # tries dropped because the physics diverged
    env_seconds: float = 0.0  # that workers spent in their envs
    refused: float | None = None  # actions that the env would not do; None where it does not say


def collect(
    store: EpisodeStore,
    recipe: Recipe,
    *,
    episodes: int,
    workers: int,
    ray: str | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Append to `store` until it holds `episodes`, and return what this call added.

    Goes on where the store ends. `workers` processes step envs (0 or 1: this one), or as many Ray
    actors on the cluster `ray` (an address, `auto` or `local`; see `cluster`). `report` is called
    after every episode. Raises UnstablePhysics where an episode fails in every attempt,
    LatentplanError where it ends its worker every time or where Ray does not answer; what was
    stored by then is kept.
    """
    progress = Progress()
    missing = range(len(store), episodes)
    if ray is None:
        recorded = processes.record(recipe, missing, workers=workers)
    else:
        recorded = cluster.record(recipe, missing, workers=max(workers, 1), address=ray)
    try:
        for episode, unstable, env_seconds in recorded:
            store.append(episode)
            refused = episode.info.get(REFUSED)
            progress = Progress(
                progress.episodes + 1,
                progress.transitions + len(episode),
                progress.unstable + unstable,
                progress.env_seconds + env_seconds,
                None if refused is None else (progress.refused or 0) + refused,
            )
            report(progress)
    except WorkerDied as e:
        raise LatentplanError(
            f"collect: {e}; {len(store)} of {episodes} episodes are kept; "
            "run the same again to go on"
        ) from None
    finally:
        recorded.close()
    return progress
