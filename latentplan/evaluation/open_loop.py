"""Figures of imagined video against what happened: error of what moves, and objects kept.

Clips are independent samples: each interval is a 95 % percentile bootstrap over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentplan.types import Array

MOVED = 24  # least change of a colour of a pixel that moves, of 255
VISIBLE = 8  # least pixels of an object that is looked for
KEPT = 0.5  # least intersection over union of an object that is still there
RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True)
class Errors:
    """What is summed over clips: arrays (clips, steps), and one for each object."""

    moving: Array  # squared error of the pixels that move
    pixels: Array  # numbers among them, three a pixel
    whole: Array  # mean squared error of all pixels
    overlap: Mapping[str, Array]  # intersection over union, NaN where an object is not to be seen


def errors(
    truth: Array,
    imagined: Array,
    *,
    last: Array,
    masks: Mapping[str, Array],
    found: Mapping[str, Array],
) -> Errors:
    """Return the errors of imagined frames (n, t, h, w, 3) uint8.

    `last` (n, h, w, 3) is the last frame given: a pixel moves that differs from it. `masks` are the
    objects (n, t, h, w) in the truth, `found` those in the imagined frames.
    """
    a, b = truth.astype(np.float32), imagined.astype(np.float32)
    moved = (np.abs(a - last[:, None].astype(np.float32)) >= MOVED).any(-1)
    squared = np.square(a - b)
    overlap = {}
    for name, true in masks.items():
        both = (true & found[name]).sum((-2, -1))
        either = (true | found[name]).sum((-2, -1))
        share = both / np.maximum(either, 1)
        overlap[name] = np.where(true.sum((-2, -1)) >= VISIBLE, share, np.nan)
    return Errors(
        (squared.sum(-1) * moved).sum((-2, -1)),
        3.0 * moved.sum((-2, -1)),
        squared.mean((-3, -2, -1)),
        overlap,
    )


def figures(own: Errors, repeat: Errors, *, steps: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """Return JSON values for each number of steps k, pooled over frames 1 to k of all clips.

    `psnr_moving` in dB, its gain over repeating the last frame, `psnr` of all pixels, and the share
    of frames in which each object is still there, each with its interval.
    """
    rows = {}
    for k in steps:
        draws = _draws(len(own.moving), seed)
        pooled = [
            own.moving[:, :k].sum(1), own.pixels[:, :k].sum(1), repeat.moving[:, :k].sum(1)
        ]  # fmt: skip
        rows[str(k)] = {
            "psnr_moving": _interval(lambda x: _psnr(x[0], x[1]), pooled, draws),
            "gain": _interval(lambda x: 10 * np.log10(x[2] / np.maximum(x[0], 1)), pooled, draws),
            "psnr": _interval(
                lambda x: _psnr(x[0], x[1]),
                [own.whole[:, :k].sum(1), np.full(len(own.whole), float(k))],
                draws,
            ),
            "kept": {
                name: _kept([each[:, :k]], draws) for name, each in own.overlap.items()
            } | ({"all": _kept([e[:, :k] for e in own.overlap.values()], draws)} if own.overlap
                 else {}),
        }  # fmt: skip
    return rows


def _draws(count: int, seed: int) -> Array:
    """Return clips (RESAMPLES + 1, n) drawn with replacement; all of them once in row 0."""
    drawn = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    return np.concatenate([np.arange(count)[None], drawn])


def _interval(statistic: Any, sums: Sequence[Array], draws: Array) -> dict[str, Any]:
    """Return the statistic of sums (n,) each over clips, and its interval; null if undefined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.asarray(statistic([each[draws].sum(1) for each in sums]), float)
    finite = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(finite):
        return {"value": None, "ci95": None}
    ends = np.percentile(finite, [2.5, 97.5]).tolist()
    return {"value": round(float(values[0]), 4), "ci95": [round(end, 4) for end in ends]}


def _kept(overlaps: Sequence[Array], draws: Array) -> dict[str, Any]:
    """Return the share of frames in which objects are kept, of those where they are to be seen."""
    kept = [np.nansum(each >= KEPT, axis=1).astype(float) for each in overlaps]
    seen = [np.isfinite(each).sum(1).astype(float) for each in overlaps]
    sums = [np.sum(kept, axis=0), np.sum(seen, axis=0)]
    return _interval(lambda x: np.where(x[1] > 0, x[0] / np.maximum(x[1], 1), np.nan), sums, draws)


def _psnr(squared: Array, count: Array) -> Array:
    return np.asarray(10 * np.log10(255.0**2 * count / np.maximum(squared, 1e-9)))
