"""Plan with every planner on trained models of the rope.

    python benchmarks/trained_planners.py rope-cfm rope-calibrated --goals 40 \
      --json benchmarks/trained_planners.json

All planners have the same budget: about 512 candidates of one action a solve (gradient planners
32, each with `STEPS` gradient steps), the model's own objective, no proposals, the same goals.
`rope-calibrated` with its proposals is in docs/results/rope.md. Cells that the JSON has are not
repeated. Prints the table of docs/results/planners.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import latentplan
from latentplan.api.bench_tables import head, interval, line
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing

STEPS = 16  # of a gradient planner, each with 32 rollouts and their gradients
FEW = {"candidates": 32, "iterations": STEPS}
PLANNERS: dict[str, dict[str, Any]] = {
    "shooting": {"candidates": 512},
    "predictive": {"candidates": 512},
    "cem": {"candidates": 256, "iterations": 2},
    "icem": {"candidates": 256, "iterations": 2},
    "mppi": {"candidates": 256, "iterations": 2},
    "gradient": FEW,
    "hybrid": {"candidates": 128, "iterations": 4},
}


def measure(run: str, planner: str, *, goals: int, seed: int) -> dict[str, Any]:
    """Return the metrics of a run with a planner."""
    settings = {"horizon": 1, **PLANNERS[planner]}
    overrides = [f"planner.{key}={value}" for key, value in settings.items()]
    found = latentplan.evaluate(
        run,
        env="rope",
        planner=planner,
        episodes=goals,
        seed=seed,
        overrides=[*overrides, "mpc.propose=false"],
    )
    return dict(found.metrics.to_json())


def table(cells: dict[str, dict[str, Any]]) -> list[str]:
    """Return the rows: a planner each, with success, progress and time for every run."""
    columns = ["planner"]
    for run in cells:
        columns += [f"{run}: success", "progress (95 %)", "act() ms p50"]
    rows = head(columns)
    for planner in PLANNERS:
        row = [planner]
        for found in cells.values():
            m = found.get(planner)
            row += (
                ["", "", ""]
                if m is None
                else [
                    f"{m['success']:.0%}",
                    f"{m['progress']:.3f}{interval(m['progress_ci95'], 3)}",
                    f"{m['act_ms_p50']:.1f}",
                ]
            )
        rows.append(line(row))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, write it after every cell, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--goals", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    done = json.loads(given.json.read_text()) if given.json.exists() else {"cells": {}}
    for run in given.runs:
        cells = done["cells"].setdefault(run, {})
        for planner in PLANNERS:
            if planner in cells:
                continue
            cells[planner] = measure(run, planner, goals=given.goals, seed=given.seed)
            done |= {"goals": given.goals, "seed": given.seed, "provenance": provenance()}
            done |= {"settings": PLANNERS, "threads": torch.get_num_threads()}
            with replacing(given.json) as partial:
                partial.write_text(json.dumps(done, indent=1) + "\n")
            print(f"{run}, {planner}: {cells[planner]['progress']:.3f}", flush=True)
    print("\n".join(table(done["cells"])))


if __name__ == "__main__":
    main()
