"""Scaling of numbers by their mean and standard deviation, or by their bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentplan.types import ActionSpec, Array, Moments

NARROW = 0.1  # std of the data, as a share of half the range, below which bounds tell nothing


class Scaling(nn.Module):
    """(x - centre) / span of each of the last axis' numbers, saved with the weights.

    A number whose span is 0 is constant: it becomes exactly 0, and nothing is divided by 0. Until
    it is fitted, the scaling is the identity.
    """

    def __init__(self, size: int) -> None:
        """Take how many numbers there are."""
        super().__init__()
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(size))
        self.span: Tensor
        self.register_buffer("span", torch.ones(size))

    def fit(self, moments: Moments) -> None:
        """Scale by mean and std; those of other axes than the last are pooled."""
        size = len(self.centre)
        means, stds = (each.reshape(-1, size) for each in (moments.mean, moments.std))
        away = means - means[:1]  # exactly 0 if all are equal
        self.set(means[0] + away.mean(0), np.sqrt(away.var(0) + np.square(stds).mean(0)))

    def set(self, centre: Array, span: Array) -> None:
        """Set centre and span (size,) of each number."""
        self.centre.copy_(torch.from_numpy(centre))
        self.span.copy_(torch.from_numpy(span))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., size) scaled."""
        return (x - self.centre) / self.span.masked_fill(self.span == 0, torch.inf)

    def inverse(self, x: Tensor) -> Tensor:
        """Return what is scaled to x (..., size); of a constant number its value."""
        return self.centre + self.span * x

    def upgraded_weights(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the weights; of a network without a scaling of its inputs, that of a new one."""
        return {"centre": self.centre, "span": self.span, **weights}


class ActionScaling(Scaling):
    """Actions in half ranges, or in standard deviations if their bounds are far wider or infinite.

    So training is independent of the unit of the actions. Of `pairs`, which turn together, both
    numbers have one scale around 0, so that what turns before it turns after it.
    """

    def __init__(self, action: ActionSpec, *, pairs: Sequence[tuple[int, int]] = ()) -> None:
        """Take the bounds."""
        super().__init__(action.size)
        self.pairs = [list(pair) for pair in pairs]
        low, high = (np.array(each, np.float64) for each in (action.low, action.high))
        for pair in self.pairs:
            high[pair] = np.abs([low[pair], high[pair]]).max()
            low[pair] = -high[pair]
        self.bounded = np.isfinite(low) & np.isfinite(high)
        low, high = np.where(self.bounded, low, -1), np.where(self.bounded, high, 1)
        self.middle, self.reach = (high + low) / 2, (high - low) / 2

    def use_bounds(self) -> None:
        """Scale by the bounds, whatever the data; what has none is not scaled."""
        self.set(self.middle, self.reach)

    def fit(self, moments: Moments) -> None:
        """Scale by the bounds, or by the mean and std of the data."""
        mean, std = moments.mean.copy(), moments.std.copy()
        for pair in self.pairs:
            mean[pair], std[pair] = 0, np.sqrt(np.square([mean[pair], std[pair]]).sum() / 2)
        wide = self.bounded & (std >= NARROW * self.reach)
        self.set(np.where(wide, self.middle, mean), np.where(wide, self.reach, std))
