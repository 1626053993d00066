"""Numbers of foreign files in the precision of a store."""

from __future__ import annotations

import numpy as np

from latentplan.types import Array


def float32(values: Array) -> Array:
    """Return numbers as float32; one that is too large becomes infinite, which a store refuses."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
