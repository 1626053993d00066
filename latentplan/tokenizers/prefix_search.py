"""The shortest prefix of a block's tokens that is good enough, for all blocks at once.

ElasticTok (Yan et al., arXiv 2410.08368) searches it by bisection or by a scan. Differs: its
released bisection returns the last length that was tested, which fails about every other time; this
one returns the last that passed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Passes = Callable[[Tensor], Tensor]  # lengths (...) int64 -> whether they are good enough (...)


def bisect(passes: Passes, longest: Tensor, *, least: int, most: int) -> tuple[Tensor, Tensor]:
    """Return lengths (...) in [least, most] and whether they passed (...), one call a halving.

    A length that comes back as passed was tested and passed; it is the shortest one if a block that
    passes with n tokens passes with more. A block of which no tested length passes has `most`.
    `longest` (...) int64 gives shape and device and is not read.
    """
    found = torch.full_like(longest, most)
    low, passed = torch.full_like(longest, least), passes(found)
    for _ in range((most - least).bit_length()):
        middle = (low + found) // 2
        good = passes(middle)
        found, passed = torch.where(good, middle, found), passed | good
        low = torch.where(good, low, torch.minimum(middle + 1, found))
    return found, passed


def scan(passes: Passes, longest: Tensor, *, least: int, most: int) -> tuple[Tensor, Tensor]:
    """Return the shortest lengths (...) that pass, and whether there is one, as `bisect`.

    Exact for every loss; one call for each length.
    """
    found, passed = torch.full_like(longest, most), torch.zeros_like(longest, dtype=torch.bool)
    for length in range(least, most + 1):
        good = passes(torch.full_like(longest, length)) & ~passed
        found, passed = torch.where(good, length, found), passed | good
    return found, passed
