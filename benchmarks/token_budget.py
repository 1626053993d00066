"""Plan with few tokens in early rounds: distance, tokens and time, for docs/results/tokenizers.md.

    python benchmarks/token_budget.py rollout RUN --data eval.zarr
    python benchmarks/token_budget.py reach RUN --goals 24

RUN is a model `elastic`. `rollout` compares predicted tokens with those of held-out clips, and
times rollouts. `reach` plans with CEM and each of `ARMS` on the desk of `tabletop_short`; a goal is
the image after the gripper moved level for `AWAY` actions in a random direction, 0.2 m. Figures are
the share of that distance that is left after `LENGTH` actions, and the goals that are nearer than
`NEAR`. Each is written to benchmarks/token_budget.json when it is done; `--arms` chooses some.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap

import latentplan
from latentplan import config
from latentplan.data.store import ZarrStore
from latentplan.data.windows import Windows
from latentplan.evaluation.metrics import wilson
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.sim.tabletop.env import Tabletop
from latentplan.training import checkpoint
from latentplan.types import Context, Goal

FILE = Path(__file__).parent / "token_budget.json"
CANDIDATES, ELITES, ROUNDS, HORIZON, CHUNK = 64, 8, 3, 3, 2
ARMS: dict[str, tuple[tuple[int, ...], int]] = {  # tokens in each round, candidates
    "all": ((), CANDIDATES),
    "schedule": ((16, 16, 48), CANDIDATES),
    "16, 32": ((16, 32), CANDIDATES),
    "32": ((32,), CANDIDATES),
    "16": ((16,), CANDIDATES),
    "8": ((8,), CANDIDATES),
    "all, fewer candidates": ((), 34),
}
LENGTH, NEAR = 8, 0.05  # actions, m
AWAY = 4  # actions to a goal


def tokens_a_frame(budget: tuple[int, ...], candidates: int, most: int) -> tuple[float, int]:
    """Return the mean number of tokens of an imagined frame, and the frames of a solve of CEM."""
    given = [budget[min(i, len(budget) - 1)] if budget else most for i in range(ROUNDS)]
    rows = list(zip(given, [candidates] + [candidates - ELITES] * (ROUNDS - 1), strict=True))
    pairs = zip(given, given[1:], strict=False)
    rows += [(after, ELITES) for before, after in pairs if before != after]  # scored again
    rows.append((given[-1], 1))  # the mean of the last elites
    count = sum(n for _, n in rows)
    return sum(k * n for k, n in rows) / count, count * HORIZON


def interval(values: list[float]) -> list[float]:
    """Return the 95 % interval of a mean, by the bootstrap."""
    found = bootstrap((np.array(values),), np.mean, rng=0, method="percentile")
    return [round(float(each), 3) for each in found.confidence_interval]


def compare(rows: dict[str, Any]) -> None:
    """Add to each arm its difference to `all` on the same goals, with the interval."""
    base = rows.get("all", {})
    for name, row in rows.items():
        if name in ("rollout", "all") or any(row[k] != base.get(k) for k in ("goals", "seed")):
            continue
        pairs = zip(row["each_left"], base["each_left"], strict=True)
        more = [arm - whole for arm, whole in pairs]
        row["left_more_than_all"] = [round(float(np.mean(more)), 3), *interval(more)]


def goals(env: Tabletop, count: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """Yield the first observation of a desk, at which the env is left, and a goal."""
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        first, _ = env.reset(seed=int(rng.integers(2**31)))
        state = env.snapshot()
        angle = rng.uniform(0, 2 * np.pi)
        action = np.zeros(7)
        action[:2] = np.cos(angle), np.sin(angle)
        for _ in range(AWAY):
            goal = env.step(action).observation
        env.restore(state)
        yield first, goal


def reach(run: str, arm: str, *, count: int, seed: int) -> dict[str, Any]:
    """Return what is left of the distance with one arm, and the CPU time of a solve."""
    budget, candidates = ARMS[arm]
    settings = [
        *(f"planner.candidates={candidates}", f"planner.elites={ELITES}"),
        *(f"planner.iterations={ROUNDS}", f"planner.horizon={HORIZON}"),
        *(f"planner.budget={list(budget)}", f"mpc.chunk={CHUNK}", "objective.reduce=mean"),
    ]
    policy: Any = latentplan.load(run, planner="cem", overrides=settings)
    preset = config.resolve("env", "tabletop_short").values
    env = Tabletop(Tabletop.Config(**{**preset, "goals": False, "stop": False}))
    left, near, solves = [], 0, []
    for number, (seen, goal) in enumerate(goals(env, count, seed)):
        policy.reset(Goal.of(goal), seed=number)
        wanted = goal["robot_obs"][:3]
        start = np.linalg.norm(seen["robot_obs"][:3] - wanted)
        for step in range(LENGTH):
            before = time.process_time()
            action = policy.act(seen)
            if step % CHUNK == 0:
                solves.append(1e3 * (time.process_time() - before))
            seen = env.step(action).observation
        end = np.linalg.norm(seen["robot_obs"][:3] - wanted)
        left.append(float(end / start))
        near += int(end < NEAR)
        print(arm, number + 1, f"{np.mean(left):.3f} left, {near} near", flush=True)
    env.close()
    tokens, frames = tokens_a_frame(budget, candidates, policy.model.tokens)
    return {
        "left": round(float(np.mean(left)), 3),
        "left_ci95": interval(left),
        "near": near,
        "goals": count,
        "near_ci95": [round(each, 3) for each in wilson(near, count)],
        "each_left": [round(each, 3) for each in left],
        "tokens_a_frame": round(tokens, 1),
        "frames_a_solve": frames,
        "solve_cpu_ms": round(float(np.median(solves))),
        "solve_cpu_ms_p10_p90": [round(each) for each in np.percentile(solves, (10, 90))],
        "settings": settings,
        "seed": seed,
    }


@torch.no_grad()
def rollout(run: str, data: Path, *, count: int) -> dict[str, Any]:
    """Return the error of rollouts as a share of the change, and their time, by tokens."""
    model: Any = checkpoint.load(checkpoint.find(run)).model.eval()
    store = ZarrStore.open(data)
    seen = Windows(store, keys=tuple(model.spec.observation), length=5, batch=count)[0]
    z = model.encode(seen.observations)
    context = Context(z[:, :1], seen.actions[:, :0])
    found = {}
    for tokens in (8, 16, 32, 64):
        prepared = model.prepare_prefix(context, tokens)
        ahead = model.rollout(prepared, seen.actions[:, None])[:, 0]
        error = (ahead - z[:, 1:])[:, -1].unflatten(-1, (model.tokens, -1))[:, :tokens]
        change = (z[:, :1] - z[:, 1:])[:, -1].unflatten(-1, (model.tokens, -1))[:, :tokens]
        one = model.prepare_prefix(Context(z[:1, :1], seen.actions[:1, :0]), tokens)
        tried = seen.actions[:1, None].expand(-1, 64, -1, -1)
        times = []
        for _ in range(6):
            before = time.process_time()
            model.rollout(one, tried)
            times.append(1e3 * (time.process_time() - before) / tried[..., 0].numel())
        found[tokens] = {
            "share_of_change": round(float(error.square().mean() / change.square().mean()), 3),
            "cpu_ms_a_frame": round(float(np.median(times[1:])), 3),
        }
        print(tokens, found[tokens], flush=True)
    return {"steps": 4, "clips": count, "tokens": found}


def main() -> None:
    """Measure and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", choices=["reach", "rollout"])
    parser.add_argument("run")
    parser.add_argument("--data", type=Path, help="store of held-out clips")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--goals", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=FILE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.arms if given.mode == "reach" else ["rollout"]
    for name in names:
        if name == "rollout":
            row = rollout(given.run, given.data, count=given.clips)
        else:
            row = reach(given.run, name, count=given.goals, seed=given.seed)
        rows = json.loads(given.json.read_text()) if given.json.exists() else {}
        rows[name] = {**row, "provenance": provenance()}
        compare(rows)
        with replacing(given.json) as partial:
            partial.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
