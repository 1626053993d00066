"""Masks of the objects in an image, by their colours.

A pixel belongs to the object, or the background, that has the nearest of the listed colours, so
that the blurred edge of a decoded object still counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from latentplan.data.images import segment
from latentplan.types import Array, Spec

Colours = tuple[tuple[int, int, int], ...]
BACKGROUND = "background"
TABLETOP: Mapping[str, Colours] = {  # lit, side and shaded faces, red green blue
    "red block": ((208, 24, 24), (172, 14, 14), (128, 8, 8)),
    "blue block": ((24, 48, 226), (18, 42, 182), (8, 32, 138)),
    "pink block": ((250, 124, 212), (206, 100, 174), (154, 76, 132)),
    "gripper": ((236, 236, 240), (188, 188, 194), (148, 148, 150)),
    "drawer": ((44, 108, 60), (52, 132, 76), (28, 84, 44), (246, 238, 206)),
    BACKGROUND: (
        *((82, 92, 106), (204, 172, 140), (84, 68, 52), (60, 60, 74), (164, 140, 116)),
        *((44, 148, 154), (66, 74, 92), (20, 20, 20), (204, 186, 50), (252, 140, 26)),
        *((204, 114, 20), (36, 38, 52), (250, 236, 58), (24, 112, 112)),
    ),
}
PALETTES = {"tabletop": TABLETOP}  # by the env's registry name


def known(spec: Spec) -> tuple[str, ...]:
    """Return the names of the objects that `masks` finds in images of the env."""
    if spec.env in PALETTES:
        return tuple(name for name in PALETTES[spec.env] if name != BACKGROUND)
    return () if spec.pick is None else (spec.env or "object",)


def masks(images: Array, spec: Spec) -> dict[str, Array]:
    """Return bool (..., h, w) of each known object in images (..., h, w, 3) uint8.

    Of an env without listed colours, it is what the spec states of what can be picked, if that.
    """
    if spec.env in PALETTES:
        return _nearest(images, PALETTES[spec.env])
    return {name: segment(images, spec.pick) for name in known(spec) if spec.pick is not None}


def _nearest(images: Array, palette: Mapping[str, Colours]) -> dict[str, Array]:
    owners = [name for name, colours in palette.items() for _ in colours]
    best = np.full(images.shape[:-1], np.inf, np.float32)
    owner = np.zeros(images.shape[:-1], np.int64)
    pixels = images.astype(np.float32)
    for number, colour in enumerate(c for colours in palette.values() for c in colours):
        away = np.square(pixels - np.array(colour, np.float32)).sum(-1)
        owner[away < best] = number
        best = np.minimum(best, away)
    return {
        name: np.isin(owner, [i for i, each in enumerate(owners) if each == name])
        for name in palette
        if name != BACKGROUND
    }
