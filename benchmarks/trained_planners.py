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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cells
import torch

import latentplan

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


COLUMNS = {
    "success": lambda found, planner: f"{found[planner]['success']:.0%}",
    "progress (95 %)": lambda found, planner: cells.progress(found[planner]),
    "act() ms p50": lambda found, planner: f"{found[planner]['act_ms_p50']:.1f}",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--goals", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    about = {"goals": given.goals, "seed": given.seed}
    found = cells.measured(
        given.json,
        {run: run for run in given.runs},
        PLANNERS,
        lambda run, planner: measure(run, planner, **about),
        settings=PLANNERS,
        threads=torch.get_num_threads(),
        **about,
    )
    print(cells.table("planner", found, PLANNERS, COLUMNS))


if __name__ == "__main__":
    main()
