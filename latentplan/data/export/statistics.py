"""Statistics of episodes as LeRobot keeps them: min, max, mean, std, count and five quantiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from latentplan.types import Array

Statistics: TypeAlias = Mapping[str, Array]
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
FRAMES = 100  # of an episode, evenly spread, whose pixels are counted


def of_numbers(values: Array) -> Statistics:
    """Return the statistics (*shape) of rows (n, *shape); (1,) for single numbers (n,)."""
    rows = values.reshape(len(values), -1) if values.ndim == 1 else values
    rows = rows.astype(np.float64)
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return {
        "min": rows.min(0),
        "max": rows.max(0),
        "mean": rows.mean(0),
        "std": rows.std(0),
        "count": np.array([len(rows)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def of_images(images: Array) -> Statistics:
    """Return the statistics (3, 1, 1) of the colours of images (n, h, w, 3) uint8, in [0, 1].

    Exact for the FRAMES images used, because uint8 has a histogram. A quantile is the smallest
    value that so many pixels do not exceed.
    """
    chosen = np.linspace(0, len(images) - 1, min(FRAMES, len(images))).astype(int)
    flat = images[chosen].reshape(-1, 3)
    counts = np.stack([np.bincount(plane, minlength=256) for plane in flat.T])  # (3, 256)
    levels, total = np.arange(256) / 255, len(flat)
    mean = counts @ levels / total
    below = counts.cumsum(1) / total
    found = {
        "min": levels[(counts > 0).argmax(1)],
        "max": levels[255 - (counts[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / total),
        **{name: levels[(below >= q).argmax(1)] for name, q in QUANTILES.items()},
    }
    return {"count": np.array([len(chosen)])} | {
        name: values.reshape(3, 1, 1) for name, values in found.items()
    }


def of_all(parts: Sequence[Statistics]) -> Statistics:
    """Return the joint statistics of several episodes.

    Exact (Chan et al. 1979 for the variance) but for the quantiles, which are the episodes'
    weighted means, as LeRobot's are.
    """
    counts = np.array([int(part["count"][0]) for part in parts])
    means = np.stack([part["mean"] for part in parts])
    weights = (counts / counts.sum()).reshape(-1, *[1] * (means.ndim - 1))
    mean = (weights * means).sum(0)
    variances = np.stack([part["std"] for part in parts]) ** 2
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt((weights * (variances + (means - mean) ** 2)).sum(0)),
        "count": np.array([counts.sum()]),
        **{q: (weights * np.stack([part[q] for part in parts])).sum(0) for q in QUANTILES},
    }
