"""Distances between an object and its goal, in metres or as a share.

Points are (P, 2) or (P, 3) keypoints. `orders` (S, P) are the permutations under which an object
is the same: a rope's two ends are alike, and so are the sides and faces of a cloth.
"""

from __future__ import annotations

import numpy as np

from latentplan.types import Array


def rope_orders(points: int) -> Array:
    """Return the two orders (2, points) of a rope: from either end."""
    forward = np.arange(points)
    return np.stack([forward, forward[::-1]])


def grid_orders(rows: int, columns: int) -> Array:
    """Return rotations and flips (8, rows * columns) of a square grid, or (4, ...) of others."""
    grid = np.arange(rows * columns).reshape(rows, columns)
    turns = range(4) if rows == columns else (0, 2)
    return np.stack([np.rot90(g, k).ravel() for g in (grid, grid[:, ::-1]) for k in turns])


def best_order(points: Array, target: Array, *, orders: Array) -> Array:
    """Return the target's points in the order that is nearest to `points` on average."""
    renumbered = target[orders]  # S P d
    gap = np.linalg.norm(renumbered - points, axis=-1).mean(-1)
    best: Array = renumbered[gap.argmin()]
    return best


def matched(points: Array, target: Array, *, orders: Array) -> float:
    """Return the mean distance of points to their targets, for the best order."""
    return float(np.linalg.norm(best_order(points, target, orders=orders) - points, axis=-1).mean())


def best_pose(points: Array, target: Array, *, orders: Array) -> Array:
    """Return the target (P, 2) at the order and planar rigid transform nearest to `points`.

    Only x and y are used. Rotation and translation are the least squares solution (Umeyama, IEEE
    TPAMI 13, 1991, without scale); the order is the one of the least mean distance.
    """
    here, there = points[:, :2], target[:, :2]
    renumbered = there[orders]  # S P 2
    middle, centre = here.mean(0), there.mean(0)
    a, b = renumbered - centre, here - middle
    # The turn that maps a to b, as a complex number.
    turn = np.einsum("spi,pi->s", a, b) + 1j * (
        np.einsum("sp,p->s", a[..., 0], b[:, 1]) - np.einsum("sp,p->s", a[..., 1], b[:, 0])
    )
    size = np.abs(turn)
    turn = np.where(size > 1e-12, turn / np.maximum(size, 1e-12), 1.0)
    turned = (a[..., 0] + 1j * a[..., 1]) * turn[:, None]
    moved = np.stack([turned.real, turned.imag], -1) + middle
    best: Array = moved[np.linalg.norm(moved - here, axis=-1).mean(-1).argmin()]
    return best


def aligned(points: Array, target: Array, *, orders: Array) -> float:
    """Return the mean distance in the plane of points to their targets, at the best pose."""
    best = best_pose(points, target, orders=orders)
    return float(np.linalg.norm(best - points[:, :2], axis=-1).mean())


def chamfer(a: Array, b: Array) -> float:
    """Return the mean distance from each point to the nearest of the other set, both ways.

    This is half the Chamfer distance of Fan et al., CVPR 2017, with distances not squared.
    """
    gap = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return float((gap.min(1).mean() + gap.min(0).mean()) / 2)


def coverage(points: Array, *, rows: int, columns: int, area: float) -> float:
    """Return the share of `area` (m^2) that a grid of points (rows * columns, 2 or 3) covers.

    The grid is rasterised in the plane at a millimetre per pixel, which overestimates by about 1 %.
    """
    from PIL import Image, ImageDraw

    millimetres = (points[:, :2] - points[:, :2].min(0)) * 1e3
    width, height = np.ceil(millimetres.max(0)).astype(int) + 1
    canvas = Image.new("1", (int(width), int(height)))
    draw = ImageDraw.Draw(canvas)
    grid = millimetres.reshape(rows, columns, 2)
    a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
    for half in ((a, b, c), (a, c, d)):  # triangles, since a quadrilateral may cross itself
        for triangle in np.stack(half, 2).reshape(-1, 6).tolist():
            draw.polygon(triangle, fill=1)
    return float(np.asarray(canvas).sum() * 1e-6 / area)


def mask_iou(a: Array, b: Array) -> float:
    """Return the intersection over the union of two masks (h, w); 1 if both are empty."""
    either = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / either) if either else 1.0
