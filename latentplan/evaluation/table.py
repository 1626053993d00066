"""A table of metrics as text, for a terminal or a notebook."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of metrics, and notes printed below them."""

    columns: tuple[str, ...]  # headings
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
