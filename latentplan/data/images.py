"""Segmentation of an object in an image, and conversion between pixels and actions."""

from __future__ import annotations

import numpy as np

from latentplan.shapes import check
from latentplan.types import Array, PickSpec


def segment(image: Array, pick: PickSpec) -> Array:
    """Return the mask (..., h, w) bool of the object in uint8 images (..., h, w, 3).

    A pixel belongs to it if all three colours lie in the range of `pick`, both ends included.
    Raises ShapeError if the last axis is not 3 colours.
    """
    check("segment.image", image.reshape(-1, *image.shape[-3:]), "n h w rgb", rgb=3)
    planes = np.ascontiguousarray(np.moveaxis(image, -1, 0))  # colour first: 10x faster
    bounds = np.array([pick.low, pick.high], np.uint8).reshape(2, 3, *[1] * (image.ndim - 1))
    return np.asarray(((planes >= bounds[0]) & (planes <= bounds[1])).all(axis=0))


def pixel_to_action(rows: Array, columns: Array, *, height: int, width: int) -> tuple[Array, Array]:
    """Return the action's x and y in [-1, 1] that point at the centres of pixels.

    Row r and column c may be fractions: x = (c + 0.5) / width * 2 - 1 to the right,
    y = 1 - (r + 0.5) / height * 2 upwards; +-1 are the outer edges of the image.
    """
    return (columns + 0.5) / width * 2 - 1, 1 - (rows + 0.5) / height * 2


def action_to_pixel(x: Array, y: Array, *, height: int, width: int) -> tuple[Array, Array]:
    """Return the rows and columns (fractions) that x and y of an action point at."""
    return (1 - y) / 2 * height - 0.5, (x + 1) / 2 * width - 0.5
