"""Statistics of a store's training episodes, by which a learner scales its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from latentplan.data.store import ZarrStore
from latentplan.data.windows import is_test
from latentplan.errors import StoreError
from latentplan.types import Array, Moments

BLOCK = 64 << 20  # bytes of rows as float64 that are read at a time


def statistics(
    store: ZarrStore, keys: Sequence[str], *, held_out: float
) -> tuple[Moments, dict[str, Moments]]:
    """Return those of the actions, and of the observations `keys`, over the training episodes.

    Raises StoreError if a number is NaN or infinite.
    """
    of = {key: _moments(store, f"observation/{key}", held_out) for key in keys}
    return _moments(store, "action", held_out), of


def _moments(store: ZarrStore, name: str, held_out: float) -> Moments:
    """Return the statistics of an array, in one pass.

    Sums are of the differences to the first row, so that a constant has a std of exactly 0.
    """
    count, first, total, squares = 0, np.zeros(()), np.zeros(()), np.zeros(())
    for rows in _blocks(store, name, held_out):
        if count == 0:
            first = rows[0]
        away = rows - first
        count += len(rows)
        total = total + away.sum(0)
        squares = squares + np.square(away).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    return Moments(first + mean, std)


def _blocks(store: ZarrStore, name: str, held_out: float) -> Iterator[Array]:
    """Yield the rows (n, ...) float64 of the training episodes, some at a time."""
    lengths = np.diff(store.ends, prepend=0)
    episode_of = np.repeat(np.arange(len(store)), lengths)
    trained = ~is_test(np.arange(len(store)), held_out)[episode_of]
    if name == "action":  # the row of an episode's last observation has none
        trained[store.ends - 1] = False
    items = max(1, store.row_bytes(name))
    size = max(1, BLOCK // (8 * items))
    for start in range(0, len(trained), size):
        chosen = trained[start : start + size]
        if not chosen.any():
            continue
        rows = store.rows(name, start, start + size)[chosen].astype(np.float64)
        finite = np.isfinite(rows.reshape(len(rows), -1)).all(1)
        if not finite.all():
            episode = episode_of[start : start + size][chosen][~finite][0]
            raise StoreError(
                f"{store.path}: {name} of episode {episode} has a number that is NaN or infinite; "
                "collect or import it again, or train on other observations"
            )
        yield rows
