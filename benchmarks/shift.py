"""Evaluate models of the rope in a world that differs from that of their data.

    python benchmarks/shift.py NAME=RUN [NAME=RUN ...] --json benchmarks/shift.json [--goals 60]

Each run plans in each world with its own planner, to the same starts and goals. `kept` is the
progress as a share of the same run's progress in the world `as collected`, from the same goals; its
interval is a paired bootstrap over them. Cells that the JSON has are not repeated. Prints the table
of docs/results/shift.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import latentplan
from latentplan.api.bench_tables import head, interval, line
from latentplan.evaluation.metrics import bootstrap, progress
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing

SAME = "as collected"
WORLDS: dict[str, list[str]] = {  # options of the env
    SAME: [],
    "PyBullet": ["env.engine=pybullet"],
    "picks by a simulated arm": ["env.actuator=arm"],
    "table with a texture": ["env.randomise.texture=[0.5,0.5]"],
    "light -30 %": ["env.randomise.light=[0.7,0.7]"],
    "light +30 %": ["env.randomise.light=[1.3,1.3]"],
    "camera turned by 0.5 degrees": ["env.randomise.camera_turn=[0.5,0.5]"],
    "by 3 degrees": ["env.randomise.camera_turn=[3,3]"],
    "by 5 degrees": ["env.randomise.camera_turn=[5,5]"],
    "by 3 degrees, rectified": ["env.randomise.camera_turn=[3,3]", "env.rectify=true"],
    "by 5 degrees, rectified": ["env.randomise.camera_turn=[5,5]", "env.rectify=true"],
    "5 degrees rectified, light +30 %, texture": [
        "env.randomise.camera_turn=[5,5]",
        "env.rectify=true",
        "env.randomise.light=[1.3,1.3]",
        "env.randomise.texture=[0.5,0.5]",
    ],
}
ENDS = ("planner", "random", "oracle")


def measure(run: str, world: str, *, goals: int, seed: int) -> dict[str, Any]:
    """Return the figures of a run in a world, with the final distances of each trial, m."""
    found = latentplan.evaluate(
        run, env="rope", episodes=goals, seed=seed, overrides=WORLDS[world]
    )
    ends = {name: [float(t.attempts[name].distance[-1]) for t in found.trials] for name in ENDS}
    return {"metrics": found.metrics.to_json(), "ends": ends}


def kept(there: dict[str, Any], here: dict[str, Any], *, seed: int) -> tuple[float, list[float]]:
    """Return the share of progress that is left, and its interval, over the same goals."""

    def share(*ends: Any) -> Any:
        return progress(*ends[:3]) / progress(*ends[3:])

    ends = [np.array(cell["ends"][name]) for cell in (there, here) for name in ENDS]
    return float(share(*ends)), [*bootstrap(share, *ends, seed=seed)]


def table(cells: dict[str, dict[str, Any]]) -> list[str]:
    """Return the rows: a world each, with success, progress and its share of every run."""
    columns = ["world"]
    for name in cells:
        columns += [f"{name}: success (95 %)", "progress (95 %)", "kept (95 %)"]
    rows = head(columns)
    for world in WORLDS:
        row = [world]
        for found in cells.values():
            row += _row(found, world)
        rows.append(line(row))
    return rows


def _row(found: dict[str, Any], world: str) -> list[str]:
    if world not in found:
        return ["", "", ""]
    metrics = found[world]["metrics"]
    share = ""
    if world != SAME:
        value, ends = kept(found[world], found[SAME], seed=metrics["seed"])
        share = f"{value:.2f}{interval(ends, 2)}"
    return [
        f"{metrics['success']:.0%}{interval(metrics['success_ci95'], 0, 100)}",
        f"{metrics['progress']:.3f}{interval(metrics['progress_ci95'], 3)}",
        share,
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, write it after every cell, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--goals", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worlds", default="", help="some worlds, with semicolons; default: all")
    given = parser.parse_args(arguments)
    done = json.loads(given.json.read_text()) if given.json.exists() else {"cells": {}}
    worlds = [each.strip() for each in given.worlds.split(";") if each.strip()] or list(WORLDS)
    for named in given.runs:
        name, _, run = named.partition("=")
        cells = done["cells"].setdefault(name, {})
        for world in worlds:
            if world in cells:
                continue
            cells[world] = measure(run, world, goals=given.goals, seed=given.seed)
            done |= {"goals": given.goals, "seed": given.seed, "provenance": provenance()}
            with replacing(given.json) as partial:
                partial.write_text(json.dumps(done, indent=1) + "\n")
            print(f"{name}, {world}: {cells[world]['metrics']['progress']:.3f}", flush=True)
    print("\n".join(table(done["cells"])))


if __name__ == "__main__":
    main()
