"""What the checks need of an episode: its numbers, and its images as summaries."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from latentplan.types import Array, Episode, Spec

WIDEST = 64  # numbers of an observation that is looked at as a vector
SIDE = 16  # pixels a side of a thumbnail


@dataclass(frozen=True)
class Camera:
    """The images of an episode of L actions."""

    low: Array  # (L + 1,) least and greatest number of an image, of every fourth pixel
    high: Array
    same: Array  # (L,) bool, whether an image equals the one before
    thumb: Array  # (16, 16, 3) float, mean of some images


@dataclass(frozen=True)
class Seen:
    """An episode of L actions."""

    number: int
    actions: Array  # (L, A) float
    vectors: dict[str, Array]  # each (L + 1, n) float, numbers that are no images
    cameras: dict[str, Camera]
    start: str  # digest of the first images and actions
    labels: int
    texts: int  # labels that are not empty

    @property
    def changed(self) -> Array:
        """Return in which rows (L,) bool a vector differs from the row before."""
        found = np.zeros(len(self.actions), bool)
        for rows in self.vectors.values():
            found |= (np.abs(np.diff(rows, axis=0)) > 1e-6).any(1)
        return found


def look(number: int, episode: Episode, spec: Spec) -> Seen:
    """Return what the checks need of an episode."""
    vectors, cameras = {}, {}
    digest = hashlib.sha256(np.ascontiguousarray(episode.actions).tobytes())
    for key, rows in episode.observations.items():
        if rows.dtype == np.uint8 and rows.ndim == 4 and rows.shape[-1] in (1, 3, 4):
            cameras[key] = _camera(rows)
            digest.update(np.ascontiguousarray(rows[0]).tobytes())
        elif key not in spec.privileged and rows.dtype.kind in "fiub":
            flat = rows.reshape(len(rows), -1).astype(np.float64)
            if 0 < flat.shape[1] <= WIDEST:
                vectors[key] = flat
                digest.update(flat[0].tobytes())
    texts = sum(bool(label.text.strip()) for label in episode.labels)
    actions = episode.actions.astype(np.float64)
    return Seen(number, actions, vectors, cameras, digest.hexdigest(), len(episode.labels), texts)


def _camera(rows: Array) -> Camera:
    few = rows[:, ::4, ::4].reshape(len(rows), -1)
    same = (rows[1:] == rows[:-1]).reshape(len(rows) - 1, -1).all(1)
    height, width = rows.shape[1:3]
    down, across = (np.linspace(0, n - 1, SIDE).round().astype(int) for n in (height, width))
    some = rows[np.linspace(0, len(rows) - 1, 5).round().astype(int)]
    thumb = some[:, down][:, :, across].astype(np.float64).mean(0)
    thumb = thumb[..., :3] if thumb.shape[-1] > 1 else thumb.repeat(3, -1)
    return Camera(few.min(1), few.max(1), same, thumb)
