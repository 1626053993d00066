"""A point that actions push about, observed in every way that the encoder takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from latentplan.data.store import ZarrStore
from latentplan.types import ActionSpec, Array, ArraySpec, Episode, Spec

STEP = 0.3  # of an action of 1; the point stays within [-1, 1]
KINDS = {
    "front": ArraySpec((24, 32, 3), "uint8"),
    "wrist": ArraySpec((16, 16, 1), "uint8"),
    "depth": ArraySpec((16, 20), "float32", "m"),
    "depth_channel": ArraySpec((16, 16, 1), "float32", "m"),
    "cloud": ArraySpec((12, 3), "float32", "m"),
    "joints": ArraySpec((4,), "float32", "the position, a constant, noise"),
    "open": ArraySpec((), "bool"),
}


def spec(keys: tuple[str, ...], *, unit: float = 1.0) -> Spec:
    """Return the spec of a store with some of the observations."""
    seen = {key: KINDS[key] for key in keys}
    return Spec(seen, ActionSpec((-unit,) * 2, (unit,) * 2), env="point")


def observe(position: Array, keys: tuple[str, ...], *, seed: int = 0) -> dict[str, Array]:
    """Return observations of a position (2,)."""
    rng = np.random.default_rng(seed)
    around = position + 0.05 * rng.normal(size=(12, 2))
    joints = [*position, 0.1, rng.normal()]
    views = {
        "front": (255 * _bump(position, (24, 32))[..., None].repeat(3, 2)).astype(np.uint8),
        "wrist": (255 * _bump(position, (16, 16))[..., None]).astype(np.uint8),
        "depth": 40 - _bump(position, (16, 20)),
        "depth_channel": 40 - _bump(position, (16, 16))[..., None],
        "cloud": np.c_[around, np.full(12, 0.2)],
        "joints": np.array(joints),
        "open": np.asarray(position[0] > 0),
    }
    return {key: views[key].astype(KINDS[key].dtype) for key in keys}


def stored(
    path: Path,
    keys: tuple[str, ...],
    *,
    unit: float = 1.0,
    episodes: int = 30,
    length: int = 12,
) -> Path:
    """Write episodes of random actions, which are `unit` times as large as a motion of 1."""
    with ZarrStore.create(path, spec(keys, unit=unit)) as store:
        for number in range(episodes):
            rng = np.random.default_rng(number)
            actions = rng.uniform(-1, 1, (length - 1, 2))
            places = [rng.uniform(-1, 1, 2)]
            for action in actions:
                places.append(np.clip(places[-1] + STEP * action, -1, 1))
            rows = [observe(each, keys, seed=100 * number + t) for t, each in enumerate(places)]
            store.append(
                Episode(
                    {key: np.stack([row[key] for row in rows]) for key in keys},
                    (unit * actions).astype(np.float32),
                    np.zeros(length - 1, np.float32),
                )
            )
    return path


def _bump(position: Array, size: tuple[int, int]) -> Array:
    """Return an image with a bright spot at a position: x to the right, y up."""
    height, width = size
    down, right = (1 - 2 * (np.arange(side) + 0.5) / side for side in (height, width))
    away = np.square(down[:, None] - position[1]) + np.square(-right - position[0])
    return np.asarray(np.exp(-away / 0.05))
