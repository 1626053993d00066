"""The arrays of a store, their chunks and shards, and the attributes that describe them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from latentplan import budget
from latentplan.data import commit, labels
from latentplan.data.location import Location
from latentplan.errors import ShapeError, StoreError
from latentplan.shapes import check_finite
from latentplan.types import Array, Episode, Spec
from latentplan.urls import public_text

SCHEMA = 2  # of new stores: those before commit.json had 1
READABLE = (1, 2)
CHUNK_BYTES = 1 << 19  # decoded together; neighbouring images compress well together
SHARD_CHUNKS = 16  # chunks a file
EPISODE_CHUNK = 4096  # entries a file of the arrays below episode/
COLUMNS = {"seed": "int64", "terminated": "bool", "truncated": "bool", "end": "int64"}
INFO = "episode/info"  # group of float64 (episodes,), NaN if an episode has none
LABELS = "episode/labels"  # JSON texts (episodes,), "" if an episode has none


def of_rows(spec: Spec) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return the shape and dtype of a row, by array name."""
    arrays = {
        f"observation/{key}": (a.shape, np.dtype(a.dtype)) for key, a in spec.observation.items()
    }
    return arrays | {
        "action": ((spec.action.size,), np.dtype("float32")),
        "reward": ((), np.dtype("float32")),
    }


