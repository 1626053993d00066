"""Episodes that wait for a place in a store's arrays: one file each, there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from latentplan.types import Episode


def write(folder: Path, index: int, episode: Episode) -> None:
    """Put episode number `index` into `folder` in one atomic step, and onto the disk."""
    arrays: dict[str, Any] = {
        f"observation/{key}": value for key, value in episode.observations.items()
    }
    arrays |= {
        "action": episode.actions,
        "reward": episode.rewards,
        "seed_terminated_truncated": np.array(
            [episode.seed, episode.terminated, episode.truncated], np.int64
        ),
    }
    partial = folder / f"{index:08d}.partial"
    try:
        with partial.open("wb") as f:
            np.savez(f, **arrays)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(_file(folder, index))
    finally:  # a full disk, or Ctrl-C
        partial.unlink(missing_ok=True)


def read(folder: Path) -> dict[int, Episode]:
    """Return the episodes in `folder` by number."""
    episodes = {}
    for file in sorted(folder.glob("*.npz")):
        try:
            with np.load(file, allow_pickle=False) as values:
                arrays = dict(values)
        except FileNotFoundError:
            continue  # a writer has just moved it into the arrays
        seed, terminated, truncated = arrays.pop("seed_terminated_truncated").tolist()
        episodes[int(file.stem)] = Episode(
            actions=arrays.pop("action"),
            rewards=arrays.pop("reward"),
            observations={k.removeprefix("observation/"): v for k, v in arrays.items()},
            terminated=bool(terminated),
            truncated=bool(truncated),
            seed=seed,
        )
    return episodes


def drop(folder: Path, stop: int) -> None:
    """Remove the episodes before number `stop`."""
    for file in folder.glob("*.npz"):
        if int(file.stem) < stop:
            file.unlink()


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:08d}.npz"
