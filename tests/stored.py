"""A small store: its spec, its episodes, and what is compared of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from latentplan.data.store import ZarrStore
from latentplan.types import ActionSpec, ArraySpec, Episode, Label, Spec

SPEC = Spec(
    observation={
        "rgb": ArraySpec((8, 8, 3), "uint8", "picture"),
        "joints": ArraySpec((2,), "float32", "rad"),
        "touch": ArraySpec((), "bool", "contact"),
    },
    action=ActionSpec((-1.0,) * 3, (1.0,) * 3),
)

# Crash at each step of the disk, or at some.
EVERY = pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])


class Crash(BaseException):
    """The process is gone: nothing after it runs."""


def episode(number: int, length: int = 3) -> Episode:
    rng = np.random.default_rng(number)
    rows = length + 1
    return Episode(
        observations={
            "rgb": rng.integers(0, 256, (rows, 8, 8, 3), np.uint8),
            "joints": rng.normal(size=(rows, 2)).astype(np.float32),
            "touch": rng.random(rows) < 0.5,
        },
        actions=rng.uniform(-1, 1, (length, 3)).astype(np.float32),
        rewards=rng.normal(size=length).astype(np.float32),
        terminated=bool(number % 2),
        truncated=bool(number % 3),
        seed=number + (1 << 62),
        info={"friction": number / 7} | ({"late": -1.0} if number > 1 else {}),
        labels=(Label("öffne", "open", 0, length), Label(f"no {number}"))[: number % 3],
    )


def assert_same(found: Episode, wanted: Episode) -> None:
    assert set(found.observations) == set(wanted.observations)
    for key, value in wanted.observations.items():
        np.testing.assert_array_equal(found.observations[key], value, strict=True)
    np.testing.assert_array_equal(found.actions, wanted.actions, strict=True)
    np.testing.assert_array_equal(found.rewards, wanted.rewards, strict=True)
    flags = (wanted.terminated, wanted.truncated, wanted.seed)
    assert (found.terminated, found.truncated, found.seed) == flags
    assert found.info == wanted.info
    assert found.labels == wanted.labels


def arrays(path: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(path, mode="r")
    names = [f"observation/{key}" for key in SPEC.observation] + ["action", "reward"]
    names += [f"episode/{name}" for name in ("end", "seed", "terminated", "truncated")]
    names += [f"episode/info/{name}" for name in sorted(group["episode/info"])]
    names += ["episode/labels"] if "episode/labels" in group else []
    return {name: np.asarray(group[name][:]) for name in names}


def assert_equal_arrays(path: Path, wanted: dict[str, np.ndarray]) -> None:
    assert set(arrays(path)) == set(wanted)
    for name, found in arrays(path).items():
        np.testing.assert_array_equal(found, wanted[name], strict=True, err_msg=name)


def filled(path: Path, count: int) -> Path:
    with ZarrStore.create(path, SPEC, settings={"seed": 3}) as store:
        for number in range(count):
            store.append(episode(number))
    return path


def until_crash(store: ZarrStore, count: int) -> tuple[int, bool]:
    """Append episodes and close the store; return how many were appended, and if it crashed."""
    appended = 0
    try:
        for number in range(count):
            store.append(episode(number))
            appended += 1
        store.close()
    except Crash:
        return appended, True
    return appended, False


def of_before(path: Path) -> Path:
    """Make a store what an older version wrote, which kept no record of what it has."""
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"]["latentplan"]["schema"] = 1
    (path / "zarr.json").write_text(json.dumps(metadata))
    (path / "commit.json").unlink()
    return path
