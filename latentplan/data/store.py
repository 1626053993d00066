"""An episode store: one zarr v3 group with an array per key over the rows of all episodes.

    DATA.zarr/
      zarr.json             schema version, spec, and the settings the data was made with
      observation/<key>     (rows, ...)        an episode of L actions has L + 1 rows
      action                (rows, A) float32  action[t] leads from row t to t + 1; an episode's
      reward                (rows,)   float32  last row is zero padding
      episode/end           (episodes,) int64  the row after the episode's last
      episode/seed, terminated, truncated
      episode/info/<name>   (episodes,) float64, NaN if an episode has none; may be absent
      episode/labels        (episodes,) JSON lists of {text, task, start, stop}; may be absent
      .pending/             episodes that wait until they fill a whole shard
      commit.json           how much of all this is complete (`data/commit.py`)

An episode is in the store from the moment its file in `.pending` is renamed into place (one atomic
step); commit.json counts it then. When the pending ones fill a shard, their rows are written first,
`episode/end` after them, then commit.json; their files are removed last. So a kill at any moment
loses at most the episode being appended: the next open for append cuts off what commit.json does
not count, and removes files of episodes in the arrays. What it counts and is missing is damage, and
refused. Any zarr reader sees the whole of a store that was closed. A store may lie at a URL
(`data/location.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latentplan.data import array_limits, commit, labels, layout, pending
from latentplan.data.arrays import Arrays
from latentplan.data.commit import Commit
from latentplan.data.location import locate, writing
from latentplan.errors import LatentplanError, StoreError
from latentplan.types import Array, Episode, Label, Spec
from latentplan.urls import is_url, public, public_text


class ZarrStore:
    """An EpisodeStore in a folder or at a URL; made by `create` or `open`, and a context manager.

    One process may append at a time while any number read; a reader sees the episodes that were
    there when it opened the store.
    """

    def __init__(self, path: Path | str, mode: Literal["r", "a"]) -> None:
        """Read what is at `path`; use `open` or `create` instead."""
        self.path = public(path) if is_url(path) else path  # as it may be shown
        self._location = locate(path)
        attributes = layout.read_attributes(self._location)
        self._lock = self._location.lock() if mode == "a" else None
        try:
            with self._damage("its arrays cannot be read"):
                self.spec = Spec.from_json(attributes["spec"])
                self.settings: dict[str, Any] = attributes["settings"]  # that made the data
                self._layout = layout.of_rows(self.spec)
                # In this order, because a writer may be active: what the first record counts is in
                # a file or in the second, and arrays only grow.
                before = commit.read(self._location)
                start = before.episodes if before else 0
                waiting = pending.read(self._location, self.spec, start=start)
                self._commit = commit.read(self._location)
                self._arrays = Arrays(self._location, self.spec, writable=mode == "a")
                # (episodes,) int64, pending ones too
                self.ends = self._arrays.complete(self._commit)
            self._folded = int(self.ends[-1]) if len(self.ends) else 0  # rows in the arrays
            self._pending: list[Episode] = []  # committed, not yet in the arrays
            while len(self) in waiting:
                self._push(waiting[len(self)])
            counted = start + before.waiting if before else 0
            alone = mode == "a" or self._commit is None  # else a writer may have gone on
            if len(self) < counted or (alone and max(waiting, default=0) > len(self)):
                raise pending.missing(self._location, len(self))
            if alone:
                with self._damage("its arrays cannot be read"):
                    self._arrays.check_excess(self._commit, len(self.ends), len(self._pending))
            if mode == "a":
                self._repair(attributes["schema"])
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
            raise StoreError(f"{location}: is there already; choose another path, or delete it")
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
                found, wanted = store.spec.to_json(), spec.to_json()
                advice = "use data and model or env that belong together"
                check_same(f"{store.path}: spec", found, wanted, advice=advice)
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
        layout.check(episode, self.spec)
        rows = sum(len(e) + 1 for e in (*self._pending, episode))
        with writing(self._location):
            if rows < self._arrays.shard_rows:
                self._wait(episode)
                return
            self._push(episode)
            try:
                self._fold()
            except BaseException:
                if self._pending:  # nothing was committed
                    self._pop()
                raise

    def episode(self, index: int) -> Episode:
        """Return one episode; a negative index counts from the end; IndexError beyond it."""
        index = range(len(self))[index]
        waiting = index - (len(self) - len(self._pending))
        if waiting >= 0:
            return self._pending[waiting]
        start, stop = int(self.ends[index - 1]) if index else 0, int(self.ends[index])
        with self._damage(f"episode {index} cannot be read"):
            of = {name: column[index] for name, column in self._arrays.columns.items()}
            info = {
                name: float(column[index])
                for name, column in self._arrays.info.items()
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
            found = {name: np.asarray(column[:]) for name, column in self._arrays.info.items()}
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
        column = self._arrays.labels
        return [] if column is None else [str(text) for text in column[which]]

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows start to stop of an array (`observation/<key>`, `action`, `reward`)."""
        stop = min(stop, int(self.ends[-1]) if len(self) else 0)
        parts = []
        if start < self._folded:
            with self._damage(f"rows {start} to {stop} of {name} cannot be read"):
                parts.append(self._arrays.read(name, start, min(stop, self._folded)))
        if stop > self._folded:
            waiting = np.concatenate([layout.rows(e, name) for e in self._pending])
            parts.append(waiting[max(start - self._folded, 0) : stop - self._folded])
        if not parts:
            row, dtype = self._layout[name]
            return np.empty((0, *row), dtype)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def chunk_rows(self, name: str) -> int:
        """Return how many rows of an array are decoded together."""
        return int(self._arrays.rows[name].chunks[0])

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

    def delete(self) -> None:
        """Close the store, open for append, and remove it."""
        try:
            self._location.delete()
        finally:
            self._release()

    def _push(self, episode: Episode) -> None:
        last = int(self.ends[-1]) if len(self.ends) else 0
        ends, pending = np.append(self.ends, last + len(episode) + 1), [*self._pending, episode]
        self.ends, self._pending = ends, pending  # no call in between, where Ctrl-C could come

    def _pop(self) -> None:
        ends, pending = self.ends[:-1], self._pending[:-1]
        self.ends, self._pending = ends, pending

    def _wait(self, episode: Episode) -> None:
        """Write an episode to a file of its own, and count it."""
        assert self._commit is not None  # written on opening
        pending.write(self._location, len(self), episode)
        self._push(episode)  # it counts from here on, should Ctrl-C come
        try:
            self._check_alone()
            self._count(replace(self._commit, waiting=len(self._pending)))
        except Exception:
            self._pop()
            # A file that stays is whole, and the next open counts it.
            with suppress(OSError, LatentplanError):
                self._location.remove(pending.file(len(self)))
            raise

    def _fold(self) -> None:
        """Move the pending episodes into the arrays, count them there, and remove their files."""
        done = len(self) - len(self._pending)
        self._check_alone()
        with self._damage("episodes cannot be added to its arrays", disk=False):
            self._arrays.extend(self._pending, self.ends[done:], done=done, rows=self._folded)
        counted = self._arrays.commit(self._commit, self.ends, done=done)
        try:
            self._count(counted)
        finally:
            if self._commit == counted:  # even if Ctrl-C came just after
                self._pending, self._folded = [], counted.rows
        with suppress(OSError, LatentplanError):  # the next open removes them
            pending.drop(self._location, len(self))

    def _count(self, counted: Commit) -> None:
        """Write the record; what is on the disk decides whether an interrupted write was done."""
        try:
            commit.write(self._location, counted)
        except BaseException:
            with suppress(OSError, LatentplanError):
                self._commit = commit.read(self._location)
            raise
        self._commit = counted

    def _check_alone(self) -> None:
        """Raise StoreError if another process wrote: a URL cannot be locked."""
        if not self._location.lockable:
            there = commit.read(self._location) or Commit()
            if there != self._commit:
                raise StoreError(
                    f"{self.path}: another process is writing to it: it has "
                    f"{there.episodes + there.waiting} episodes, expected {len(self)}; "
                    "wait for it, or use another path"
                )

    def _repair(self, schema: int) -> None:
        """Remove the remains of a killed writer: rows without an end, files with one."""
        done, waiting = len(self) - len(self._pending), len(self._pending)
        with self._damage("it cannot be repaired", disk=False), writing(self._location):
            self._arrays.cut(self._folded, done)
            self._location.repair()
            pending.drop(self._location, done)
            if schema != layout.SCHEMA:  # before the record, which older versions do not keep
                layout.upgrade(self._location)
            if self._commit is None:
                counted = self._arrays.commit(None, self.ends[:done], done=done)
                self._commit = replace(counted, waiting=waiting)
                commit.write(self._location, self._commit)

    @contextmanager
    def _damage(self, what: str, *, disk: bool = True) -> Iterator[None]:
        """Raise StoreError for what zarr raises, which are all kinds of errors.

        Without `disk`, an OSError passes: it is of the disk, not of the data.
        """
        try:
            yield
        except LatentplanError:
            raise
        except Exception as e:
            if isinstance(e, OSError) and not disk:
                raise
            cause = e if self._location.lockable else None  # its text may hold a password
            raise StoreError(
                f"{self.path}: {what} ({type(e).__name__}: {public_text(str(e))}); the store is "
                "damaged: restore it from a copy, or collect it again"
            ) from cause

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
