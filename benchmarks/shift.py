"""Evaluate models of the rope in a world that differs from that of their data.

    python benchmarks/shift.py NAME=RUN [NAME=RUN ...] --json benchmarks/shift.json [--goals 60]

Each run plans in each world with its own planner, to the same starts and goals. `kept` is the
progress as a share of the same run's progress in the world `as collected`, from the same goals; its
interval is a paired bootstrap over them. Cells that the JSON has are not repeated. Prints the table
of docs/results/shift.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cells
import numpy as np

import latentplan
from latentplan.api.bench_tables import interval
from latentplan.evaluation.metrics import bootstrap, progress

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

    def ratio(*ends: Any) -> Any:
        return progress(*ends[:3]) / progress(*ends[3:])

    ends = [np.array(cell["ends"][name]) for cell in (there, here) for name in ENDS]
    return float(ratio(*ends)), [*bootstrap(ratio, *ends, seed=seed)]


def share(found: dict[str, Any], world: str) -> str:
    """Return the share of progress that is left, with its interval; empty for the world itself."""
    if world == SAME:
        return ""
    value, ends = kept(found[world], found[SAME], seed=found[world]["metrics"]["seed"])
    return f"{value:.2f}{interval(ends, 2)}"


COLUMNS = {
    "success (95 %)": lambda found, world: cells.success(found[world]["metrics"]),
    "progress": lambda found, world: f"{found[world]['metrics']['progress']:.3f}",
    "kept (95 %)": share,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--goals", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worlds", default="", help="some worlds, with semicolons; default: all")
    given = parser.parse_args(arguments)
    about = {"goals": given.goals, "seed": given.seed}
    found = cells.measured(
        given.json,
        dict(named.split("=", 1) for named in given.runs),
        [each.strip() for each in given.worlds.split(";") if each.strip()] or WORLDS,
        lambda run, world: measure(run, world, **about),
        **about,
    )
    print(cells.table("world", found, WORLDS, COLUMNS))


if __name__ == "__main__":
    main()
