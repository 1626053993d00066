"""An episode store: one zarr v3 group with an array per key over the rows of all episodes.

    DATA.zarr/
      zarr.json             schema version, spec, and the settings the data was made with
      observation/<key>     (rows, ...)        an episode of L actions has L + 1 rows
      action                (rows, A) float32  action[t] leads from row t to t + 1; an episode's
      reward                (rows,)   float32  last row is zero padding
      episode/end           (episodes,) int64  the row after the episode's last; written last
      episode/seed, terminated, truncated
      episode/info/<name>   (episodes,) float64, NaN if an episode has none; may be absent
      episode/labels        (episodes,) JSON lists of {text, task, start, stop}; may be absent
      .pending/             episodes that wait until they fill a whole shard

An episode is in the store from the moment its file in `.pending` is renamed into place (one atomic
step). When the pending ones fill a shard, their rows are written first, `episode/end` after them,
and their files are removed last. So a kill at any moment loses at most the episode being appended:
the next open for append cuts off rows without an end, and removes files of episodes with an end.
Any zarr reader sees the whole of a store that was closed. A store may lie at a URL
(`data/location.py`).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from latentplan.data import array_limits, labels, layout, pending
from latentplan.data.location import locate, writing
from latentplan.errors import ShapeError, StoreError
from latentplan.shapes import check_finite
from latentplan.types import Array, Episode, Label, Spec


class ZarrStore:
    """An EpisodeStore in a folder or at a URL; made by `create` or `open`, and a context manager.

    One process may append at a time while any number read; a reader sees the episodes that were
    there when it opened the store.
    """

    def __init__(self, path: Path | str, mode: Literal["r", "a"]) -> None:
        """Read what is at `path`; use `open` or `create` instead."""
        self.path = path
        self._location = locate(path)
        attributes = layout.read_attributes(self._location)
        self._lock = self._location.lock() if mode == "a" else None
        try:
            self.spec = Spec.from_json(attributes["spec"])
            self.settings: dict[str, Any] = attributes["settings"]  # what the data was made with
            self._layout = layout.of_rows(self.spec)
            with self._damage("its arrays cannot be read"):
                # In this order, because a writer may be active: pending files become ends, and
                # arrays only grow.
                waiting = pending.read(self._location)
                self._group = zarr.open_group(
                    self._location.zarr(read_only=mode == "r"), mode="r" if mode == "r" else "r+"
                )
                # (episodes,) int64, pending ones too
                self.ends = layout.read_ends(self._group["episode/end"])
                self._folded = int(self.ends[-1]) if len(self.ends) else 0  # rows in the arrays
                with zarr.config.set({"array.write_empty_chunks": True}):  # absent means damage
                    self._arrays: dict[str, Any] = {n: self._group[n] for n in self._layout}
                    self._columns: dict[str, Any] = {
                        k: self._group[f"episode/{k}"] for k in layout.COLUMNS
                    }
                self._info: dict[str, Any] = {
                    name: self._group[f"{layout.INFO}/{name}"]
                    for name in layout.info_names(self._location)
                }
                has_labels = layout.has_labels(self._location)
                self._labels: Any = self._group[layout.LABELS] if has_labels else None
                self._check_arrays()
                self._shard_rows = min(array.shards[0] for array in self._arrays.values())
            if mode == "a":
                self._repair()
            self._pending: list[Episode] = []  # committed, not yet in the arrays
            while len(self) in waiting:
                self._push(waiting[len(self)])
        except BaseException:
            self._release()
            raise

    @classmethod
    def create(
        cls, path: Path | str, spec: Spec, *, settings: Mapping[str, Any] | None = None
    ) -> ZarrStore:
        """Return a new empty store at `path`, open for append.

        `settings` (JSON values) are those that the data is made with. Raises StoreError if
        something is there already, ShapeError for a spec with observations that it cannot hold.
        """
        array_limits.check(spec)
        location = locate(path)
        if location.exists():
            raise StoreError(f"{path}: is there already; choose another path, or delete it")
        with writing(location), location.creating() as empty:
            layout.create(empty, spec, settings or {})
        return cls(path, "a")

    @classmethod
    def open(
        cls, path: Path | str, mode: Literal["r", "a"] = "r", *, spec: Spec | None = None
    ) -> ZarrStore:
        """Return the store at `path`, to read or to append (which first repairs it).

        Raises StoreError if it is missing, damaged, of another schema version, open for
        append elsewhere, or of another spec than `spec`, if that is given.
        """
        store = cls(path, mode)
        if spec is not None:
            try:
                advice = "use data and model or env that belong together"
                check_same(f"{path}: spec", store.spec.to_json(), spec.to_json(), advice=advice)
            except StoreError:
                store.close()
                raise
        return store

    def __enter__(self) -> ZarrStore:
        """Return the store."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.ends)

    def append(self, episode: Episode) -> None:
        """Add one episode, whole or not at all.

        Raises ShapeError if it does not fit the spec, StoreError if it cannot be written;
        the episodes that were there stay readable.
        """
        if self._lock is None:
            raise StoreError(f"{self.path}: is not open for append; open it with mode 'a'")
        self._check(episode)
        rows = sum(len(e) + 1 for e in (*self._pending, episode))
        with writing(self._location):
            if rows < self._shard_rows:
                pending.write(self._location, len(self), episode)
                self._push(episode)
                return
            self._push(episode)
            try:
                self._fold()
            except BaseException:
                if self._pending:  # no end was written
                    self._pending.pop()
                    self.ends = self.ends[:-1]
                raise

    def episode(self, index: int) -> Episode:
        """Return one episode; a negative index counts from the end; IndexError beyond it."""
        index = range(len(self))[index]
        waiting = index - (len(self) - len(self._pending))
        if waiting >= 0:
            return self._pending[waiting]
        start, stop = int(self.ends[index - 1]) if index else 0, int(self.ends[index])
        with self._damage(f"episode {index} cannot be read"):
            of = {name: column[index] for name, column in self._columns.items()}
            info = {
                name: float(column[index])
                for name, column in self._info.items()
                if index < column.shape[0] and not np.isnan(column[index])
            }
            texts = self._label_texts(slice(index, index + 1))
            of_labels = labels.from_text(texts[0]) if texts else ()
        return Episode(
            observations={
                key: self.rows(f"observation/{key}", start, stop) for key in self.spec.observation
            },
            actions=self.rows("action", start, stop - 1),
            rewards=self.rows("reward", start, stop - 1),
            terminated=bool(of["terminated"]),
            truncated=bool(of["truncated"]),
            seed=int(of["seed"]),
            info=info,
            labels=of_labels,
        )

    def info(self) -> dict[str, Array]:
        """Return the numbers (episodes,) float64 of the episodes' info by name; NaN for none."""
        with self._damage("the info of its episodes cannot be read"):
            found = {name: np.asarray(column[:]) for name, column in self._info.items()}
        done = len(self) - len(self._pending)
        for name in sorted({key for e in self._pending for key in e.info} | set(found)):
            values = np.full(len(self), np.nan)
            folded = found.get(name, values[:0])[:done]
            values[: len(folded)] = folded
            values[done:] = [e.info.get(name, np.nan) for e in self._pending]
            found[name] = values
        return found

    def labels(self) -> list[tuple[int, Label]]:
        """Return all labels, each with its episode's number."""
        done = len(self) - len(self._pending)
        with self._damage("the labels of its episodes cannot be read"):
            lists = [labels.from_text(text) for text in self._label_texts(slice(0, done))]
        found = [(number, label) for number, some in enumerate(lists) for label in some]
        waiting = enumerate(self._pending, start=done)
        return found + [(number, label) for number, e in waiting for label in e.labels]

    def _label_texts(self, which: slice) -> list[str]:
        return [] if self._labels is None else [str(text) for text in self._labels[which]]

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows start to stop of an array (`observation/<key>`, `action`, `reward`)."""
        stop = min(stop, int(self.ends[-1]) if len(self) else 0)
        parts = []
        if start < self._folded:
            with self._damage(f"rows {start} to {stop} of {name} cannot be read"):
                parts.append(np.asarray(self._arrays[name][start : min(stop, self._folded)]))
        if stop > self._folded:
            waiting = np.concatenate([layout.rows(e, name) for e in self._pending])
            parts.append(waiting[max(start - self._folded, 0) : stop - self._folded])
        if not parts:
            row, dtype = self._layout[name]
            return np.empty((0, *row), dtype)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def chunk_rows(self, name: str) -> int:
        """Return how many rows of an array are decoded together."""
        return int(self._arrays[name].chunks[0])

    def row_bytes(self, name: str) -> int:
        """Return the bytes of a decoded row of an array."""
        row, dtype = self._layout[name]
        return prod(row) * dtype.itemsize

    def disk_bytes(self, name: str = "") -> int:
        """Return the bytes on disk of an array, without pending episodes; of all for ""."""
        return sum(self._location.sizes(name).values())

    def close(self) -> None:
        """Write the pending episodes to the arrays and release the lock."""
        try:
            if self._lock is not None and self._pending:
                with writing(self._location):
                    self._fold()
        finally:
            self._release()

    def _check(self, episode: Episode) -> None:
        if set(episode.observations) != set(self.spec.observation):
            raise ShapeError(
                f"Episode.observations: found {sorted(episode.observations)}, "
                f"need {sorted(self.spec.observation)}"
            )
        for name, (row, dtype) in self._layout.items():
            value = layout.unpadded(episode, name)
            if value.shape[1:] != row or value.dtype != dtype:
                raise ShapeError(
                    f"Episode {name}: found {value.dtype} rows of shape {value.shape[1:]}, "
                    f"need {dtype} {row}"
                )
            check_finite(f"Episode {name}", value)
        labels.check(episode)
        for name in episode.info:
            if not name or "/" in name:
                raise ShapeError(f"Episode.info: found {name!r}, a name must not be '' or have a /")

    def _push(self, episode: Episode) -> None:
        self._pending.append(episode)
        last = int(self.ends[-1]) if len(self.ends) else 0
        self.ends = np.append(self.ends, last + len(episode) + 1)

    def _fold(self) -> None:
        """Move the pending episodes into the arrays: rows, then ends; then remove their files."""
        episodes, done = self._pending, len(self) - len(self._pending)
        self._check_alone(done)
        for name, array in self._arrays.items():
            rows = np.concatenate([layout.rows(e, name) for e in episodes])
            layout.extend(array, self._folded, rows)
        for name in sorted({key for e in episodes for key in e.info} - set(self._info)):
            self._info[name] = layout.create_info(self._group, name)
        for name, array in self._info.items():
            layout.extend(array, done, np.array([e.info.get(name, np.nan) for e in episodes]))
        if self._labels is None and any(e.labels for e in episodes):
            self._labels = layout.create_labels(self._group)
        if self._labels is not None:
            texts = [labels.to_text(e.labels) for e in episodes]
            layout.extend(self._labels, done, np.array(texts, np.dtypes.StringDType()))
        columns = {
            "seed": [e.seed for e in episodes],
            "terminated": [e.terminated for e in episodes],
            "truncated": [e.truncated for e in episodes],
            "end": self.ends[done:],  # last: it commits the episodes
        }
        for name, column in columns.items():
            layout.extend(self._columns[name], done, np.asarray(column, layout.COLUMNS[name]))
        self._folded = int(self.ends[-1])
        self._pending = []
        pending.drop(self._location, len(self))

    def _check_alone(self, done: int) -> None:
        """Raise StoreError if another process wrote: a URL cannot be locked."""
        if not self._location.lockable:
            there = len(layout.read_ends(self._group["episode/end"]))
            if there != done:
                raise StoreError(
                    f"{self.path}: another process is writing to it: {there} episodes are in its "
                    f"arrays, expected {done}; wait for it, or use another path"
                )

    def _check_arrays(self) -> None:
        for name, array in self._arrays.items():
            if (array.shape[1:], array.dtype) != self._layout[name]:
                raise ValueError(f"{name} is {array.dtype} {array.shape[1:]}, unlike the spec")
            if array.shape[0] < self._folded:
                raise ValueError(f"{name} has {array.shape[0]} of {self._folded} rows")
            there, rest = self._location.sizes(f"{name}/c"), "/0" * (array.ndim - 1)
            for shard in range(-(-self._folded // array.shards[0])):
                if f"{name}/c/{shard}{rest}" not in there:  # zarr would give zeros
                    raise FileNotFoundError(f"{name}/c/{shard}{rest} is missing")

    def _repair(self) -> None:
        """Remove the remains of an interrupted writer: rows without an end, files with one."""
        arrays = [(array, self._folded) for array in self._arrays.values()]
        columns = [*self._columns.values(), *self._info.values()]
        columns += [] if self._labels is None else [self._labels]
        arrays += [(column, len(self)) for column in columns]
        with writing(self._location):
            for array, length in arrays:
                if array.shape[0] > length:
                    array.resize((length, *array.shape[1:]))
            self._location.repair()
            pending.drop(self._location, len(self))

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        try:
            yield
        except (KeyError, ValueError, TypeError, RuntimeError, OSError, zipfile.BadZipFile) as e:
            raise StoreError(
                f"{self.path}: {what} ({type(e).__name__}: {e}); the store is damaged: "
                "take a copy of it, or collect it again"
            ) from e

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def check_same(where: str, found: Any, wanted: Any, *, advice: str) -> None:
    """Raise StoreError naming the first entry in which two trees of JSON values differ."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*found, *wanted}):
            check_same(f"{where}.{key}", found.get(key), wanted.get(key), advice=advice)
    elif json.dumps(found) != json.dumps(wanted):
        raise StoreError(f"{where}: the store has {found!r}, given is {wanted!r}; {advice}")
