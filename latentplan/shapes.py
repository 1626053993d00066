"""Checks of shapes and finiteness."""

from __future__ import annotations

from functools import cache
from typing import Any

from latentplan.errors import ShapeError


def check(where: str, x: Any, axes: str, **sizes: int) -> None:
    """Raise ShapeError unless `x`, a numpy array or tensor, has the named axes and given sizes.

    `check("Planner.context", z, "B T D", D=16)` accepts any B and T.
    """
    names, shape = _split(axes), tuple(x.shape)
    fits = len(shape) == len(names)
    for name, size in sizes.items():
        fits = fits and shape[names.index(name)] == size
    if not fits:
        want = ", ".join(f"{n}={sizes[n]}" if n in sizes else n for n in names)
        raise ShapeError(f"{where}: found shape {shape}, need ({want})")


@cache  # planners check in every round, with a few constant texts
def _split(axes: str) -> list[str]:
    return axes.split()


def check_finite(where: str, x: Any) -> None:
    """Raise ShapeError if `x` (a numpy array) has a NaN or an infinity."""
    import numpy as np

    if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).sum())
        raise ShapeError(f"{where}: {bad} of {x.size} numbers are NaN or infinite")
