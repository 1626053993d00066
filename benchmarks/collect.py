"""How fast one and two workers collect a rope: `python benchmarks/collect.py [OUT.json]`."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from latentplan.data.store import ZarrStore
from latentplan.exploration.collect import Progress, collect
from latentplan.exploration.picks import RandomPick
from latentplan.exploration.recorder import CollectConfig, Recipe
from latentplan.sim.rope import Rope

EPISODES = 120  # of each measurement
REPEATS = 3
RECIPE = Recipe(
    Rope,
    RandomPick,
    env_config=Rope.Config(),
    explorer_config=RandomPick.Config(),
    config=CollectConfig(),
    seed=0,
)


def rate(workers: int, path: Path) -> float:
    """Return transitions per second, from the tenth episode on: without the start of processes."""
    seen: list[tuple[float, int]] = []

    def report(progress: Progress) -> None:
        seen.append((time.perf_counter(), progress.transitions))

    with ZarrStore.create(path, Rope().data_spec) as store:
        collect(store, RECIPE, episodes=EPISODES, workers=workers, report=report)
    (start, before), (stop, after) = seen[9], seen[-1]
    return (after - before) / (stop - start)


def main(out: str = "benchmarks/collect.json") -> None:
    """Measure one and two workers in turn, and write the rates and their ratio."""
    load = os.getloadavg()
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(REPEATS):
            for workers, rates in found.items():
                rates.append(rate(workers, Path(folder) / f"{workers}-{repeat}.zarr"))
    report = {
        "transitions_per_s": {w: [round(r, 1) for r in rates] for w, rates in found.items()},
        "two_workers_over_one": round(float(np.median(found[2]) / np.median(found[1])), 2),
        "machine": {"cpus": os.cpu_count(), "load_average_before": load},
        "versions": {
            "python": platform.python_version(),
            "mujoco": version("mujoco"),
            "zarr": version("zarr"),
        },
    }
    Path(out).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
