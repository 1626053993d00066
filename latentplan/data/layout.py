"""The arrays of a store, their chunks and shards, and the attributes that describe them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from latentplan.data.location import Location
from latentplan.errors import StoreError
from latentplan.types import Array, Episode, Spec

SCHEMA = 1
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
    """Create the empty arrays at a location, and last the attributes, which make it a store."""
    group = zarr.open_group(location.zarr(read_only=False), mode="w")
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
    """Return `spec` and `settings`; StoreError if there is no store that can be read."""
    try:
        text = location.read("zarr.json")
    except OSError as e:
        if not location.exists():
            raise StoreError(
                f"{location}: no such episode store; collect one, or correct the path"
            ) from None
        raise StoreError(
            f"{location}: is not an episode store of latentplan ({type(e).__name__}: {e})"
        ) from None
    try:
        attributes = json.loads(text)["attributes"]["latentplan"]
        schema = attributes["schema"]
    except (ValueError, KeyError, TypeError) as e:
        raise StoreError(
            f"{location}: is not an episode store of latentplan ({type(e).__name__}: {e})"
        ) from None
    if schema != SCHEMA:
        raise StoreError(
            f"{location}: has schema version {schema}, this version of latentplan reads {SCHEMA}; "
            "collect it again, or use the version that made it"
        )
    return dict(attributes)


def read_ends(column: Any) -> Array:
    """Return the rows (episodes,) after each episode's last, of those that were written."""
    ends = np.asarray(column[:])
    unwritten = np.flatnonzero(ends <= 0)  # zeros: the array was resized, not written
    ends = ends[: unwritten[0]] if len(unwritten) else ends
    if (np.diff(ends) <= 0).any():
        raise ValueError("episode/end does not rise")
    return ends


def extend(array: Any, start: int, values: Array) -> None:
    """Write values after the first `start` of an array; what was not written is its fill value."""
    array.resize((start + len(values), *array.shape[1:]))
    array[start:] = values


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
        shape=(0, *row),
        dtype=dtype,
        chunks=(chunk, *row),
        shards=None if shard is None else (shard, *row),
        compressors=ZstdCodec(level=5, checksum=True),
        filters=None,
        fill_value=fill,
    )
