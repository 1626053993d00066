"""Images of the table as another camera would take them.

A plane that two cameras see is related by a homography (Hartley and Zisserman, Multiple View
Geometry, 2nd ed., 13.1). What stands above or below the plane is displaced, by its height times the
tangent of the angle between the two lines of sight.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from latentplan.shapes import check
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array


def rectify(image: Array, taken: Camera, wanted: Camera, *, height: float = 0.0) -> Array:
    """Return the image (h, w, 3) uint8 of the plane z = `height` (m) from the camera `wanted`.

    Pixels are interpolated linearly in an image that the camera `taken` took; those that it does
    not contain have its median colour. Raises ShapeError if the image has another size than the
    camera's.
    """
    check("rectify.image", image, "h w channel", h=taken.height, w=taken.width, channel=3)
    if taken == wanted:
        return image
    inside, corners, weights = _sampling(taken, wanted, height)
    pixels = image.reshape(-1, 3)
    found = np.empty((len(inside), 3), np.uint8)
    found[:] = np.median(pixels, axis=0)
    found[inside] = np.rint((pixels[corners] * weights[..., None]).sum(1))
    return found.reshape(wanted.height, wanted.width, 3)


@lru_cache(maxsize=16)
def _sampling(taken: Camera, wanted: Camera, height: float) -> tuple[Array, Array, Array]:
    """Return which wanted pixels the image contains, and the four pixels (n, 4) of each, weighted.

    Rows are pixels of the wanted image; pixels of the image taken are numbered row by row.
    """
    v, u = np.indices((wanted.height, wanted.width))
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(wanted.intrinsics()).T
    rays = rays.reshape(-1, 3) @ wanted.axes()
    with np.errstate(divide="ignore", invalid="ignore"):
        points = wanted.position + rays * ((height - wanted.position[2]) / rays[:, 2:])
        at, depth = taken.project(points)
    limit = np.array([taken.width, taken.height]) - 1
    inside = (depth > 0) & (at >= 0).all(1) & (at <= limit).all(1)
    low = np.minimum(np.floor(at[inside]).astype(int), limit - 1)
    (x, y), part = low.T, at[inside] - low
    first = y * taken.width + x
    corners = np.stack([first, first + 1, first + taken.width, first + taken.width + 1], 1)
    right, down = part.T
    weights = np.stack(
        [(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down], 1
    )
    return inside, corners, weights.astype(np.float32)
