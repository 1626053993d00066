"""Plan picks of the rope with the simulator as dynamics and tokens as costs, coarse to fine.

    python benchmarks/selftok_plan.py --run runs/selftok --grid runs/vqvae

A goal is the image after one random pick. The cross-entropy method searches a pick: every candidate
is simulated, its image encoded, and its cost is the distance of tokens to those of the goal. A
schedule gives the number of tokens in each round. All costs have the same first candidates, starts
and goals. The figure is the keypoints' distance to the goal after the best pick of the last round.
Writes section `plan` of benchmarks/selftok.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from elastictok import KEY, interval
from selftok import keypoint_distance, load, write
from torch import Tensor

from latentplan.evaluation.provenance import provenance
from latentplan.exploration.picks import RandomPick
from latentplan.sim.deformable.rope import Rope
from latentplan.types import Array

TRIALS, FIRST_SEED = 20, 90_000  # starts of seeds that no store has
ROUNDS, SAMPLES, ELITES, SMOOTH = 3, 40, 6, 0.1  # of the search; SMOOTH: least std, of the bounds
MOVED = 0.01  # metres: a goal that is nearer is drawn again


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--grid", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    costs = costs_of(load(chosen.run), load(chosen.grid))
    env, left = Rope(Rope.Config(image=64)), {name: [] for name in ("start", *costs)}
    for trial in range(TRIALS):
        start, goal = task(env, FIRST_SEED + trial)
        left["start"].append(away(start[1], goal))
        for name, cost in costs.items():
            left[name].append(search(env, start, goal, cost, seed=trial))
    found = {name: np.array(each) for name, each in left.items()}
    write("plan", {
        "trials": TRIALS,
        "distance_mm": {name: of(x) for name, x in found.items()},
        "less_than_all_tokens_mm": {
            name: of(found["selftok, all tokens"] - x) for name, x in found.items()
        },
        "provenance": provenance(),
    })  # fmt: skip


def costs_of(selftok: Any, grid: Any) -> dict[str, Callable[[Any, Any, int], Array]]:
    """Return the costs: (images (n, h, w, 3), goal, round) -> (n,)."""
    most = selftok.config.tokens
    schedules = {
        "selftok, 4, 16, all": [(0, 4), (0, 16), (0, most)],
        "selftok, last 4, last 16, all": [(most - 4, most), (most - 16, most), (0, most)],
        "selftok, all tokens": [(0, most)] * ROUNDS,
    }
    found: dict[str, Any] = {}
    for name, parts in schedules.items():
        found[name] = lambda seen, goal, at, parts=parts: tokens(selftok, seen, goal, parts[at])
    found["vqvae"] = lambda seen, goal, at: tokens(grid, seen, goal, (0, grid.tokens))
    found["pixels"] = lambda seen, goal, at: norm(seen[KEY].float() - goal[KEY].float())
    found["keypoints (bound)"] = lambda seen, goal, at: keypoint_distance(
        seen["keypoints"], goal["keypoints"]
    ).numpy()
    return found


@torch.no_grad()
def tokens(tokenizer: Any, seen: Any, goal: Any, part: tuple[int, int]) -> Array:
    """Return distances (n,) to the goal of the tokens from part[0] to part[1]."""
    every = torch.cat([goal[KEY], seen[KEY]])[:, None]
    vectors = tokenizer.quantizer.vectors(tokenizer.encode({KEY: every}).ids[:, 0])
    vectors = vectors[:, part[0] : part[1]]
    return norm(vectors[1:] - vectors[:1])


def norm(x: Tensor) -> Array:
    """Return the lengths (n,) of differences (n, ...)."""
    found: Array = x.flatten(1).norm(dim=1).numpy()
    return found


def task(env: Rope, seed: int) -> tuple[tuple[Any, Any], Any]:
    """Return a start (snapshot and observation), and the observation of a goal."""
    observation = env.reset(seed=seed)[0]
    start = env.snapshot()
    policy = RandomPick(env.data_spec)
    policy.reset(seed=seed)
    while True:
        goal = env.step(policy.act(observation))[0]
        env.restore(start)
        if away(observation, goal) > MOVED:
            return (start, observation), goal


def search(
    env: Rope, start: tuple[Any, Any], goal: Any, cost: Callable[..., Array], *, seed: int
) -> float:
    """Return the keypoints' distance to the goal after the best pick that a search finds."""
    rng, policy = np.random.default_rng(seed), RandomPick(env.data_spec)
    policy.reset(seed=seed + 1_000_000)
    low, high = (np.asarray(x, np.float32) for x in (policy.low, policy.high))
    actions = np.stack([policy.act(start[1]) for _ in range(SAMPLES)])
    wanted = {key: torch.from_numpy(np.asarray(goal[key]))[None] for key in (KEY, "keypoints")}
    for number in range(ROUNDS):
        results = []
        for action in actions:
            env.restore(start[0])
            results.append(env.step(action)[0])
        seen = {
            key: torch.from_numpy(np.stack([x[key] for x in results])) for key in wanted
        }
        order = np.argsort(cost(seen, wanted, number), kind="stable")
        best, elites = results[order[0]], actions[order[:ELITES]]
        std = np.maximum(elites.std(0), SMOOTH * (high - low) / 2 / 2**number)
        drawn = rng.normal(elites.mean(0), std, (SAMPLES - ELITES, len(low)))
        actions = np.concatenate([elites, np.clip(drawn, low, high).astype(np.float32)])
    return away(best, goal)


def away(observation: Any, goal: Any) -> float:
    """Return the keypoints' distance in metres."""
    a, b = (torch.from_numpy(np.asarray(x["keypoints"])).double() for x in (observation, goal))
    return float(keypoint_distance(a, b))


def of(x: Array) -> dict[str, Any]:
    """Return the mean over trials, in mm, and its interval."""
    return interval(lambda rows: float(1000 * x[rows].mean()), len(x))


if __name__ == "__main__":
    main()
