"""Collection of episodes by workers into a store.

Episode i depends on (seed, i) and the recipe alone, and episodes are stored in order. The data is
therefore the same for any number and kind of workers and after any interruption.
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
    """Progress of one call of `collect`."""

    episodes: int = 0
    transitions: int = 0
    unstable: int = 0  # attempts dropped because the physics diverged
    env_seconds: float = 0.0  # time that workers spent in their envs, s
    refused: float | None = None  # actions that the env did not execute; None if it counts none


def collect(
    store: EpisodeStore,
    recipe: Recipe,
    *,
    episodes: int,
    workers: int,
    ray: str | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Append episodes to `store` until it holds `episodes`, and return the progress of this call.

    `workers` processes step envs (0 or 1: this process alone), or as many Ray actors on the cluster
    `ray` (an address, `auto` or `local`; see `cluster`). `report` is called after every episode.
    Raises UnstablePhysics if all attempts of an episode diverge, and LatentplanError if an episode
    ends every worker that records it or if Ray does not answer; stored episodes are kept.
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
