"""Overlays of a goal on an observed image, for people."""

from __future__ import annotations

import numpy as np

from latentplan.shapes import check
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array

GOAL = (255, 90, 220)  # red, green, blue


def mask(
    image: Array, mask: Array, *, colour: tuple[int, int, int] = GOAL, opacity: float = 0.45
) -> Array:
    """Return the image (h, w, 3) uint8 with a mask (h, w) bool in a colour, its edge opaque.

    The mask is a goal's: its `segmentation_<camera>` == 1, or the segmentation of a real camera's
    image. Raises ShapeError if the shapes do not fit.
    """
    check("overlay.image", image, "h w rgb", rgb=3)
    height, width = image.shape[:2]
    check("overlay.mask", mask, "h w", h=height, w=width)
    padded = np.pad(mask.astype(bool), 1)
    within = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    share = np.where(mask, np.where(within, opacity, 1.0), 0.0)[..., None]
    return _blend(image, np.asarray(colour), share)


def points(
    image: Array,
    points: Array,
    *,
    camera: Camera,
    colour: tuple[int, int, int] = GOAL,
    radius: float = 1.0,
) -> Array:
    """Return the image (h, w, 3) uint8 of a camera with points (P, 3) of the world, m, as discs.

    The points are a goal's keypoints or a cloud; `radius` is in pixels. Points outside the view are
    left out. Nearer discs do not hide farther ones, since all have one colour.
    """
    check("overlay.image", image, "h w rgb", h=camera.height, w=camera.width, rgb=3)
    check("overlay.points", points, "P xyz", xyz=3)
    pixels, depth = camera.project(points)
    pixels = pixels[depth > 0]
    reach = int(np.ceil(radius))
    # Only pixels around each point can be covered: (P, side, side).
    offset = np.arange(-reach, reach + 1)
    nearest = np.rint(pixels).astype(int)
    u = nearest[:, 0, None, None] + offset[None, None, :]
    v = nearest[:, 1, None, None] + offset[None, :, None]
    gap = np.hypot(u - pixels[:, 0, None, None], v - pixels[:, 1, None, None])
    inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    # A disc's edge is smooth: the coverage of a pixel falls with its distance from the disc.
    share = np.where(inside, np.clip(radius + 0.5 - gap, 0, 1), 0)
    cover = np.zeros(image.shape[:2])
    u, v = np.broadcast_arrays(u, v)
    np.maximum.at(cover, (v[inside], u[inside]), share[inside])
    return _blend(image, np.asarray(colour), cover[..., None])


def _blend(image: Array, colour: Array, share: Array) -> Array:
    blended: Array = np.rint(image * (1 - share) + colour * share).astype(np.uint8)
    return blended
