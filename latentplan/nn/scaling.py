"""Scaling of numbers by their mean and standard deviation, or by their bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Scaling(nn.Module):
    """(x - centre) / span of each of the last axis' numbers, saved with the weights.

    A number whose span is 0 is constant: it becomes exactly 0, and nothing is divided by 0. Until
    it is set, the scaling is the identity.
    """

    def __init__(self, size: int) -> None:
        """Take how many numbers there are."""
        super().__init__()
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(size))
        self.span: Tensor
        self.register_buffer("span", torch.ones(size))

    def set(self, centre: Any, span: Any) -> None:
        """Set centre and span (size,) of each number."""
        self.centre.copy_(torch.as_tensor(centre))
        self.span.copy_(torch.as_tensor(span))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., size) scaled."""
        return (x - self.centre) / self.span.masked_fill(self.span == 0, torch.inf)
