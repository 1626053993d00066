"""What an image is: the one check of all sources, conversion to rgb, and pixels as actions.

An image is a row of (h, w, 3) uint8, red green blue, of at least `SMALLEST` pixels a side. Sources
also hold images with the channels first, in grey, or as floats in 0 to 1: `as_rgb` converts them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from latentplan.errors import ShapeError
from latentplan.shapes import check
from latentplan.types import Array, ArraySpec, PickSpec

SMALLEST = 16  # pixels a side; smaller arrays, such as a map of 7 x 7 cells, are not images
CHANNELS = 8  # of an image at most
LIFT = (0.0, 0.15)  # height of the middle of a drag, m, at -1 and 1 of a pick's fifth number
# Arrays with these words in their name or meaning have the shape of images but no colours.
NO_COLOURS = re.compile(
    r"depth|mask|segment|cloud|\bpoint|points|normals|flow|label|disparity|heatmap|xyz|x, y, z"
)


def is_image(array: ArraySpec) -> bool:
    """Return whether rows are images: (h, w, 3) uint8 of at least `SMALLEST` pixels a side."""
    shape = array.shape
    return array.dtype == "uint8" and shape[2:] == (3,) and min(shape[:2]) >= SMALLEST


def channels_first(shape: Sequence[int]) -> bool:
    """Return whether a row of this shape is (c, h, w), with fewer channels than pixels a side."""
    return len(shape) == 3 and shape[0] <= CHANNELS < min(shape[1:])


def size(shape: Sequence[int]) -> tuple[int, int] | None:
    """Return (h, w) of a row (h, w), (h, w, c) or (c, h, w) of pixels; None if it is not one."""
    if len(shape) not in (2, 3):
        return None
    height, width = shape[1:] if channels_first(shape) else shape[:2]
    few = channels_first(shape) or (*shape, 1)[2] <= CHANNELS
    return (height, width) if few and min(height, width) >= SMALLEST else None


def may_be_rgb(key: str, array: ArraySpec) -> bool:
    """Return whether rows have the shape and type of an image that `as_rgb` converts.

    These are uint8 with 1 or 3 channels, and floats with 3; floats must also lie in 0 to 1. Depth,
    masks and points, by the words in their name or meaning, and single-channel floats are not.
    """
    if size(array.shape) is None or NO_COLOURS.search(f"{key} {array.meaning}".lower()):
        return False
    channels = 1 if len(array.shape) == 2 else array.shape[0 if channels_first(array.shape) else 2]
    floats = np.dtype(array.dtype).kind == "f"
    return channels == 3 if floats else array.dtype == "uint8" and channels in (1, 3)


def as_rgb(where: str, values: Array) -> Array:
    """Return images (n, h, w, 3) uint8 of `values` (n, ...) with 1 or 3 channels, first or last.

    Grey becomes three equal channels; floats are multiplied by 255 and rounded. Raises ShapeError
    for another shape or dtype, or if a float is outside 0 to 1.
    """
    found = f"{where}: found {values.dtype} {values.shape[1:]}"
    if values.ndim == 3:
        values = values[..., None]
    if channels_first(values.shape[1:]):
        values = np.moveaxis(values, 1, -1)
    floats = values.dtype.kind == "f"
    if values.shape[3:] not in ((1,), (3,)) or not (floats or values.dtype == np.uint8):
        raise ShapeError(f"{found}, need images (h, w, 3) of uint8, or of floats in 0 to 1")
    if floats:
        low, high = values.min(initial=0), values.max(initial=0)
        if not 0 <= low <= high <= 1:  # also if one is NaN
            raise ShapeError(
                f"{found} from {low:g} to {high:g}, need uint8, or floats in 0 to 1; convert these "
                "images, or leave them out (keys)"
            )
        values = np.rint(values * 255).astype(np.uint8)
    if values.shape[-1] == 1:
        values = np.repeat(values, 3, axis=-1)
    return np.ascontiguousarray(values)


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
