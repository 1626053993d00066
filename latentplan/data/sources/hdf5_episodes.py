"""The episodes of an HDF5 file: one describes them, and all bound the actions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from latentplan.data.sources.hdf5 import Group
from latentplan.errors import SourceError
from latentplan.types import Array

T = TypeVar("T")


def scan(
    parent: Group,
    names: Iterable[str],
    *,
    actions: Callable[[Group], Array],
    observed: Callable[[Group, Array], T],
) -> tuple[T, Array, Array]:
    """Return what `observed` finds in the first episode that can be read, and the bounds (A,).

    These are the smallest and largest of all `actions` (L, A) with as many numbers as the first
    episode's. Raises the error of the first episode if none can be read.
    """
    first: T | None = None
    low = high = np.zeros(0, np.float32)
    errors: list[SourceError] = []
    for name in names:
        try:
            group = parent.group(name)
            values = actions(group)
            if first is None:
                first, low, high = observed(group, values), values[0], values[0]
        except SourceError as e:  # raised again when that episode is read
            errors.append(e)
            continue
        if values.shape[1:] == low.shape:
            low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
    if first is None:
        raise errors[0]
    return first, low, high
