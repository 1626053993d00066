"""Minari's data sets (Farama's offline data of gymnasium envs) as episodes, read from HDF5 files.

    DATASET/data/
      metadata.json       observation_space and action_space, as JSON in a string
      main_data.hdf5
        episode_N/        attributes: id, seed
          observations    (L + 1, ...), or a group of such (a Dict or Tuple space)
          actions, rewards, terminations, truncations    (L, ...)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentplan.data.sources import hdf5
from latentplan.errors import SourceError
from latentplan.types import ActionSpec, Array, Episode, Label, Spec

FILE = "main_data.hdf5"


class Minari:
    """A Source of a Minari data set, in the order of the episodes' numbers.

    Observations that are one array are called `observation`; those of a Dict or Tuple space have
    the names in it, joined by a dot. Texts (a mission) become labels. A discrete action is one
    number, the choice; actions of Dict and Tuple spaces are refused.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, path: Path | str, config: Config | None = None) -> None:
        """Find the episodes of the data set at `path`; SourceError if there are none."""
        self.config = config or self.Config()
        self.path = _main(Path(path))
        self.settings: dict[str, Any] = {"format": "minari"}
        spaces = _spaces(self.path.with_name("metadata.json"))
        with hdf5.opened(self.path) as file:
            names = [n for n in file if n.startswith("episode_") and n[8:].isdecimal()]
            self.names = sorted(names, key=lambda n: int(n[8:]))
            if not self.names:
                raise SourceError(f"{self.path}: has no episode_N")
            self.spec = self._spec(file, spaces.get("action_space", {}))

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.names)

    def episode(self, index: int) -> Episode:
        """Return one episode; SourceError if it is damaged or unexpected."""
        with hdf5.opened(self.path) as file:
            group = file[self.names[index]]
            arrays, texts = _leaves(group)
            if set(arrays) != set(self.spec.observation):
                raise SourceError(
                    f"{self.path}: {group.name} has the observations {sorted(arrays)}, "
                    f"the first episode {sorted(self.spec.observation)}"
                )
            actions = _vectors(hdf5.array(group, "actions"))
            observations = {
                key: hdf5.read(dataset, self.spec.observation[key])
                for key, dataset in arrays.items()
            }
            flags = {
                name: hdf5.read(d := hdf5.array(group, name), hdf5.row_spec(d)).reshape(-1)
                for name in ("rewards", "terminations", "truncations")
            }
            lengths = {name: len(v) for name, v in (flags | {"actions": actions}).items()}
            lengths |= {key: len(v) - 1 for key, v in observations.items()}
            if len(set(lengths.values())) != 1 or not len(actions):
                raise SourceError(f"{self.path}: {group.name} has unequal lengths: {lengths}")
            seed = group.attrs.get("seed")
            return Episode(
                observations=observations,
                actions=actions,
                rewards=flags["rewards"].astype(np.float32),
                terminated=bool(flags["terminations"][-1]),
                truncated=bool(flags["truncations"][-1]),
                seed=int(seed) if isinstance(seed, int | np.integer) else -1,
                labels=tuple(Label(text) for text in texts),
            )

    def _spec(self, file: Any, space: dict[str, Any]) -> Spec:
        arrays, _ = _leaves(file[self.names[0]])
        if not arrays:
            raise SourceError(f"{self.path}: {self.names[0]} has no observations")
        low, high = np.array(np.inf), np.array(-np.inf)
        for name in self.names:
            dataset = hdf5.array(file[name], "actions")
            if low.shape and dataset[:1].reshape(1, -1).shape[1:] != low.shape:
                raise SourceError(
                    f"{self.path}: {name}/actions has shape {dataset.shape}, those of "
                    f"{self.names[0]} have {low.size} numbers"
                )
            values = _vectors(dataset, finite=False)
            low = np.fmin(low, np.fmin.reduce(values))
            high = np.fmax(high, np.fmax.reduce(values))
        if space.get("type") == "Discrete":
            start = int(space.get("start", 0))
            low, high = np.array([start]), np.array([start + int(space["n"]) - 1])
        elif space.get("type") == "Box":
            low, high = (_bound(space, k, d) for k, d in (("low", low), ("high", high)))
        return Spec(
            observation={key: hdf5.row_spec(dataset) for key, dataset in arrays.items()},
            action=ActionSpec(
                tuple(map(float, low)), tuple(map(float, high)), _meaning(space)
            ),
        )


def _main(path: Path) -> Path:
    """Return the HDF5 file of a data set, given as its folder, the data in it, or the file."""
    if not path.exists():
        raise SourceError(f"{path}: no such data set")
    if path.is_file():
        return path
    for folder in (path, path / "data"):
        if (folder / FILE).exists():
            return folder / FILE
    raise SourceError(
        f"{path}: has no data/{FILE}; of Minari's formats hdf5 alone is read, "
        'minari.load_dataset(...) and create_dataset(data_format="hdf5") convert'
    )


def _spaces(path: Path) -> dict[str, dict[str, Any]]:
    """Return the spaces that the metadata describe, each a JSON text in it; {} without a file."""
    if not path.exists():
        return {}
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        spaces = {k: json.loads(v) for k, v in metadata.items() if k.endswith("_space")}
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise SourceError(f"{path}: is not Minari's metadata ({e})") from None
    return {k: v for k, v in spaces.items() if isinstance(v, dict)}


def _leaves(episode: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the arrays of an episode's observations by name, and its texts."""
    found = episode.get("observations")
    if found is None:
        raise SourceError(f"{episode.file.filename}: {episode.name} has no observations")
    arrays, texts = {}, []
    for name, dataset in _walk("", found):
        if dataset.dtype.kind == "O":  # strings of any length
            first = dataset[:1]
            texts += [t.decode() if isinstance(t, bytes) else str(t) for t in first]
        else:
            arrays[name or "observation"] = dataset
    return arrays, texts


def _walk(prefix: str, found: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(found, "keys"):
        for key in found:
            yield from _walk(f"{prefix}.{key}" if prefix else key, found[key])
    else:
        yield prefix, found


def _vectors(dataset: Any, *, finite: bool = True) -> Array:
    """Return actions (L, A) float32, a discrete one as (L, 1)."""
    values = np.asarray(dataset[:])
    if finite:
        hdf5.check_finite(f"{dataset.file.filename}: {dataset.name}", values)
    return values.astype(np.float32).reshape(len(values), -1 if len(values) else 1)


def _bound(space: dict[str, Any], name: str, data: Array) -> Array:
    """Return a Box's bound (A,), the data's if the Box has none (an infinity)."""
    try:
        bound = np.asarray(space[name], np.float64).reshape(-1)
    except (KeyError, TypeError, ValueError):
        return data
    if bound.shape != data.shape:
        return data
    nearest = np.fmin if name == "low" else np.fmax
    return np.where(np.isfinite(bound), nearest(bound, data), data)


def _meaning(space: dict[str, Any]) -> str:
    kind = space.get("type")
    return "the choice, a whole number" if kind == "Discrete" else ""
