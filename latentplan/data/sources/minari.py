"""Minari's data sets (Farama's offline data of gymnasium envs) as episodes, read from HDF5 files.

    DATASET/data/
      metadata.json       observation_space and action_space, as JSON in a string
      main_data.hdf5
        episode_N/        attributes: id, seed
          observations    (L + 1, ...), or a group of such (a Dict or Tuple space)
          actions, rewards, terminations, truncations    (L, ...)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentplan import foreign
from latentplan.data.sources import hdf5, hdf5_episodes, observation_keys
from latentplan.data.sources.floats import float32
from latentplan.errors import SourceError
from latentplan.types import ActionSpec, Array, Episode, Label, Spec

FILE = "main_data.hdf5"
EPISODE = re.compile(r"episode_[0-9]{1,9}")
ENDS = ("rewards", "terminations", "truncations")
CHOICES = 2**24  # of a discrete action, at most: those that float32 tells apart


class Minari:
    """A Source of a Minari data set, in the order of the episodes' numbers.

    Observations that are one array are called `observation`; those of a Dict or Tuple space have
    the names in it, joined by a dot. Texts (a mission) become labels. A discrete action is one
    number, the choice; actions of Dict and Tuple spaces are refused. The first episode that can be
    read determines the observations and the size of an action.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(
        self,
        path: Path | str,
        config: Config | None = None,
        *,
        keys: Sequence[str] | None = None,
    ) -> None:
        """Find the episodes of the data set at `path`; SourceError if there are none."""
        self.config = config or self.Config()
        self.path = _main(Path(path))
        self.settings: dict[str, Any] = {"format": "minari"}
        space = _spaces(self.path.with_name("metadata.json")).get("action_space", {})
        with hdf5.opened(self.path) as file:
            names = [n for n in file.names() if EPISODE.fullmatch(n)]
            self.names = sorted(names, key=lambda n: int(n[8:]))
            if not self.names:
                raise SourceError(f"{self.path}: has no episode_N")
            arrays, low, high = hdf5_episodes.scan(
                file, self.names, actions=_actions, observed=lambda episode, _: _observed(episode)
            )
            reasons = {key: array.unfit for key, array in arrays.items()}
            chosen, self.notes = observation_keys.storable(reasons, keys)
            if not chosen:
                why = "; ".join(self.notes) or "they are empty"
                raise SourceError(f"{self.path}: no observations can be read: {why}")
            observation = {key: arrays[key].row() for key in chosen}
        self.spec = Spec(observation, _action(space, low, high))

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.names)

    def episode(self, index: int) -> Episode:
        """Return one episode; SourceError if it is damaged or unexpected."""
        with hdf5.opened(self.path) as file:
            group = file.group(self.names[index])
            arrays = _observed(group)
            actions = _actions(group, size=self.spec.action.size)
            observations = {
                key: _named(group, arrays, key).read(spec)
                for key, spec in self.spec.observation.items()
            }
            flags = {name: group.array(name).read().reshape(-1) for name in ENDS}
            lengths = {name: len(v) for name, v in (flags | {"actions": actions}).items()}
            lengths |= {key: len(v) - 1 for key, v in observations.items()}
            if len(set(lengths.values())) != 1:
                raise SourceError(f"{group.where} has unequal lengths: {lengths}")
            readable = [array for array in arrays.values() if not array.refused]
            texts = [text for array in readable for text in array.texts(first=True)]
            seed = group.attribute("seed")
        return Episode(
            observations=observations,
            actions=actions,
            rewards=float32(flags["rewards"]),
            terminated=bool(flags["terminations"][-1]),
            truncated=bool(flags["truncations"][-1]),
            seed=int(seed) if isinstance(seed, int | np.integer) else -1,
            labels=tuple(Label(text) for text in texts if text),
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
    metadata = foreign.read_json(path, error=SourceError)
    if not isinstance(metadata, dict):
        raise SourceError(f"{path}: is not Minari's metadata, need a mapping")
    texts = {k: v for k, v in metadata.items() if k.endswith("_space") and isinstance(v, str)}
    spaces = {
        k: foreign.from_json(v, where=f"{path}: {k}", error=SourceError) for k, v in texts.items()
    }
    return {k: v for k, v in spaces.items() if isinstance(v, dict)}


def _observed(episode: hdf5.Group) -> dict[str, hdf5.Data]:
    """Return the arrays of an episode's observations by name, texts included."""
    found = episode.find("observations")
    if found is None:
        raise SourceError(f"{episode.where} has no observations")
    return {"observation": found} if isinstance(found, hdf5.Data) else found.arrays()


def _named(episode: hdf5.Group, arrays: dict[str, hdf5.Data], key: str) -> hdf5.Data:
    if key not in arrays:
        raise SourceError(
            f"{episode.where} has the observations {sorted(arrays)}, not {key!r}, which the first "
            "episode has"
        )
    return arrays[key]


def _actions(episode: hdf5.Group, *, size: int | None = None) -> Array:
    """Return actions (L, A) float32, a discrete one as (L, 1); SourceError if not of `size`."""
    array = episode.array("actions")
    values = array.read()
    if not len(values):
        raise SourceError(f"{array.where}: the episode is empty")
    flat = float32(values).reshape(len(values), -1)
    if size not in (None, flat.shape[1]):
        raise SourceError(
            f"{array.where} has shape {values.shape}, those of the first episode have {size} "
            "numbers"
        )
    return flat


def _action(space: dict[str, Any], low: Array, high: Array) -> ActionSpec:
    """Return the spec of an action of a space, within the data's bounds (A,) without one."""
    if space.get("type") == "Discrete":
        start, count = space.get("start", 0), space.get("n")
        if len(low) == 1 and all(isinstance(x, int) and abs(x) < CHOICES for x in (start, count)):
            low, high = np.array([start]), np.array([start + count - 1])
        meaning = "the choice, a whole number"
    else:
        meaning = ""
    if space.get("type") == "Box":
        low, high = (_bound(space, k, d) for k, d in (("low", low), ("high", high)))
    return ActionSpec(tuple(map(float, low)), tuple(map(float, high)), meaning)


def _bound(space: dict[str, Any], name: str, data: Array) -> Array:
    """Return a Box's bound (A,), the data's if the Box has none (an infinity)."""
    try:
        bound = np.asarray(space[name], np.float64).reshape(-1)
    except (KeyError, TypeError, ValueError, OverflowError):
        return data
    if bound.shape != data.shape:
        return data
    nearest = np.fmin if name == "low" else np.fmax
    return np.where(np.isfinite(bound), nearest(bound, data), data)
