"""Episodes on disk as one zarr v3 group: one array a key over the rows of all episodes.

    DATA.zarr/
      zarr.json             schema version, spec, and the settings the data was made with
      observation/<key>     (rows, ...)        an episode of L actions has L + 1 rows
      action                (rows, A) float32  action[t] leads from row t to t + 1; an episode's
      reward                (rows,)   float32  last row is zero and means nothing
      episode/end           (episodes,) int64  the row after the episode's last; written last
      episode/seed, terminated, truncated
      .pending/             episodes that wait until there are enough of them for a whole shard

An episode is in the store from the moment its file in `.pending` is renamed into place (one
atomic step). When a shard's worth of rows waits, rows are written first and `episode/end` after
them, then the files go. So a kill at any moment loses at most the episode being appended: rows
without an end are cut off, and files of episodes that have an end are removed, by the next open
for append. Any zarr reader sees the whole of a store that was closed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from latentplan.data import pending
from latentplan.errors import ShapeError, StoreError
from latentplan.shapes import check_finite
from latentplan.types import Array, Episode, Spec

SCHEMA = 1
CHUNK_BYTES = 1 << 19  # decoded together: neighbouring pictures are alike, so they compress well
SHARD_CHUNKS = 16  # chunks a file
EPISODE_CHUNK = 4096  # entries a file of the arrays below episode/
PENDING = ".pending"
COLUMNS = {"seed": "int64", "terminated": "bool", "truncated": "bool", "end": "int64"}


class ZarrStore:
    """An EpisodeStore in a folder; made by `create` or `open`, and a context manager.

    One process may append at a time; any number may read meanwhile, each sees the episodes that
    were there when it opened.
    """

    def __init__(self, path: Path, mode: Literal["r", "a"]) -> None:
        """Read what is at `path`; use `open` or `create` instead."""
        self.path = path
        self._lock = _lock(path) if mode == "a" else None
        try:
            attributes = _read_attributes(path)
            self.spec = Spec.from_json(attributes["spec"])
            self.settings: dict[str, Any] = attributes["settings"]  # what the data was made with
            self._layout = _layout(self.spec)
            with self._damage("its arrays cannot be read"):
                # This order, because a writer may be at work: pending files become ends, and
                # arrays only grow.
                waiting = pending.read(path / PENDING)
                group = _open(path, mode)
                self.ends = _read_ends(group["episode/end"])  # (episodes,) int64, pending ones too
                self._folded = int(self.ends[-1]) if len(self.ends) else 0  # rows in the arrays
                with zarr.config.set({"array.write_empty_chunks": True}):  # absent means damage
                    self._arrays: dict[str, Any] = {name: group[name] for name in self._layout}
                    self._columns: dict[str, Any] = {k: group[f"episode/{k}"] for k in COLUMNS}
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

        `settings` (JSON values) say what the data is made with. Raises StoreError where
        something is there already.
        """
        path = Path(path)
        if path.exists():
            raise StoreError(f"{path}: is there already; choose another path, or delete it")
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with _disk(path):
            try:
                partial.mkdir(parents=True)
                attributes: dict[str, Any] = {
                    "schema": SCHEMA,
                    "spec": spec.to_json(),
                    "settings": dict(settings or {}),
                }
                group = zarr.open_group(
                    _Durable(partial), mode="w", attributes={"latentplan": attributes}
                )
                for name, (row, dtype) in _layout(spec).items():
                    chunk = _chunk_rows(row, dtype)
                    _create(group, name, row, dtype, chunk=chunk, shard=chunk * SHARD_CHUNKS)
                for name, kind in COLUMNS.items():
                    _create(group, f"episode/{name}", (), np.dtype(kind), chunk=EPISODE_CHUNK)
                (partial / PENDING).mkdir()
                partial.rename(path)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return cls(path, "a")

    @classmethod
    def open(
        cls, path: Path | str, mode: Literal["r", "a"] = "r", *, spec: Spec | None = None
    ) -> ZarrStore:
        """Return the store at `path`, to read or to append (which first repairs it).

        Raises StoreError where it is missing, damaged, of another schema version, open for
        append elsewhere, or not of `spec` where that is given.
        """
        store = cls(Path(path), mode)
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

        Raises ShapeError where it does not fit the spec, StoreError where it cannot be written;
        the episodes that were there stay readable.
        """
        if self._lock is None:
            raise StoreError(f"{self.path}: is not open for append; open it with mode 'a'")
        self._check(episode)
        with _disk(self.path):
            pending.write(self.path / PENDING, len(self), episode)
            self._push(episode)
            if sum(len(e) + 1 for e in self._pending) >= self._shard_rows:
                self._fold()

    def episode(self, index: int) -> Episode:
        """Return one episode; a negative index counts from the end; IndexError beyond it."""
        index = range(len(self))[index]
        waiting = index - (len(self) - len(self._pending))
        if waiting >= 0:
            return self._pending[waiting]
        start, stop = int(self.ends[index - 1]) if index else 0, int(self.ends[index])
        with self._damage(f"episode {index} cannot be read"):
            of = {name: column[index] for name, column in self._columns.items()}
        return Episode(
            observations={
                key: self.rows(f"observation/{key}", start, stop) for key in self.spec.observation
            },
            actions=self.rows("action", start, stop - 1),
            rewards=self.rows("reward", start, stop - 1),
            terminated=bool(of["terminated"]),
            truncated=bool(of["truncated"]),
            seed=int(of["seed"]),
        )

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows start to stop of an array (`observation/<key>`, `action`, `reward`)."""
        stop = min(stop, int(self.ends[-1]) if len(self) else 0)
        parts = []
        if start < self._folded:
            with self._damage(f"rows {start} to {stop} of {name} cannot be read"):
                parts.append(np.asarray(self._arrays[name][start : min(stop, self._folded)]))
        if stop > self._folded:
            waiting = np.concatenate([_rows(e, name) for e in self._pending])
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

    def disk_bytes(self, name: str) -> int:
        """Return the bytes on disk of an array, without the episodes that are still pending."""
        return sum(f.stat().st_size for f in (self.path / name).rglob("*") if f.is_file())

    def close(self) -> None:
        """Write what is pending into the arrays and let the next writer in."""
        try:
            if self._lock is not None and self._pending:
                with _disk(self.path):
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
            value = _unpadded(episode, name)
            if value.shape[1:] != row or value.dtype != dtype:
                raise ShapeError(
                    f"Episode {name}: found {value.dtype} rows of shape {value.shape[1:]}, "
                    f"need {dtype} {row}"
                )
            check_finite(f"Episode {name}", value)

    def _push(self, episode: Episode) -> None:
        self._pending.append(episode)
        last = int(self.ends[-1]) if len(self.ends) else 0
        self.ends = np.append(self.ends, last + len(episode) + 1)

    def _fold(self) -> None:
        """Move the pending episodes into the arrays: rows, then ends, then the files go."""
        episodes, done = self._pending, len(self) - len(self._pending)
        for name, array in self._arrays.items():
            _extend(array, self._folded, np.concatenate([_rows(e, name) for e in episodes]))
        columns = {
            "seed": [e.seed for e in episodes],
            "terminated": [e.terminated for e in episodes],
            "truncated": [e.truncated for e in episodes],
            "end": self.ends[done:],  # last: what commits
        }
        for name, column in columns.items():
            values = np.asarray(column, COLUMNS[name])
            _extend(self._columns[name], done, values)
        self._folded = int(self.ends[-1])
        self._pending = []
        pending.drop(self.path / PENDING, len(self))

    def _check_arrays(self) -> None:
        for name, array in self._arrays.items():
            if (array.shape[1:], array.dtype) != self._layout[name]:
                raise ValueError(f"{name} is {array.dtype} {array.shape[1:]}, unlike the spec")
            if array.shape[0] < self._folded:
                raise ValueError(f"{name} has {array.shape[0]} of {self._folded} rows")
            rest = "/0" * (array.ndim - 1)
            for shard in range(-(-self._folded // array.shards[0])):
                if not (self.path / f"{name}/c/{shard}{rest}").exists():  # zarr would give zeros
                    raise FileNotFoundError(f"{name}/c/{shard}{rest} is missing")

    def _repair(self) -> None:
        """Cut off what an interrupted writer left: rows without an end, files with one."""
        arrays = [(array, self._folded) for array in self._arrays.values()]
        arrays += [(column, len(self)) for column in self._columns.values()]
        with _disk(self.path):
            for array, length in arrays:
                if array.shape[0] > length:
                    array.resize((length, *array.shape[1:]))
            for leftover in self.path.rglob("*.partial"):
                leftover.unlink()
            (self.path / PENDING).mkdir(exist_ok=True)
            pending.drop(self.path / PENDING, len(self))

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
        raise StoreError(f"{where}: the store has {found!r}, asked for is {wanted!r}; {advice}")


class _Durable(LocalStore):
    """Files that are replaced atomically (as zarr does) and are on the disk before the next."""

    async def set(self, key: str, value: Buffer) -> None:
        await super().set(key, value)
        with (self.root / key).open("rb") as f:
            os.fsync(f.fileno())


def _open(path: Path, mode: Literal["r", "a"]) -> Any:
    if mode == "r":
        return zarr.open_group(_Durable(path, read_only=True), mode="r")
    return zarr.open_group(_Durable(path), mode="r+")


def _read_ends(column: Any) -> Array:
    ends = np.asarray(column[:])
    unwritten = np.flatnonzero(ends <= 0)  # zeros: the array grew, but its values did not come
    ends = ends[: unwritten[0]] if len(unwritten) else ends
    if (np.diff(ends) <= 0).any():
        raise ValueError("episode/end does not rise")
    return ends


def _layout(spec: Spec) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return the shape and dtype of a row, by array name."""
    arrays = {
        f"observation/{key}": (a.shape, np.dtype(a.dtype)) for key, a in spec.observation.items()
    }
    return arrays | {
        "action": ((spec.action.size,), np.dtype("float32")),
        "reward": ((), np.dtype("float32")),
    }


def _chunk_rows(row: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    fitting = max(1, CHUNK_BYTES // (prod(row) * dtype.itemsize))
    return min(1024, 1 << (fitting.bit_length() - 1))


def _create(
    group: zarr.Group,
    name: str,
    row: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    chunk: int,
    shard: int | None = None,
) -> None:
    group.create_array(
        name,
        shape=(0, *row),
        dtype=dtype,
        chunks=(chunk, *row),
        shards=None if shard is None else (shard, *row),
        compressors=ZstdCodec(level=5, checksum=True),
        filters=None,
        fill_value=0,
    )


def _extend(array: Any, start: int, values: Array) -> None:
    array.resize((start + len(values), *array.shape[1:]))
    array[start:] = values


def _unpadded(episode: Episode, name: str) -> Array:
    if name == "action":
        return episode.actions
    if name == "reward":
        return episode.rewards
    return episode.observations[name.removeprefix("observation/")]


def _rows(episode: Episode, name: str) -> Array:
    """Return the L + 1 rows of an episode in an array."""
    values = _unpadded(episode, name)
    if len(values) > len(episode):
        return values
    return np.concatenate([values, np.zeros_like(values[:1])])


def _read_attributes(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise StoreError(f"{path}: no such episode store; collect one, or correct the path")
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]["latentplan"]
        schema = attributes["schema"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StoreError(
            f"{path}: is not an episode store of latentplan ({type(e).__name__}: {e})"
        ) from None
    if schema != SCHEMA:
        raise StoreError(
            f"{path}: has schema version {schema}, this version of latentplan reads {SCHEMA}; "
            "collect it again, or use the version that made it"
        )
    return dict(attributes)


def _lock(path: Path) -> IO[bytes]:
    """Return a lock that the kernel drops with the process, however it ends."""
    if not (path / "zarr.json").exists():
        _read_attributes(path)  # says what is wrong
    lock = (path / ".lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StoreError(
            f"{path}: another process is writing to it; wait for it, or use another path"
        ) from None
    return lock


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Tell a full disk or a missing right as the user's matter."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; free some space and run the same again"
        else:
            reason = f"cannot be written ({e.strerror or e})"
        raise StoreError(f"{path}: {reason}; the episodes already stored are kept") from e
