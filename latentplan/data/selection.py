"""A source restricted to some observations, with its images resized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from latentplan.errors import ConfigError, check_range
from latentplan.protocols import AnnotatedSource, SelectiveSource, Source
from latentplan.types import Array, ArraySpec, Episode

SMALLEST = 16  # pixels a side; smaller arrays are not images
CHANNELS = 8  # of an image at most
BLEND = Image.Resampling.BILINEAR  # Pillow's, which widens the kernel when it shrinks an image


class Selection:
    """A Source that gives the observations `keys` of another, images as `size` x `size` pixels.

    Colours (uint8, 3 per camera) are blended bilinearly, with a triangle twice as wide as a pixel
    of the smaller image. Depth, masks and points take the value of the nearest pixel. None keeps
    all observations, or the size.
    """

    def __init__(
        self, source: Source, *, keys: Sequence[str] | None = None, size: int | None = None
    ) -> None:
        """Take a source; ConfigError if it has no such observation."""
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
        if isinstance(source, SelectiveSource):
            source.choose(self.keys)
        self.notes = tuple(source.notes) if isinstance(source, AnnotatedSource) else ()
        self._source, self._size = source, size
        self.spec = replace(
            spec,
            observation={key: self._array(key, spec.observation[key]) for key in self.keys},
            privileged=tuple(key for key in spec.privileged if key in self.keys),
            pick=spec.pick if spec.pick and spec.pick.image in self.keys else None,
            planar=spec.planar if spec.planar and spec.planar.image in self.keys else None,
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
        """Return an episode of the source with the selected observations."""
        whole = self._source.episode(index)
        return replace(
            whole,
            observations={key: self._resized(whole.observations[key]) for key in self.keys},
        )

    def _array(self, key: str, array: ArraySpec) -> ArraySpec:
        if self._size is None:
            return array
        if key.endswith("intrinsics"):
            return replace(array, meaning=f"{array.meaning}; of the image before it was resized")
        if not is_image(array.shape):
            return array
        before = "x".join(map(str, array.shape[:2]))
        return replace(
            array,
            shape=(self._size, self._size, *array.shape[2:]),
            meaning=f"{array.meaning}; resized from {before}",
        )

    def _resized(self, values: Array) -> Array:
        if self._size is None or not is_image(values.shape[1:]):
            return values
        return resized(values, self._size)


def is_image(shape: Sequence[int]) -> bool:
    """Return whether a row of this shape is an image: (h, w) or (h, w, c), not too small."""
    return (
        len(shape) in (2, 3) and min(shape[:2]) >= SMALLEST and (*shape, 1)[2] <= CHANNELS
    )


def resized(images: Array, size: int) -> Array:
    """Return images (n, h, w) or (n, h, w, c) as (n, size, size, ...), as `Selection` says."""
    height, width = images.shape[1:3]
    if (height, width) == (size, size):
        return images
    if images.dtype == np.uint8 and images.shape[3:] and images.shape[3] % 3 == 0:
        return _blended(images, size)
    rows = ((np.arange(size) + 0.5) * height / size).astype(int)
    columns = ((np.arange(size) + 0.5) * width / size).astype(int)
    return np.ascontiguousarray(images[:, rows[:, None], columns])


def _blended(images: Array, size: int) -> Array:
    result = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for number, image in enumerate(images):
        for first in range(0, images.shape[3], 3):  # a tactile sensor has two images in one
            colours = Image.fromarray(np.ascontiguousarray(image[..., first : first + 3]))
            result[number, ..., first : first + 3] = colours.resize((size, size), BLEND)
    return result
