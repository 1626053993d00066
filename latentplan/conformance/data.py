"""Random observations and actions for the checks of models and tokenizers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from latentplan.types import ActionSpec, ArraySpec, Spec

SIDE = 64  # pixels of an image
CELL = 8  # side of a square of one colour, pixels; finer noise cannot be encoded
SPEC = Spec(
    observation={
        "rgb": ArraySpec((SIDE, SIDE, 3), "uint8"),
        "state": ArraySpec((7,), "float32", "joints, rad"),
    },
    action=ActionSpec((-1.0,) * 4, (1.0,) * 4),
)
PRIVILEGED = replace(  # for a model that reads simulator state
    SPEC,
    observation={**SPEC.observation, "keypoints": ArraySpec((9, 2), "float32", "points, m")},
    privileged=("keypoints",),
)


def seeded(seed: int = 0) -> Generator:
    """Return a new generator with a seed."""
    return torch.Generator().manual_seed(seed)


def observations(spec: Spec, batch: int, length: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Return observations (B, T, ...) of a spec: images of random squares and normal numbers."""
    generator, found = seeded(seed), {}
    for key, array in spec.observation.items():
        if array.dtype == "uint8":
            height, width, *colours = array.shape
            size = (batch, length, -(-height // CELL), -(-width // CELL), *colours)
            cells = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
            whole = cells.repeat_interleave(CELL, dim=2).repeat_interleave(CELL, dim=3)
            found[key] = whole[:, :, :height, :width].contiguous()
        else:
            found[key] = torch.randn(batch, length, *array.shape, generator=generator)
    return found


def actions(spec: Spec, *shape: int, seed: int = 1) -> Tensor:
    """Return actions (*shape, A), uniform within their bounds."""
    low, high = torch.tensor(spec.action.low), torch.tensor(spec.action.high)
    return low + torch.rand(*shape, len(low), generator=seeded(seed)) * (high - low)


def images(spec: Spec) -> Spec:
    """Return the spec without observations other than images."""
    kept = {k: a for k, a in spec.observation.items() if a.dtype == "uint8" and len(a.shape) == 3}
    return replace(spec, observation=kept)
