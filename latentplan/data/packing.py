"""Masked sequence packing: episodes of any length in rows of one length.

As in the Large World Model (arXiv 2402.08268, section 3.1): several examples share a row, attention
stays within each (its id is in `segments`), and a position of an example has the weight 1 /
(examples x its length), so that the loss is that of padded examples, one a row. Without the
weights, long examples count more than short ones. Differs: rows are packed once and then drawn at
random; since examples do not see each other, it does not matter which of them share a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentplan.data.store import ZarrStore
from latentplan.data.windows import Windows
from latentplan.errors import ShapeError, StoreError, check_range
from latentplan.types import Array, Batch

PADDING = -1  # segment id of positions without an example


class Piece(NamedTuple):
    """A part of a sequence."""

    start: int
    length: int


def pieces(length: int, row: int) -> list[Piece]:
    """Return the parts of a sequence that fit a row; each begins with the end of the one before.

    So every pair of neighbours is in one part. Raises ShapeError for a sequence without positions.
    """
    check_range("packing.row", row, 2)
    if length < 1:
        raise ShapeError(f"packing: found an example of length {length}, need at least 1")
    starts = range(0, max(length - 1, 1), row - 1)
    return [Piece(start, min(row, length - start)) for start in starts]


def pack(lengths: Sequence[int], row: int) -> list[list[int]]:
    """Return which examples share each row of length `row`: first fit, the longest first.

    Raises ShapeError for an example of no positions, or longer than a row.
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= row:
            raise ShapeError(
                f"packing: found example {index} of length {length}, need 1 to {row}, the length "
                "of a row; cut longer ones"
            )
    rows: list[list[int]] = []
    left = np.zeros(0, np.int64)  # free positions of each row
    for index in sorted(range(len(lengths)), key=lambda each: (-lengths[each], each)):
        fits = np.flatnonzero(left >= lengths[index])
        if len(fits):
            rows[fits[0]].append(index)
            left[fits[0]] -= lengths[index]
        else:
            rows.append([index])
            left = np.append(left, row - lengths[index])
    return rows


def example_weights(segments: Tensor) -> Tensor:
    """Return the loss weights (B, T) of the positions of packed examples, with the sum 1.

    `segments` (B, T) int64 are ids 0 to T - 1 of the examples in a row, each in one run; a position
    has the weight 1 / (examples in the batch x length of its example), padding has 0.
    """
    slots = segments + 1  # padding is 0
    counts = torch.zeros(len(segments), segments.shape[1] + 1, device=segments.device)
    counts = counts.scatter_add(1, slots, torch.ones_like(slots, dtype=counts.dtype))
    examples = (counts[:, 1:] > 0).sum()
    weights = 1 / (counts.gather(1, slots) * examples).clamp(min=1)
    return weights * (segments != PADDING)


def position_weights(segments: Tensor) -> Tensor:
    """Return equal weights (B, T) of all positions but padding: naive packing, to compare with."""
    filled = (segments != PADDING).float()
    return filled / filled.sum().clamp(min=1)


class PackedWindows(Windows):
    """Endless batches of packed rows: windows of T observations, filled with whole episodes.

    `Batch.segments` (B, T) numbers the episodes in a row from 0; -1 is padding. Episodes longer
    than a row are cut, and both parts have the observation at the cut. An action between two
    segments belongs to neither, and so do all values of padding.
    """

    def __getitem__(self, index: int) -> Batch:
        """Return batch number `index`."""
        chosen = self._chosen(index)
        batch = self._gathered(self._rows(chosen))
        return replace(batch, segments=torch.from_numpy(self._ids[chosen]))

    def _arrange(self, store: ZarrStore, *, episodes: Array, split: str) -> Array:
        """Return the rows (n, T) of the store in each packed row."""
        check_range("PackedWindows.length", self.length, 2)
        firsts = np.concatenate([[0], store.ends[:-1]]).astype(np.int64)
        parts = [
            Piece(int(firsts[number]) + part.start, part.length)
            for number in np.flatnonzero(episodes)
            for part in pieces(int(store.ends[number] - firsts[number]), self.length)
        ]
        if not parts:
            raise StoreError(f"{store.path}: has no {split} episode; collect more")
        packed = pack([part.length for part in parts], self.length)
        found = np.empty((len(packed), self.length), np.int64)
        self._ids = np.full(found.shape, PADDING, np.int64)
        for row, members in enumerate(packed):
            at = 0
            for number, member in enumerate(members):
                start, length = parts[member]
                found[row, at : at + length] = np.arange(start, start + length)
                self._ids[row, at : at + length] = number
                at += length
            found[row, at:] = found[row, 0]  # padding: any row that is loaded
        return found

    def _rows(self, chosen: Array) -> Array:
        return np.asarray(self._places[chosen])
