"""A source restricted to some observations, with its images as rgb and resized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from latentplan.data import images
from latentplan.data.sources import observation_keys
from latentplan.errors import ConfigError, ShapeError, SourceError, check_range
from latentplan.protocols import AnnotatedSource, CountingSource, Source
from latentplan.types import Array, ArraySpec, Episode

BLEND = Image.Resampling.BILINEAR  # Pillow's, which widens the kernel when it shrinks an image


class Selection:
    """A Source that gives the observations `keys` of another, images as `size` x `size` pixels.

    Images of another form (channels first, grey, floats in 0 to 1) become (h, w, 3) uint8, see
    `images.as_rgb`; `notes` say which. Colours (uint8, 3 per camera) are blended bilinearly, with a
    triangle twice as wide as a pixel of the smaller image. Depth, masks and points take the value
    of the nearest pixel. None keeps all observations, or the size.
    """

    def __init__(
        self, source: Source, *, keys: Sequence[str] | None = None, size: int | None = None
    ) -> None:
        """Take a source; ConfigError if it has no such observation, or `size` has no image."""
        if size is not None:
            check_range("import.image_size", size, 1)
        spec = observation_keys.restricted(source.spec, keys)
        before = dict(spec.observation)
        self._source, self._size = source, size
        self._converted = _converted(source, before)
        now = before | self._converted
        if size is not None and not any(images.size(array.shape) for array in now.values()):
            found = ", ".join(f"{key} {array.shape}" for key, array in now.items())
            raise ConfigError(
                f"import.image_size: found {size}, but none of these is an image of at least "
                f"{images.SMALLEST} pixels a side: {found}; leave it out"
            )
        told = [
            f"{key}: {before[key].dtype} {before[key].shape} becomes uint8 {array.shape}"
            for key, array in self._converted.items()
        ]
        self.counts = source.counts if isinstance(source, CountingSource) else {}
        self.notes = (*(source.notes if isinstance(source, AnnotatedSource) else ()), *told)
        observation = {key: self._array(key, array) for key, array in now.items()}
        self.spec = replace(spec, observation=observation)
        self.settings: dict[str, Any] = {
            "source": source.settings,
            "keys": None if keys is None else list(before),
            "image_size": size,
        }

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self._source)

    def episode(self, index: int) -> Episode:
        """Return an episode of the source with the selected observations."""
        whole = self._source.episode(index)
        found = {key: self._image(key, whole.observations[key]) for key in self.spec.observation}
        return replace(whole, observations=found)

    def _array(self, key: str, array: ArraySpec) -> ArraySpec:
        if self._size is None:
            return array
        if key.endswith("intrinsics"):
            return replace(array, meaning=f"{array.meaning}; of the image before it was resized")
        before = images.size(array.shape)
        if before is None:
            return array
        first = images.channels_first(array.shape)
        channels = () if len(array.shape) == 2 else (array.shape[0 if first else 2],)
        square = (self._size, self._size)
        return replace(
            array,
            shape=(*channels, *square) if first else (*square, *channels),
            meaning=f"{array.meaning}; resized from {before[0]}x{before[1]}",
        )

    def _image(self, key: str, values: Array) -> Array:
        """Return the rows of an observation, those of images as rgb and resized."""
        if key in self._converted:
            values = images.as_rgb(key, values)
        if self._size is None or images.size(values.shape[1:]) is None:
            return values
        return resized(values, self._size)


def resized(values: Array, size: int) -> Array:
    """Return images (n, h, w), (n, h, w, c) or (n, c, h, w) resized, as `Selection` says."""
    if images.channels_first(values.shape[1:]):
        last = resized(np.moveaxis(values, 1, -1), size)
        return np.ascontiguousarray(np.moveaxis(last, -1, 1))
    height, width = values.shape[1:3]
    if (height, width) == (size, size):
        return values
    if values.dtype == np.uint8 and values.shape[3:] and values.shape[3] % 3 == 0:
        return _blended(values, size)
    rows = ((np.arange(size) + 0.5) * height / size).astype(int)
    columns = ((np.arange(size) + 0.5) * width / size).astype(int)
    return np.ascontiguousarray(values[:, rows[:, None], columns])


def _blended(values: Array, size: int) -> Array:
    result = np.empty((len(values), size, size, values.shape[3]), np.uint8)
    for number, image in enumerate(values):
        for first in range(0, values.shape[3], 3):  # a tactile sensor has two images in one
            colours = Image.fromarray(np.ascontiguousarray(image[..., first : first + 3]))
            result[number, ..., first : first + 3] = colours.resize((size, size), BLEND)
    return result


def _converted(source: Source, arrays: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    """Return the specs after conversion of the images that are not (h, w, 3) uint8 yet.

    Floats are images if they lie in 0 to 1 in the first whole episode.
    """
    found = {
        key: array
        for key, array in arrays.items()
        if images.may_be_rgb(key, array) and not images.is_image(array)
    }
    if any(array.dtype != "uint8" for array in found.values()):
        first = _first(source)
        for key, array in list(found.items()):
            try:
                images.as_rgb(key, first[key])
            except (KeyError, ShapeError):  # without a whole episode, or numbers that are no image
                if array.dtype != "uint8":
                    del found[key]
    return {
        key: replace(array, shape=(*(images.size(array.shape) or ()), 3), dtype="uint8")
        for key, array in found.items()
    }


def _first(source: Source) -> Mapping[str, Array]:
    """Return the observations of the first episode that can be read; none if there is none."""
    for index in range(len(source)):
        try:
            return source.episode(index).observations
        except (SourceError, ShapeError):
            continue
    return {}
