"""A source with some of its observations, and its pictures in another size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from latentplan.errors import ConfigError, check_range
from latentplan.protocols import Source
from latentplan.types import Array, ArraySpec, Episode

SMALLEST = 16  # pixels a side; smaller arrays are not pictures
CHANNELS = 8  # of a picture at most
BLEND = Image.Resampling.BILINEAR  # of Pillow, which widens it where pictures get smaller


@runtime_checkable
class Choosing(Protocol):
    """A Source that can leave observations unread."""

    def choose(self, keys: Sequence[str]) -> None:
        """Give these observations alone from now on; `spec` says so, too."""


@runtime_checkable
class Noting(Protocol):
    """A Source that leaves something out, and says what."""

    notes: Sequence[str]  # a line each


class Selection:
    """A Source that gives the observations `keys` of another, pictures as `size` x `size` pixels.

    Colours (uint8, 3 to a camera) are a weighted mean of what is near: a triangle, twice as wide
    as a pixel of the smaller picture. Depth, masks and points keep their values: each pixel has
    that of its nearest one. None changes nothing.
    """

    def __init__(
        self, source: Source, *, keys: Sequence[str] | None = None, size: int | None = None
    ) -> None:
        """Take a source; ConfigError where it has no such observation."""
        if size is not None:
            check_range("import.image_size", size, 1)
        spec = source.spec
        for key in keys or ():
            if key not in spec.observation:
                known = ", ".join(spec.observation)
                raise ConfigError(f"import.keys: no observation {key!r}; the data set has: {known}")
        self.keys = tuple(spec.observation if keys is None else dict.fromkeys(keys))
        if not self.keys:
            raise ConfigError("import.keys: none is given; leave it out to take all")
        if isinstance(source, Choosing):
            source.choose(self.keys)
        self.notes = tuple(source.notes) if isinstance(source, Noting) else ()
        self._source, self._size = source, size
        self.spec = replace(
            spec,
            observation={key: self._array(key, spec.observation[key]) for key in self.keys},
            privileged=tuple(key for key in spec.privileged if key in self.keys),
            pick=spec.pick if spec.pick and spec.pick.image in self.keys else None,
        )
        self.settings: dict[str, Any] = {
            "source": source.settings,
            "keys": None if keys is None else list(self.keys),
            "image_size": size,
        }

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self._source)

    def episode(self, index: int) -> Episode:
        """Return an episode of the source with what was selected."""
        whole = self._source.episode(index)
        return replace(
            whole,
            observations={key: self._resized(whole.observations[key]) for key in self.keys},
        )

    def _array(self, key: str, array: ArraySpec) -> ArraySpec:
        if self._size is None:
            return array
        if key.endswith("intrinsics"):
            return replace(array, meaning=f"{array.meaning}; of the picture before it was resized")
        if not is_picture(array.shape):
            return array
        before = "x".join(map(str, array.shape[:2]))
        return replace(
            array,
            shape=(self._size, self._size, *array.shape[2:]),
            meaning=f"{array.meaning}; resized from {before}",
        )

    def _resized(self, values: Array) -> Array:
        if self._size is None or not is_picture(values.shape[1:]):
            return values
        return resized(values, self._size)


def is_picture(shape: Sequence[int]) -> bool:
    """Return whether a row of this shape is one: (h, w) or (h, w, c), h and w of some size."""
    return (
        len(shape) in (2, 3) and min(shape[:2]) >= SMALLEST and (*shape, 1)[2] <= CHANNELS
    )


def resized(pictures: Array, size: int) -> Array:
    """Return pictures (n, h, w) or (n, h, w, c) as (n, size, size, ...), as `Selection` says."""
    height, width = pictures.shape[1:3]
    if (height, width) == (size, size):
        return pictures
    if pictures.dtype == np.uint8 and pictures.shape[3:] and pictures.shape[3] % 3 == 0:
        return _blended(pictures, size)
    rows = ((np.arange(size) + 0.5) * height / size).astype(int)
    columns = ((np.arange(size) + 0.5) * width / size).astype(int)
    return np.ascontiguousarray(pictures[:, rows[:, None], columns])


def _blended(pictures: Array, size: int) -> Array:
    result = np.empty((len(pictures), size, size, pictures.shape[3]), np.uint8)
    for number, picture in enumerate(pictures):
        for first in range(0, pictures.shape[3], 3):  # a tactile sensor has two pictures in one
            colours = Image.fromarray(np.ascontiguousarray(picture[..., first : first + 3]))
            result[number, ..., first : first + 3] = colours.resize((size, size), BLEND)
    return result
