"""The commit record of a store: what must be in it, so that what is absent is not taken for empty.

`commit.json` is replaced whole, after what it counts is on the disk. A killed writer may therefore
leave more than it counts, never less: more is what a repair may remove, less is damage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from latentplan.data.location import Location
from latentplan.errors import StoreError

FILE = "commit.json"


@dataclass(frozen=True)
class Commit:
    """How much of a store is complete."""

    episodes: int = 0  # in the arrays
    rows: int = 0  # of theirs
    waiting: int = 0  # episodes that follow them, in files of their own
    info: Mapping[str, int] = field(default_factory=dict)  # arrays of info, and the first episode
    labels: int | None = None  # of each that has an entry on the disk; None for no such array


def read(location: Location) -> Commit | None:
    """Return the record; None for a store of an older version, or one that lost it.

    Raises StoreError if it is damaged.
    """
    try:
        content = location.read(FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _from_json(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise StoreError(
            f"{location}: {FILE} is damaged ({type(e).__name__}: {e}); restore it from a copy of "
            "the store, or delete it: its arrays are then checked without it"
        ) from None


def write(location: Location, commit: Commit) -> None:
    """Replace the record; it is on the disk before this returns."""
    location.replace(FILE, json.dumps(asdict(commit)).encode())


def _from_json(values: Any) -> Commit:
    info = {str(name): _count(first) for name, first in values["info"].items()}
    labels = None if values["labels"] is None else _count(values["labels"])
    counts = {name: _count(values[name]) for name in ("episodes", "rows", "waiting")}
    return Commit(**counts, info=info, labels=labels)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value