def create(location: Location, spec: Spec, settings: Mapping[str, Any]) -> None:
    """Create an empty store at a location; the attributes, which make it one, come last.

    zarr lays it out in memory and the files are written here, one after another: if one fails, no
    thread of zarr's is still writing others.
    """
    files: dict[str, Buffer] = {}
    group = zarr.open_group(MemoryStore(files), mode="w")
    for name, (row, dtype) in of_rows(spec).items():
        fitting = max(1, CHUNK_BYTES // (prod(row) * dtype.itemsize))
        chunk = min(1024, 1 << (fitting.bit_length() - 1))
        _create(group, name, row, dtype, chunk=chunk, shard=chunk * SHARD_CHUNKS)
    for name, kind in COLUMNS.items():
        _create(group, f"episode/{name}", (), np.dtype(kind), chunk=EPISODE_CHUNK)
    group.require_group(INFO)
    attributes: dict[str, Any] = {
        "schema": SCHEMA,
        "spec": spec.to_json(),
        "settings": dict(settings),
    }
    group.attrs.put({"latentplan": attributes})
    for name in sorted(set(files) - {"zarr.json"}, key=lambda name: name.count("/")):
        location.replace(name, files[name].to_bytes())
    commit.write(location, commit.Commit())
    location.replace("zarr.json", files["zarr.json"].to_bytes())


def create_info(group: zarr.Group, name: str) -> Any:
    """Return a new array of one number an episode."""
    return _create(
        group.require_group(INFO), name, (), np.dtype("float64"), chunk=EPISODE_CHUNK, fill=np.nan
    )


def info_names(location: Location) -> list[str]:
    """Return the names of the numbers that episodes have; none in stores of older versions."""
    parts = [name.split("/") for name in location.sizes(INFO)]  # episode info NAME zarr.json
    return [p[2] for p in parts if len(p) == 4 and p[3] == "zarr.json"]


def create_labels(group: zarr.Group) -> Any:
    """Return a new array of one text an episode."""
    return group.create_array(
        LABELS,
        config={"write_empty_chunks": True},
        shape=(0,),
        dtype="string",
        chunks=(EPISODE_CHUNK,),
        compressors=ZstdCodec(level=5, checksum=True),
        filters=None,
        fill_value="",
    )


def has_labels(location: Location) -> bool:
    """Return whether any episode in the arrays has labels."""
    return f"{LABELS}/zarr.json" in location.sizes(LABELS)


def read_attributes(location: Location) -> dict[str, Any]:
    """Return `schema`, `spec` and `settings`; StoreError if there is no store that can be read."""
    try:
        attributes = dict(_metadata(location)["attributes"]["latentplan"])
        schema = attributes["schema"]
    except FileNotFoundError as e:
        if not location.exists():
            raise StoreError(
                f"{location}: no such episode store; collect one, or correct the path"
            ) from None
        raise _foreign(location, e) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise _foreign(location, e) from None
    if schema not in READABLE:
        raise StoreError(
            f"{location}: has schema version {schema}, this version of latentplan reads "
            f"{READABLE[0]} and {READABLE[1]}; collect it again, or use the version that made it"
        )
    return attributes


def upgrade(location: Location) -> None:
    """Say in the attributes that there is a record, so that older versions refuse the store."""
    metadata = _metadata(location)
    metadata["attributes"]["latentplan"]["schema"] = SCHEMA
    location.replace("zarr.json", json.dumps(metadata, indent=2).encode())


def _metadata(location: Location) -> Any:
    return json.loads(location.read("zarr.json"))


def _foreign(location: Location, error: Exception) -> StoreError:
    reason = f"{type(error).__name__}: {public_text(str(error))}"
    return StoreError(f"{location}: is not an episode store of latentplan ({reason})")


def read_ends(column: Any, count: int | None = None) -> Array:
    """Return the rows (episodes,) after the last of each of the first `count` episodes.

    Without a count, it is of those that were written. Raises ValueError if they do not rise.
    """
    rows = column.shape[0] if count is None else count
    budget.claim(f"store: {column.path}", bytes=rows * column.dtype.itemsize)
    ends = np.asarray(column[:count])
    if count is None:
        unwritten = np.flatnonzero(ends <= 0)  # zeros: the array was resized, not written
        ends = ends[: unwritten[0]] if len(unwritten) else ends
    if (np.diff(ends, prepend=0) <= 0).any():
        raise ValueError("episode/end does not rise")
    return ends


def check(episode: Episode, spec: Spec) -> None:
    """Raise ShapeError if an episode does not fit the spec, or cannot be stored."""
    if set(episode.observations) != set(spec.observation):
        raise ShapeError(
            f"Episode.observations: found {sorted(episode.observations)}, "
            f"need {sorted(spec.observation)}"
        )
    for name, (row, dtype) in of_rows(spec).items():
        value = unpadded(episode, name)
        if value.shape[1:] != row or value.dtype != dtype:
            raise ShapeError(
                f"Episode {name}: found {value.dtype} rows of shape {value.shape[1:]}, "
                f"need {dtype} {row}"
            )
        check_finite(f"Episode {name}", value)
    labels.check(episode)
    for name in episode.info:
        if not name or "/" in name or name.startswith((".", "__")) or name == "zarr.json":
            raise ShapeError(
                f"Episode.info: found {name!r}, a name must not be '' or zarr.json, have a /, or "
                "begin with . or __; use another name"
            )
    if not -(1 << 63) <= episode.seed < 1 << 63:
        raise ShapeError(f"Episode.seed: found {episode.seed}, need 64 bits with a sign")


def extend(array: Any, start: int, values: Array) -> None:
    """Write values after the first `start` of an array; what was not written is its fill value."""
    array.resize((start + len(values), *array.shape[1:]))
    array[start:] = values


def cut(array: Any, length: int) -> None:
    """Remove what is after the first `length` entries of an array."""
    if array.shape[0] > length:
        array.resize((length, *array.shape[1:]))


def rows(episode: Episode, name: str) -> Array:
    """Return the L + 1 rows of an episode in an array."""
    values = unpadded(episode, name)
    if len(values) > len(episode):
        return values
    return np.concatenate([values, np.zeros_like(values[:1])])


def unpadded(episode: Episode, name: str) -> Array:
    """Return what an episode holds for an array: L or L + 1 rows."""
    if name == "action":
        return episode.actions
    if name == "reward":
        return episode.rewards
    return episode.observations[name.removeprefix("observation/")]


def _create(
    group: zarr.Group,
    name: str,
    row: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    chunk: int,
    shard: int | None = None,
    fill: float = 0,
) -> Any:
    return group.create_array(
        name,
        config={"write_empty_chunks": True},  # absent means damage
        shape=(0, *row),
        dtype=dtype,
        chunks=(chunk, *row),
        shards=None if shard is None else (shard, *row),
        compressors=ZstdCodec(level=5, checksum=True),
        filters=None,
        fill_value=fill,
    )
