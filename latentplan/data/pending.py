"""Episodes that are not yet in a store's arrays: one atomic file each."""

from __future__ import annotations

import re
import zipfile
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from latentplan.data import commit, labels, layout
from latentplan.data.location import Location
from latentplan.errors import StoreError
from latentplan.types import Episode, Spec

FOLDER = ".pending"
NAME = re.compile(r"(\d{8,})\.npz")
FLAGS = "seed_terminated_truncated"
ADVICE = (
    f"restore it from a copy of the store, or, to go on without its episode and the later ones, "
    f"delete {commit.FILE} and their files in {FOLDER}"
)


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
        FLAGS: np.array([episode.seed, episode.terminated, episode.truncated], np.int64),
    }
    content = BytesIO()
    try:
        np.savez(content, **arrays)
    except ValueError as e:
        if isinstance(e.__context__, KeyboardInterrupt):  # zipfile raises for its open handle
            raise KeyboardInterrupt from None
        raise
    location.write(file(index), content.getvalue())


def read(location: Location, spec: Spec, *, start: int = 0) -> dict[int, Episode]:
    """Return the pending episodes from number `start` on, by number.

    Raises StoreError that names the file if one is damaged, or holds what could not be appended.
    """
    episodes = {}
    for index, name in _numbers(location).items():
        if index < start:
            continue  # it is in the arrays, and a kill left its file
        try:
            content = location.read(name)
        except FileNotFoundError:
            continue  # a writer has just moved it into the arrays
        try:
            episodes[index] = _episode(content)
            layout.check(episodes[index], spec)
        except Exception as e:  # numpy and zipfile raise all kinds of errors for foreign bytes
            raise StoreError(
                f"{location}: {name} is damaged ({type(e).__name__}: {e}); {ADVICE}"
            ) from None
    return episodes


def missing(location: Location, index: int) -> StoreError:
    """Return the error for an episode whose file should be there."""
    return StoreError(f"{location}: {file(index)} is missing; {ADVICE}")


def drop(location: Location, stop: int) -> None:
    """Remove the episodes before number `stop`."""
    for index, name in _numbers(location).items():
        if index < stop:
            location.remove(name)


def file(index: int) -> str:
    """Return the name of an episode's file."""
    return f"{FOLDER}/{index:08d}.npz"


def _episode(content: bytes) -> Episode:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, which this store never does")
    with np.load(BytesIO(content), allow_pickle=False) as values:
        arrays = dict(values)
    text = arrays.pop("labels", np.array(""))  # absent in files of older versions
    flags = arrays.pop(FLAGS)
    if flags.shape != (3,) or flags.dtype != np.int64 or not set(flags[1:].tolist()) <= {0, 1}:
        raise ValueError(f"{FLAGS} is {flags.dtype} {flags.tolist()}")
    episode = Episode(
        actions=arrays.pop("action"),
        rewards=arrays.pop("reward"),
        observations=_named(arrays, "observation/"),
        terminated=bool(flags[1]),
        truncated=bool(flags[2]),
        seed=int(flags[0]),
        info={key: _number(key, value) for key, value in _named(arrays, "info/").items()},
        labels=labels.from_text(str(text)),
    )
    if arrays:
        raise ValueError(f"it has the unknown arrays {sorted(arrays)}")
    return episode


def _named(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays.pop(name) for name in names}


def _number(name: str, value: Any) -> float:
    if value.shape != () or value.dtype != np.float64:
        raise ValueError(f"info/{name} is {value.dtype} {value.shape}, not a float64")
    return float(value)


def _numbers(location: Location) -> dict[int, str]:
    """Return the names of the files by number; others that lie there are left alone."""
    names = {name: NAME.fullmatch(PurePosixPath(name).name) for name in location.sizes(FOLDER)}
    return {int(match[1]): name for name, match in names.items() if match}
