"""The open arrays of a store: complete up to what was committed, and extended and cut together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import zarr

from latentplan.data import labels, layout
from latentplan.data.commit import Commit
from latentplan.data.location import Location
from latentplan.types import Array, Episode, Spec

RETRIES = 4  # of a read that a writer disturbs


class Arrays:
    """The arrays of a store by name: per row, per episode, numbers of info, and labels."""

    def __init__(self, location: Location, spec: Spec, *, writable: bool) -> None:
        """Open them; any error of zarr if there is none that can be read."""
        self._location, self._layout = location, layout.of_rows(spec)
        with zarr.config.set({"array.write_empty_chunks": True}):  # absent means damage
            self._group = zarr.open_group(
                location.zarr(read_only=not writable), mode="r+" if writable else "r"
            )
            self.rows: dict[str, Any] = {name: self._group[name] for name in self._layout}
            self.columns: dict[str, Any] = {
                name: self._group[f"episode/{name}"] for name in layout.COLUMNS
            }
            self.info: dict[str, Any] = {
                name: self._group[f"{layout.INFO}/{name}"] for name in layout.info_names(location)
            }
            has_labels = layout.has_labels(location)
            self.labels: Any = self._group[layout.LABELS] if has_labels else None
        self.shard_rows = min(array.shards[0] for array in self.rows.values())

    def complete(self, commit: Commit | None) -> Array:
        """Return the ends (episodes,) int64 of the episodes that the arrays hold.

        Raises ValueError or FileNotFoundError if an array or a file of one is missing, too short,
        or unlike the spec. Without a record, `episode/end` says how many episodes there are.
        """
        end = self.columns["end"]
        if commit is None:
            ends = layout.read_ends(end)
        else:
            self._check("episode/end", end, commit.episodes, self._location.sizes("episode/end"))
            ends = layout.read_ends(end, commit.episodes)
        episodes, rows = len(ends), int(ends[-1]) if len(ends) else 0
        if commit is not None and rows != commit.rows:
            raise ValueError(f"episode/end ends at row {rows}, not at {commit.rows}")
        files = self._location.sizes()  # after the ends: a writer may be active
        for name, array in self.rows.items():
            if (array.shape[1:], array.dtype) != self._layout[name]:
                raise ValueError(f"{name} is {array.dtype} {array.shape[1:]}, unlike the spec")
            self._check(name, array, rows, files)
        for name, column in self.columns.items():
            if column.dtype != np.dtype(layout.COLUMNS[name]) or column.ndim != 1:
                raise ValueError(f"episode/{name} is {column.dtype}, not {layout.COLUMNS[name]}")
            self._check(f"episode/{name}", column, episodes, files)
        for name, first in commit.info.items() if commit else ():
            if name not in self.info:
                raise FileNotFoundError(f"{layout.INFO}/{name} is missing")
            self._check(f"{layout.INFO}/{name}", self.info[name], episodes, files, first)
        if commit is not None and commit.labels is not None:
            if self.labels is None:
                raise FileNotFoundError(f"{layout.LABELS} is missing")
            self._check(layout.LABELS, self.labels, episodes, files, commit.labels)
        return ends

    def check_excess(self, commit: Commit | None, episodes: int, waiting: int) -> None:
        """Raise ValueError if there are entries for more episodes than a killed writer leaves.

        Of `episodes`, the last ones are `waiting`, and one more may have been appended. Without a
        record and waiting ones there is no evidence: `episode/end` may have lost its last file.
        """
        episodes -= waiting
        more = self.columns["end"].shape[0] - episodes
        if more > waiting + 1 or (more and commit is None and not 0 < waiting <= more):
            raise ValueError(
                f"episode/end has {episodes + more} entries, but only {episodes} can be read"
            )

    def read(self, name: str, start: int, stop: int) -> Array:
        """Return rows of an array, whatever a writer does meanwhile; zarr's error if damaged.

        zarr reads the index of a shard and then its chunks. If a writer replaces the file between
        the two, they do not fit together, and the checksum of a chunk fails.
        """
        for _ in range(RETRIES):
            with suppress(Exception):
                return np.asarray(self.rows[name][start:stop])
        return np.asarray(self.rows[name][start:stop])

    def cut(self, rows: int, episodes: int) -> None:
        """Remove all after the first `rows` rows and `episodes` episodes."""
        for array in self.rows.values():
            layout.cut(array, rows)
        for column in (*self.columns.values(), *self.info.values()):
            layout.cut(column, episodes)
        if self.labels is not None:
            layout.cut(self.labels, episodes)

    def extend(self, episodes: Sequence[Episode], ends: Array, *, done: int, rows: int) -> None:
        """Write episodes after the first `done`, which have `rows` rows."""
        for name, array in self.rows.items():
            values = np.concatenate([layout.rows(e, name) for e in episodes])
            layout.extend(array, rows, values)
        for name in sorted({key for e in episodes for key in e.info} - set(self.info)):
            self.info[name] = layout.create_info(self._group, name)
        for name, array in self.info.items():
            layout.extend(array, done, np.array([e.info.get(name, np.nan) for e in episodes]))
        if self.labels is None and any(e.labels for e in episodes):
            self.labels = layout.create_labels(self._group)
        if self.labels is not None:
            texts = [labels.to_text(e.labels) for e in episodes]
            layout.extend(self.labels, done, np.array(texts, np.dtypes.StringDType()))
        columns = {
            "seed": [e.seed for e in episodes],
            "terminated": [e.terminated for e in episodes],
            "truncated": [e.truncated for e in episodes],
            "end": ends,
        }
        for name, column in columns.items():
            layout.extend(
                self.columns[name], done, np.asarray(column, layout.COLUMNS[name])
            )

    def commit(self, before: Commit | None, ends: Array, *, done: int) -> Commit:
        """Return the record of these ends, of which the first `done` were there before."""
        info = {
            name: before.info.get(name, done) if before else self._first(name, len(ends))
            for name in self.info
        }
        first: int | None = None
        if self.labels is not None:
            first = self._first_of(layout.LABELS, self.labels, len(ends))
            if before is not None:
                first = done if before.labels is None else before.labels
        return Commit(len(ends), int(ends[-1]) if len(ends) else 0, 0, info, first)

    def _first(self, name: str, episodes: int) -> int:
        return self._first_of(f"{layout.INFO}/{name}", self.info[name], episodes)

    def _first_of(self, name: str, array: Any, episodes: int) -> int:
        """Return the first episode from which on an array of an older version has its files."""
        files, size = self._location.sizes(name), int(array.chunks[0])
        first = episodes
        for number in reversed(range(-(-episodes // size))):
            if f"{name}/c/{number}" not in files:
                break
            first = number * size
        return first

    def _check(
        self, name: str, array: Any, length: int, files: dict[str, int], first: int = 0
    ) -> None:
        """Check that an array has entries `first` to `length`, and all files that hold them."""
        if array.shape[0] < length:
            raise ValueError(f"{name} has {array.shape[0]} of {length} entries")
        if first >= length:
            return
        size, rest = (array.shards or array.chunks)[0], "/0" * (array.ndim - 1)
        for number in range(first // size, -(-length // size)):
            file = f"{name}/c/{number}{rest}"
            if not files.get(file):  # zarr would give zeros, and write them
                raise FileNotFoundError(f"{file} is {'empty' if file in files else 'missing'}")
