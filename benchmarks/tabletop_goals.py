"""Reach goal images on the tabletop, for docs/results/tabletop-goals.md.

    python benchmarks/tabletop_goals.py reach NAME RUN [KEY=VALUE ...] --episodes 20
    python benchmarks/tabletop_goals.py reach controls none --episodes 20

    python benchmarks/tabletop_goals.py reach NAME RUN --tasks open_drawer --episodes 50

Every family of tasks has `episodes` goals, spread evenly over its tasks; a goal is an observation
after the expert solved the task, and the start is the same desk with the task undone. An attempt
succeeds if the task is done at its end. `none` runs no model but the controls: random actions, no
motion, the expert. The row NAME is written to benchmarks/tabletop_goals.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import latentplan
from latentplan import config
from latentplan.evaluation.baselines import baselines
from latentplan.evaluation.goals import Goals
from latentplan.evaluation.metrics import wilson
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.protocols import Policy
from latentplan.sim.tabletop.env import NAMES, Tabletop

FILE = Path(__file__).parent / "tabletop_goals.json"
FAMILIES = {
    "open/close": ["open_drawer", "close_drawer"],
    "turn on/off": ["turn_on_light", "turn_off_light"],
    "slide": ["move_slider_left", "move_slider_right"],
    "push": [name for name in NAMES if name.startswith("push")],
}


class Alone(Goals):
    """Evaluation `goals` without its controls, which have a row of their own."""

    def controls(self, env: Any) -> Mapping[str, Policy]:
        """Return none."""
        return {}


def reach(
    policy: Policy | str, *, episodes: int, seed: int, length: int, tasks: list[str]
) -> dict[str, Any]:
    """Return successes, goals, Wilson interval and median ms per action of each family.

    `policy` may be the name of a control. With `tasks`, each of these is a family.
    """
    rows = {}
    families = {task: [task] for task in tasks} or FAMILIES
    for family, group in families.items():
        solved, times, steps = {}, [], []
        for number, task in enumerate(group):
            count = len(range(number, episodes, len(group)))
            preset = config.resolve("env", "tabletop_short").values
            env = Tabletop(Tabletop.Config(**{**preset, "task": task}))
            chosen = baselines(env)[policy] if isinstance(policy, str) else policy
            protocol = Alone(Goals.Config(length=length, states=0))
            done = []
            for trial in protocol.trials(chosen, env, episodes=count, seed=seed):
                done.append(trial.attempts["planner"])
                print(task, len(done), done[-1].success, len(done[-1].actions), flush=True)
            solved[task] = [int(bool(each.success)) for each in done]
            times += [ms for each in done for ms in each.act_ms]
            steps += [len(each.actions) for each in done if each.success]
            env.close()
        total = sum(map(sum, solved.values()))
        rows[family] = {
            "success": total,
            "goals": episodes,
            "ci95": [round(each, 3) for each in wilson(total, episodes)],
            "tasks": {task: f"{sum(each)} of {len(each)}" for task, each in solved.items()},
            "median_actions": float(np.median(steps)) if steps else None,
            "median_act_ms": round(float(np.median(times)), 1),
        }
        print(family, json.dumps(rows[family]), flush=True)
    return rows


def written(found: Mapping[str, Any], asked: Mapping[str, Any], out: Path) -> None:
    """Write rows beside those of the file."""
    rows = json.loads(out.read_text())["rows"] if out.exists() else {}
    for name, row in found.items():
        rows[name] = {"families": row, **asked, "provenance": provenance()}
    with replacing(out) as partial:
        partial.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def main() -> None:
    """Evaluate one policy and write its row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", choices=["reach"])
    parser.add_argument("name")
    parser.add_argument("run", help="run folder, shipped checkpoint, or none for the controls")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--policy")
    parser.add_argument("--planner")
    parser.add_argument("--episodes", type=int, default=20, help="goals of each family")
    parser.add_argument("--length", type=int, default=64, help="most actions of an attempt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", choices=NAMES, default=[], help="instead of families")
    parser.add_argument("--out", type=Path, default=FILE)
    given = parser.parse_args()
    asked = {"episodes": given.episodes, "seed": given.seed, "length": given.length}
    asked["tasks"] = given.tasks
    found = {}
    if given.run == "none":
        found = {name: reach(name, **asked) for name in ("random", "noop", "oracle")}
    else:
        options = {"policy": given.policy, "planner": given.planner}
        policy = latentplan.load(given.run, **options, overrides=given.overrides)
        found[given.name] = reach(policy, **asked)
    written(found, asked, given.out)


if __name__ == "__main__":
    main()
