"""Goals of two parts on the tabletop, over a graph of stored play: docs/results/tabletop-goals.md.

    python benchmarks/tabletop_far.py play runs/play.zarr --desks 3 --episodes 120
    python benchmarks/tabletop_far.py reach NAME RUN [KEY=VALUE ...] --desks 3 --goals 24

A desk is one layout of the blocks. `play` stores episodes in which the expert, with noise, moves
two random parts of a desk (drawer, door, switch) one after the other. A goal of `reach` is the
observation after the expert moved two parts of a desk; an attempt succeeds if both are moved at
its end. Starts and goals of `reach` are not in the store. Roadmaps are set by overrides, such as
generative.roadmap.store=runs/play.zarr. The row NAME is written to benchmarks/tabletop_far.json.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from itertools import permutations
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import latentplan
from latentplan import config
from latentplan.data.store import ZarrStore
from latentplan.errors import PlanningError
from latentplan.evaluation.baselines import random_policy, visible
from latentplan.evaluation.metrics import wilson
from latentplan.evaluation.provenance import provenance
from latentplan.exploration.noise import ActionNoise
from latentplan.files import replacing
from latentplan.sim.tabletop.env import NAMES, Tabletop
from latentplan.sim.tabletop.tasks import BULB, DRAWER, NEAR_END, SLIDER, SWITCH, TASKS, Task
from latentplan.sim.tabletop.world import RANGES
from latentplan.types import Array, Episode, Goal, Observation

FILE = Path(__file__).parent / "tabletop_far.json"
PARTS = {"drawer": DRAWER, "slider": SLIDER, "switch": SWITCH}
PLAY, TRIAL = 0, 1  # of the seeds
NOISE = np.array([0.15] * 3 + [0.15 * 0.15] * 3 + [0.0])  # std of the play's actions
LENGTH = 64  # most actions of an attempt, and of one part of the play


def made() -> Tabletop:
    """Return the env, which does not stop at a success."""
    return Tabletop(
        Tabletop.Config(**config.resolve("env", "tabletop_short").values | {"stop": False})
    )


def begin(env: Tabletop, desk: int, rng: np.random.Generator) -> Observation:
    """Start in a random state of the parts of a desk."""
    task = TASKS["open_drawer"]
    scene = env.reset(seed=desk, options={"task": task.name})[0]["scene_obs"].copy()
    for name, place in PARTS.items():
        far = rng.random() < 0.5
        end = rng.uniform(0, min(NEAR_END, RANGES[name] / 5))
        scene[place] = RANGES[name] - end if far else end
    scene[BULB] = float(scene[SWITCH] > RANGES["switch"] / 2)
    task = next_task("drawer", scene)
    scene[task.place] += task.way * task.further  # the reset undoes it
    goal = {"scene_obs": scene, "task": np.array([NAMES.index(task.name)])}
    return env.reset(seed=int(rng.integers(2**31)), options={"goal": goal})[0]


def next_task(part: str, scene: Array) -> Task:
    """Return the task that moves a part to its other end."""
    place, middle = PARTS[part], RANGES[part] / 2
    way = 1 if scene[place] < middle else -1
    return next(each for each in TASKS.values() if each.place == place and each.way == way)


def wanted(task: Task, scene: Array) -> Observation:
    """Return the privileged goal of a task in a scene."""
    after = scene.copy()
    after[task.place] += task.way * task.further
    return {"scene_obs": after, "task": np.array([NAMES.index(task.name)])}


def moved(env: Tabletop, seen: list[Observation], task: Task, noise: Any = None) -> list[Array]:
    """Let the expert move a part; append the observations, and return the actions."""
    goal, actions = wanted(task, seen[-1]["scene_obs"]), []
    while task.missing(seen[-1]["scene_obs"], goal["scene_obs"]) > 0 and len(actions) < LENGTH:
        action = env.oracle(seen[-1], goal)
        actions.append(action if noise is None else noise(action))
        seen.append(env.step(actions[-1])[0])
    return actions


def play(out: Path, *, desks: int, episodes: int) -> None:
    """Store episodes of two parts each."""
    env = made()
    noise = ActionNoise(env.data_spec, NOISE)
    with ZarrStore.create(out, env.data_spec) as store:
        for number in range(episodes):
            rng = np.random.default_rng((PLAY, number))
            seen, actions = [begin(env, number % desks, rng)], []
            for part in rng.permutation(list(PARTS))[:2]:
                task = next_task(part, seen[-1]["scene_obs"])
                actions += moved(env, seen, task, partial(noise.add, rng=rng))
            stacked = {key: np.stack([each[key] for each in seen]) for key in seen[0]}
            rewards = np.zeros(len(actions), np.float32)
            store.append(Episode(stacked, np.stack(actions), rewards, seed=number))
        print(f"{out}: {len(store)} episodes, {int(store.ends[-1])} observations")


def attempt(policy: Any, env: Tabletop, number: int, desks: int) -> dict[str, Any]:
    """Return what one attempt moved, its actions and its ms per action."""
    pairs = list(permutations(PARTS, 2))

    def start() -> Observation:
        return begin(env, number % desks, np.random.default_rng((TRIAL, number)))

    seen = [start()]
    tasks = []
    for part in pairs[number % len(pairs)]:
        tasks.append(next_task(part, seen[-1]["scene_obs"]))
        moved(env, seen, tasks[-1])
    now, spec = start(), env.data_spec
    first, done, times = now["scene_obs"].copy(), [False, False], []
    policy.reset(Goal(observation=visible(policy, seen[-1], spec)), seed=number)
    for step in range(LENGTH):
        began = perf_counter()
        try:
            action = policy.act(visible(policy, now, spec))
        except PlanningError as e:
            return {"parts": sum(done), "actions": step, "ms": 0.0, "failed": str(e)}
        times.append((perf_counter() - began) * 1e3)
        now = env.step(action)[0]
        done = [task.done(now["scene_obs"], first) for task in tasks]
        if all(done):
            break
    return {"parts": sum(done), "actions": step + 1, "ms": float(np.median(times))}


def reach(policy: Any, *, desks: int, goals: int) -> dict[str, Any]:
    """Return how many goals were reached, and the parts that were moved in all."""
    env, found = made(), []
    for number in range(goals):
        found.append(attempt(policy or random_policy(env.data_spec), env, number, desks))
        print(number, found[-1], flush=True)
    both = sum(each["parts"] == 2 for each in found)
    return {
        "success": both,
        "goals": goals,
        "ci95": [round(each, 3) for each in wilson(both, goals)],
        "one_part": sum(each["parts"] == 1 for each in found),
        "median_act_ms": round(float(np.median([each["ms"] for each in found])), 1),
        "without_path": sum("failed" in each for each in found),
    }


def main() -> None:
    """Collect play, or evaluate one policy and write its row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    playing = modes.add_parser("play")
    playing.add_argument("out", type=Path)
    playing.add_argument("--episodes", type=int, default=120)
    reaching = modes.add_parser("reach")
    reaching.add_argument("name")
    reaching.add_argument("run", help="run folder, or none for random actions")
    reaching.add_argument("overrides", nargs="*")
    reaching.add_argument("--policy")
    reaching.add_argument("--planner")
    reaching.add_argument("--goals", type=int, default=24)
    reaching.add_argument("--out", type=Path, default=FILE)
    for each in (playing, reaching):
        each.add_argument("--desks", type=int, default=3)
    given = parser.parse_args()
    if given.mode == "play":
        play(given.out, desks=given.desks, episodes=given.episodes)
        return
    policy = None
    if given.run != "none":
        options = {"policy": given.policy, "planner": given.planner}
        policy = latentplan.load(given.run, **options, overrides=given.overrides)
    row = reach(policy, desks=given.desks, goals=given.goals)
    print(json.dumps(row))
    rows = json.loads(given.out.read_text())["rows"] if given.out.exists() else {}
    rows[given.name] = {**row, "desks": given.desks, "provenance": provenance()}
    with replacing(given.out) as unfinished:
        unfinished.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
