"""Episodes that are not yet in a store's arrays: one atomic file each."""

from __future__ import annotations

from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from latentplan.data import labels
from latentplan.data.location import Location
from latentplan.types import Episode

FOLDER = ".pending"


def write(location: Location, index: int, episode: Episode) -> None:
    """Write episode number `index` to the folder and to the disk, in one atomic step."""
    arrays: dict[str, Any] = {
        f"observation/{key}": value for key, value in episode.observations.items()
    }
    arrays |= {f"info/{key}": np.float64(value) for key, value in episode.info.items()}
    arrays |= {
        "action": episode.actions,
        "reward": episode.rewards,
        "labels": np.array(labels.to_text(episode.labels)),
        "seed_terminated_truncated": np.array(
            [episode.seed, episode.terminated, episode.truncated], np.int64
        ),
    }
    content = BytesIO()
    try:
        np.savez(content, **arrays)
    except ValueError as e:
        if isinstance(e.__context__, KeyboardInterrupt):  # zipfile raises for its open handle
            raise KeyboardInterrupt from None
        raise
    location.write(_file(index), content.getvalue())


def read(location: Location) -> dict[int, Episode]:
    """Return the pending episodes by number."""
    episodes = {}
    for index, name in _numbers(location).items():
        try:
            content = location.read(name)
        except FileNotFoundError:
            continue  # a writer has just moved it into the arrays
        with np.load(BytesIO(content), allow_pickle=False) as values:
            arrays = dict(values)
        text = str(arrays.pop("labels", ""))  # absent in files of older versions
        seed, terminated, truncated = arrays.pop("seed_terminated_truncated").tolist()
        episodes[index] = Episode(
            actions=arrays.pop("action"),
            rewards=arrays.pop("reward"),
            observations=_named(arrays, "observation/"),
            terminated=bool(terminated),
            truncated=bool(truncated),
            seed=seed,
            info={key: float(value) for key, value in _named(arrays, "info/").items()},
            labels=labels.from_text(text),
        )
    return episodes


def drop(location: Location, stop: int) -> None:
    """Remove the episodes before number `stop`."""
    for index, name in _numbers(location).items():
        if index < stop:
            location.remove(name)


def _named(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _numbers(location: Location) -> dict[int, str]:
    names = [name for name in location.sizes(FOLDER) if name.endswith(".npz")]
    return {int(PurePosixPath(name).stem): name for name in names}


def _file(index: int) -> str:
    return f"{FOLDER}/{index:08d}.npz"
