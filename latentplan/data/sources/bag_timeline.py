"""Alignment of messages: the newest of each topic at the times of one topic.

Times are ns, int64, increasing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from latentplan.types import Array


class Series(NamedTuple):
    """The values of a topic and their times."""

    stamps: Array  # (M,) ns
    values: Array  # (M, ...)


def sampled(stamps: Array, dt: float) -> Array:
    """Return the indices of those of stamps (M >= 1,) that are nearest to a grid of `dt` ns.

    Each appears once; a part of the grid without messages has none.
    """
    since = (stamps - stamps[0]).astype(np.float64)
    cell = np.rint(since / dt)
    order = np.lexsort((np.abs(since - cell * dt), cell))  # the nearest of a cell comes first
    _, first = np.unique(cell[order], return_index=True)
    return np.asarray(order[first])


def newest(stamps: Array, at: Array, *, age: float) -> Array:
    """Return the index of the last of stamps (M,) at or before each of `at` (N,).

    -1 if there is none, or it is older than `age` ns.
    """
    index = np.searchsorted(stamps, at, side="right") - 1
    if not len(stamps):
        return index
    return np.where(at - stamps[np.maximum(index, 0)] <= age, index, -1)


def mean_held(series: Series, edges: Array) -> Array:
    """Return the mean (N - 1, C) between edges (N,) of values (M, C) that each hold until the next.

    The first edge lies at or after the first stamp.
    """
    stamps, values = series
    times = np.concatenate([stamps, [max(edges[-1], stamps[-1]) + 1]])
    seconds = np.diff(times)[:, None] * 1e-9
    total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values * seconds, axis=0)])
    index = np.searchsorted(stamps, edges, side="right") - 1
    until = total[index] + values[index] * (edges - stamps[index])[:, None] * 1e-9
    return np.asarray(np.diff(until, axis=0) / (np.diff(edges)[:, None] * 1e-9))


def stretches(index: Array, stamps: Array, *, gap: float) -> list[Array]:
    """Return the stretches of two or more of `index` (N,), rows of stamps (M,), without a gap.

    A gap is a row left out, or more than `gap` ns to the next.
    """
    if not len(index):
        return []
    breaks = (np.diff(index) > 1) | (np.diff(stamps[index]) > gap)
    parts = np.split(index, np.flatnonzero(breaks) + 1)
    return [part for part in parts if len(part) > 1]
