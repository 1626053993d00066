"""Episodes of a square that actions move, and overrides that train a small TECO on them."""

from __future__ import annotations

import numpy as np

from latentplan.data.store import ZarrStore
from latentplan.types import ActionSpec, ArraySpec, Episode, Spec

SIDE, SIZE = 16, 2  # pixels of an image, numbers of an action
FEW = [
    *("model.tokenizer.channels=[8]", "model.tokenizer.blocks=0", "model.tokenizer.levels=[3,3]"),
    *(f"model.dynamics.{each}" for each in (
        "clip=4", "embedding=4", "channels=8", "codes=16", "code_width=4", "action_width=4",
        "width=16", "layers=1", "heads=2", "prior.width=16", "prior.layers=1", "prior.heads=2")),
    *(f"training.{stage}.{key}={value}" for stage in ("tokenizer", "dynamics") for key, value in {
        "steps": 4, "batch": 4, "eval_every": 2, "save_every": 2, "warmup": 1, "held_out": 0.3,
    }.items()),
]  # fmt: skip


def stored(path, side: int = SIDE):
    """Write episodes of a square that actions move."""
    shape = ArraySpec((side, side, 3), "uint8")
    spec = Spec({"rgb": shape}, ActionSpec((-1.0,) * SIZE, (1.0,) * SIZE))
    with ZarrStore.create(path, spec) as store:
        for number in range(6):
            rng = np.random.default_rng(number)
            actions = rng.uniform(-1, 1, (7, SIZE)).astype(np.float32)
            at = np.clip(np.cumsum(np.r_[[[5, 5]], 3 * actions], axis=0), 0, 10).astype(int)
            images = np.full((8, side, side, 3), 30, np.uint8)
            for image, (x, y) in zip(images, at, strict=True):
                image[y : y + 6, x : x + 6] = (200, 60, 60)
            store.append(Episode({"rgb": images}, actions, np.zeros(7, np.float32)))
    return path
