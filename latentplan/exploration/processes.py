"""Collection of episodes by processes of this machine."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial

from latentplan import workers as pool
from latentplan.exploration.recorder import Recipe, Recorder, Recording


def record(recipe: Recipe, indices: range, *, workers: int) -> Generator[Recording]:
    """Yield the episodes of `indices` in order; with 0 or 1 workers, this process records them.

    Raises `workers.WorkerDied` if an episode repeatedly ends the process that records it.
    """
    if workers > 1:
        yield from pool.each(partial(_recorder, recipe), indices, workers=workers)
        return
    recorder = Recorder(recipe)
    try:
        yield from map(recorder.record, indices)
    finally:
        recorder.env.close()


def _recorder(recipe: Recipe) -> Callable[[int], Recording]:
    return Recorder(recipe).record
