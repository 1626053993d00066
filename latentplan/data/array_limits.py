"""The observations that a store can hold: their names, their dtypes, and rows of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from latentplan.errors import ShapeError
from latentplan.types import Spec

NUMBERS = "biuf"  # kinds of dtypes
WIDEST = 8  # bytes of a number
LONGEST = 200  # bytes of a name, which is the name of a folder


def check(spec: Spec) -> None:
    """Raise ShapeError that names the first observation that a store cannot hold."""
    for key, array in spec.observation.items():
        try:
            dtype = np.dtype(array.dtype)
        except TypeError:
            why = f"holds {array.dtype!r}, which is not the name of a dtype"
        else:
            why = unfit_name(key) or unfit(array.shape, dtype)
            if not why and dtype.name != array.dtype:
                why = f"holds {array.dtype!r}, need the dtype's name, {dtype.name!r}"
        if why:
            raise ShapeError(f"Spec.observation: {key!r} {why}; leave it out")


def unfit(shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    """Return why a store cannot hold rows of this kind; empty if it can."""
    if dtype.kind not in NUMBERS or dtype.itemsize > WIDEST:
        return f"holds {dtype}, not numbers of at most {8 * WIDEST} bits"
    return f"has rows of shape {tuple(shape)}, which hold no numbers" if 0 in shape else ""


def unfit_name(key: str) -> str:
    """Return why an observation cannot have this name; empty if it can."""
    if not key.isprintable() or "\\" in key or {"", ".", ".."} & set(key.split("/")):
        return "has a name that cannot be one of a folder"
    if len(key.encode()) > LONGEST:
        return f"has a name of more than {LONGEST} bytes"
    return ""
