"""Draws from probabilities."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def draw(shares: Tensor, *, generator: Generator | None = None) -> Tensor:
    """Return an index (...) drawn from each row of probabilities (..., n); one of them is positive.

    The numbers are those of `torch.multinomial`, which waits for the GPU to check its input: the
    smallest of n exponential variables with these rates.
    """
    waits = torch.empty_like(shares).exponential_(generator=generator)
    return (shares / waits).argmax(-1)


def choose(logits: Tensor, temperature: float, *, generator: Generator | None = None) -> Tensor:
    """Return ids (...) drawn from logits (..., n); the likeliest at temperature 0."""
    if not temperature:
        return logits.argmax(-1)
    return draw((logits / temperature).softmax(-1), generator=generator)
