"""Count failures of an env under random actions.

    python benchmarks/stress.py ENV ACTIONS [KEY=VALUE ...] [--json FILE]

Actions are those of `latentplan collect` (policy `random`, or `box` if actions are not picks in an
image), in episodes of 20. With `--json FILE`, a row of the file is written every 1,000 actions; the
same command continues it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from latentplan import config, registry
from latentplan.errors import UnstablePhysics
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing

LENGTH = 20  # actions per episode
EVERY = 1000  # actions between writes
TABLE = -1e-3  # height below which a point has passed through the table, m

Row = dict[str, Any]


class Stress:
    """Random episodes of one env, with counts in `row`."""

    def __init__(self, row: Row) -> None:
        """Build the env of the row, and continue its counts."""
        preset = config.resolve("env", row["env"])
        env_class = registry.get("env", preset.base)
        settings = config.load(
            {"env": env_class.Config}, preset={"env": preset.values}, overrides=row["settings"]
        )["env"]
        self.row, self.view, self.reach = row, settings.view, settings.workspace
        self.env = env_class(settings)
        policy = "box" if self.env.data_spec.pick is None else "random"
        self.policy = registry.get("policy", policy)(self.env.data_spec)
        row["engine"], row["policy"] = settings.engine, policy

    def episode(self) -> None:
        """Run the next episode, which depends on its index alone; unstable physics ends it."""
        row, number = self.row, self.row["episodes"]
        rng = np.random.default_rng([row["seed"], number])
        row["episodes"] += 1
        try:
            observation, _ = self.env.reset(seed=int(rng.integers(2**62)))
            self.policy.reset(seed=rng)
            self._count(observation, 0.0)
            for _ in range(LENGTH):
                row["actions"] += 1
                step = self.env.step(self.policy.act(observation))
                observation = step.observation
                self._count(observation, step.reward)
        except UnstablePhysics:
            row["unstable_episodes"] += 1

    def _count(self, observation: dict[str, Any], reward: float) -> None:
        row, points = self.row, observation["keypoints"]
        row["frames"] += 1
        finite = np.isfinite(reward) and all(np.isfinite(o).all() for o in observation.values())
        row["not_finite"] += not finite
        farthest = float(np.abs(points[:, :2]).max())
        sunk = points.shape[1] > 2 and bool((points[:, 2] < TABLE).any())
        row["out_of_view"] += not (farthest <= self.view and not sunk)  # also true for NaN
        row["beyond_gripper"] += not farthest <= self.reach
        row["farthest_m"] = max(row["farthest_m"], farthest)


def stress(row: Row, *, actions: int, file: Path | None) -> None:
    """Run episodes until the row has `actions` of them."""
    made = Stress(row)
    before, start, written = row["seconds"], perf_counter(), row["actions"]
    while row["actions"] < actions:
        made.episode()
        if row["actions"] - written >= EVERY or row["actions"] >= actions:
            row["seconds"], written = round(before + perf_counter() - start, 1), row["actions"]
            if file is not None:
                save(file, row)
    made.env.close()


def rows_of(file: Path | None) -> list[Row]:
    """Return the rows of the file; none if there is no file."""
    rows: list[Row] = json.loads(file.read_text()) if file is not None and file.exists() else []
    return rows


def save(file: Path, row: Row) -> None:
    """Write the row into the file, replacing that of the same env and settings."""
    others = [r for r in rows_of(file) if not same(r, row)]
    rows = sorted([*others, row], key=lambda r: (r["env"], r["settings"]))
    with replacing(file) as partial:
        partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def same(a: Row, b: Row) -> bool:
    """Return whether two rows count the same random episodes."""
    return all(a[key] == b[key] for key in ("env", "settings", "seed"))


def main() -> None:
    """Run random actions and print the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("env")
    parser.add_argument("actions", type=int)
    parser.add_argument("settings", nargs="*", help="key=value of the env")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    row: Row = {"env": given.env, "settings": sorted(given.settings), "seed": given.seed}
    counts = ("actions", "episodes", "unstable_episodes", "frames", "not_finite", "out_of_view")
    row |= dict.fromkeys(counts, 0) | {"beyond_gripper": 0, "farthest_m": 0.0, "seconds": 0.0}
    row = next((r for r in rows_of(given.json) if same(r, row)), row) | {"made_with": provenance()}
    stress(row, actions=given.actions, file=given.json)
    print(json.dumps({key: value for key, value in row.items() if key != "made_with"}))


if __name__ == "__main__":
    main()
