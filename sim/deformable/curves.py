"""The goal shapes of a rope, as bends along its length."""

from __future__ import annotations

from math import pi

import numpy as np

from latentplan.types import Array

# Each bend: its middle and its extent, as shares of the length; its angle in rad.
SHAPES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "straight": (),
    "C": ((0.5, 1.0, 1.15 * pi),),
    "J": ((0.8, 0.36, 0.9 * pi),),
    "L": ((0.6, 0.1, 0.5 * pi),),
    "S": ((0.25, 0.5, 1.1 * pi), (0.75, 0.5, -1.1 * pi)),
    "U": ((0.5, 0.34, pi),),
    "V": ((0.5, 0.1, 0.7 * pi),),
    "W": ((0.25, 0.1, 0.7 * pi), (0.5, 0.1, -0.7 * pi), (0.75, 0.1, 0.7 * pi)),
    "Z": ((0.33, 0.1, 0.7 * pi), (0.67, 0.1, -0.7 * pi)),
    "circle": ((0.5, 1.0, 1.85 * pi),),  # the ends do not touch
}


def bends(shape: str, links: int) -> Array:
    """Return the bends (links - 1,), rad, of a named shape, each link against the previous one.

    A bend spreads evenly over the joints in its extent, at least one.
    """
    at = np.arange(1, links) / links  # the joints, as shares of the length
    angles = np.zeros(links - 1)
    for middle, reach, angle in SHAPES[shape]:
        gap = np.abs(at - middle)
        joints = gap <= max(reach / 2, gap.min()) + 1e-9
        angles[joints] += angle / joints.sum()
    return angles
