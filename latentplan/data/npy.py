"""Numpy's format of one array: its header, and the values after it, without a copy."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np

from latentplan import budget
from latentplan.types import Array

MAGIC = b"\x93NUMPY"
AXES = 32  # of an array, at most
READERS: dict[bytes, tuple[int, Any]] = {  # by version: bytes of the header's length, its reader
    b"\x01\x00": (2, np.lib.format.read_array_header_1_0),
    b"\x02\x00": (4, np.lib.format.read_array_header_2_0),
}


DAMAGE = (  # what numpy and ast raise for a header that is none
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError),
    *(SyntaxError, TokenError, TypeError, ValueError),
)


class Header(NamedTuple):
    """What a file says of its array."""

    shape: tuple[int, ...]
    order: str  # C or F
    dtype: np.dtype[Any]
    start: int  # place of the values


def header(content: bytes) -> Header:
    """Return the header of a .npy file; ValueError if it has none that can be read."""
    if content[:6] != MAGIC or content[6:8] not in READERS:
        raise ValueError("not of .npy version 1 or 2")
    width, _ = READERS[content[6:8]]
    start = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    if start > len(content):
        raise ValueError("its header is cut off")
    shape, fortran, dtype = _parsed(bytes(content[6:start]))
    return Header(shape, "F" if fortran else "C", dtype, start)


@lru_cache(maxsize=1024)  # the same few headers in every file of a set
def _parsed(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    _, read = READERS[text[:2]]
    try:
        return read(io.BytesIO(text[2:]))  # type: ignore[no-any-return]
    except DAMAGE:
        raise ValueError("its header cannot be read") from None


def values(where: str, content: bytes, found: Header) -> Array:
    """Return the array after a header, read-only; ValueError unless it fits what is there."""
    data = memoryview(content)[found.start :]
    return shaped(where, data, found.dtype, shape=found.shape, order=found.order)


def shaped(
    where: str, data: Any, dtype: np.dtype[Any], *, shape: Sequence[int], order: str
) -> Array:
    """Return bytes as an array, read-only, without a copy; ValueError unless they fill it.

    Raises BudgetError for an array of no bytes with more rows than the budget has items.
    """
    if len(shape) > AXES or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError("its shape is none of an array")
    needed, has = math.prod(shape) * dtype.itemsize, memoryview(data).nbytes
    if needed != has:
        raise ValueError(f"its shape needs {needed} bytes, it has {has}")
    if not has:
        budget.claim(where, items=max(shape, default=0))
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")
