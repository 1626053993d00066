"""The points of a flat or folded cloth."""

from __future__ import annotations

import numpy as np

from latentplan.types import Array

FOLDS = ("half", "diagonal", "corners")


def flat(rows: int, columns: int, *, spacing: float) -> Array:
    """Return a flat cloth (rows * columns, 3) around the origin, at height 0; rows along x."""
    x = (np.arange(rows) - (rows - 1) / 2) * spacing
    y = (np.arange(columns) - (columns - 1) / 2) * spacing
    return np.stack([*np.meshgrid(x, y, indexing="ij"), np.zeros((rows, columns))], -1).reshape(
        -1, 3
    )


def fold(points: Array, how: str, *, thickness: float, spacing: float) -> Array:
    """Return a flat cloth (P, 3) around the origin, folded: one layer lies `thickness` higher.

    `half`: the right half lies on the left one. `diagonal`: along y = x. `corners`: all four
    corners meet at the middle, `spacing` from each other. Points on a fold lie half as high.
    """
    x, y = points[:, 0], points[:, 1]
    if how == "half":
        over, there = x, np.stack([-x, y], 1)
    elif how == "diagonal":
        over, there = x - y, np.stack([y, x], 1)
    else:
        line = x.max() + spacing / 2  # |x| + |y| of the fold
        over = np.abs(x) + np.abs(y) - line
        there = np.stack([np.sign(x) * (line - np.abs(y)), np.sign(y) * (line - np.abs(x))], 1)
    folded = points.copy()
    moved = over > 1e-9
    folded[moved, :2] = there[moved]
    folded[:, 2] += thickness * np.where(moved, 1, np.where(over < -1e-9, 0, 0.5))
    return folded


def placed(points: Array, *, angle: float, centre: Array) -> Array:
    """Return points (P, 3) rotated about the vertical by `angle` rad, then translated by (2,)."""
    c, s = np.cos(angle), np.sin(angle)
    moved = points.copy()
    moved[:, :2] = points[:, :2] @ np.array([[c, s], [-s, c]]) + centre
    return moved
