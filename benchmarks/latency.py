"""Measure latency: `python benchmarks/latency.py [--json FILE]`.

It times `act()` of the shipped rope-cfm and rope-calibrated, encoding included, for several
planners and numbers of candidates, and the start-up of the package and of the command line (medians
over new processes).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import latentplan
from latentplan.evaluation.provenance import provenance
from latentplan.sim.deformable.rope import Rope

POLICIES: dict[str, tuple[str, dict[str, Any]]] = {  # run, and options of `load`
    "cem, as shipped": ("rope-cfm", {"planner": "cem"}),
    "cem, 512 candidates in 1 round": (
        "rope-cfm",
        {"planner": "cem", "overrides": ["candidates=512", "iterations=1"]},
    ),
    "cem, 512 candidates in 2 rounds of 256": (
        "rope-cfm",
        {"planner": "cem", "overrides": ["candidates=256", "iterations=2"]},
    ),
    "cem, 512 candidates, 3 rounds": (
        "rope-cfm",
        {"planner": "cem", "overrides": ["candidates=512", "iterations=3"]},
    ),
    "shooting, 512 candidates": (
        "rope-cfm",
        {"planner": "shooting", "overrides": ["candidates=512"]},
    ),
    "shooting, 100 candidates (paper)": ("rope-cfm", {"planner": "shooting"}),
    "rope-calibrated, direct": (
        "rope-calibrated",
        {"policy": "generative", "overrides": ["horizon=1"]},
    ),
    "rope-calibrated, propose": ("rope-calibrated", {"planner": "propose"}),
    "rope-calibrated, beam": ("rope-calibrated", {"planner": "beam"}),
}
CALLS = 200  # calls of act() per row
STARTS = 15  # new processes per row
START_UP = {
    "import latentplan": [sys.executable, "-c", "import latentplan"],
    "latentplan --help": [str(Path(sys.executable).with_name("latentplan")), "--help"],
    "python alone": [sys.executable, "-c", ""],
}


def act(run: str, options: dict[str, Any]) -> dict[str, float]:
    """Return quantiles of act() in ms, after ten warm-up calls."""
    env = Rope()
    goal, _ = env.reset(seed=1)
    agent = latentplan.load(run, **options)
    agent.goal(goal)
    milliseconds = []
    observation, _ = env.reset(seed=2)
    for call in range(CALLS + 10):
        if call % 20 == 0:
            observation, _ = env.reset(seed=3 + call)
        start = time.perf_counter()
        action = agent.act(observation)
        milliseconds.append((time.perf_counter() - start) * 1e3)
        observation = env.step(action).observation
    p50, p90, p99 = np.percentile(milliseconds[10:], [50, 90, 99])
    return {"p50_ms": round(p50, 2), "p90_ms": round(p90, 2), "p99_ms": round(p99, 2)}


def start_up(command: list[str]) -> float:
    """Return the median wall time of a new process, s."""
    seconds = []
    for _ in range(STARTS):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return round(float(np.median(seconds)), 3)


def main() -> None:
    """Measure all, and write one JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    report = {
        "act": {name: act(*settings) for name, settings in POLICIES.items()},
        "start_up_s": {name: start_up(command) for name, command in START_UP.items()},
        "load_average": os.getloadavg(),
    } | provenance()
    given.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
