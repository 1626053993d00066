"""Measure the tabletop, for docs/images/envs/tabletop.png and benchmarks/tabletop.json.

    python benchmarks/tabletop.py speed
    python benchmarks/tabletop.py success --episodes 60 [--policy expert|random] [KEY=VALUE ...]
    python benchmarks/tabletop.py page

`speed` times random steps in one process, without cameras and with both, and resets. `success`
counts, for each task, the episodes that succeed within `episode_length` actions, and the starts
that had to be drawn again. `page` draws the tasks. Figures are written to benchmarks/tabletop.json,
one row per policy and settings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from latentplan import config
from latentplan.evaluation.metrics import wilson
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.sim.tabletop.env import Tabletop
from latentplan.sim.tabletop.tasks import TASKS

FILE = Path(__file__).parent / "tabletop.json"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "envs" / "tabletop.png"
STEPS = 600  # random actions per timing
RESETS = 15
REPEATS = 5  # timings, of which the fastest is reported
SHOWN = ("open_drawer", "move_slider_right", "turn_on_light", "push_red_block_left")
SHOWN += ("push_blue_block_right", "lift_pink_block")

Row = dict[str, Any]


def env_of(settings: list[str], **values: Any) -> Tabletop:
    """Return the env with settings."""
    loaded = config.load({"env": Tabletop.Config}, preset={"env": values}, overrides=settings)
    return Tabletop(loaded["env"])


def speed(settings: list[str]) -> Row:
    """Return steps and resets per second of wall time and of CPU time."""
    row: Row = {}
    for name, cameras in (("without cameras", []), ("both cameras, 64x64", ["static", "gripper"])):
        env = env_of(settings, cameras=cameras)
        env.reset(seed=0)
        rng = np.random.default_rng(0)
        actions = rng.uniform(-1, 1, (STEPS, 7)).astype(np.float32)
        times = []
        for _ in range(REPEATS):
            env.reset(seed=0)
            wall, cpu = perf_counter(), process_time()
            for action in actions:
                env.step(action)
            times.append((perf_counter() - wall, process_time() - cpu))
        row[name] = _rates(times, STEPS)
        env.close()
        for goals in (True, False):
            env, times = env_of(settings, cameras=cameras, goals=goals), []
            for _ in range(REPEATS):
                wall, cpu = perf_counter(), process_time()
                for seed in range(RESETS):
                    env.reset(seed=seed)
                times.append((perf_counter() - wall, process_time() - cpu))
            row[f"{name}; resets {'with' if goals else 'without'} goals"] = _rates(times, RESETS)
            env.close()
    return row


def _rates(times: list[tuple[float, float]], count: int) -> Row:
    wall, cpu = (count / min(column) for column in zip(*times, strict=True))
    return {"per_second": round(wall, 1), "per_cpu_second": round(cpu, 1)}


def success(settings: list[str], *, policy: str, episodes: int) -> Row:
    """Return the success rate of each task with a 95 % interval, and its numbers of actions."""
    env, rows, total = env_of(settings, cameras=[]), {}, 0
    for task in TASKS:
        lengths, redrawn = [], 0
        for seed in range(episodes):
            observation, info = env.reset(seed=seed, options={"task": task})
            redrawn += info["redrawn"]
            rng = np.random.default_rng(seed)
            for count in range(1, env.episode_length + 1):
                random = rng.uniform(-1, 1, 7).astype(np.float32)
                action = random if policy == "random" else env.expert(observation, rng)
                observation, _, _, _, info = env.step(action)
                if info["success"]:
                    lengths.append(count)
                    break
        total += len(lengths)
        low, high = wilson(len(lengths), episodes)
        rows[task] = {
            "success": len(lengths) / episodes,
            "interval": [round(low, 4), round(high, 4)],
            "redrawn_starts": redrawn,
            "actions": {
                "median": float(np.median(lengths)) if lengths else None,
                "longest": max(lengths, default=None),
            },
        }
        print(f"{task:24s} {len(lengths)} of {episodes}", flush=True)
    env.close()
    share = total / episodes / len(TASKS)
    return {"episodes_per_task": episodes, "all_tasks": share, "tasks": rows}


def page() -> None:
    """Draw the expert in some tasks: the images of both cameras, over time from left to right."""
    env = env_of([])
    figure = Figure(figsize=(9, 1.12 * 2 * len(SHOWN)), dpi=100)
    panels = figure.subplots(2 * len(SHOWN), 8)
    for row, task in enumerate(SHOWN):
        observation, _ = env.reset(seed=8, options={"task": task})
        seen, done, rng = [observation], False, np.random.default_rng(0)
        while not done:
            step = env.step(env.expert(seen[-1], rng))
            seen.append(step.observation)
            done = step.info["success"]
        for column, at in enumerate(np.linspace(0, len(seen) - 1, 8).astype(int)):
            for line, camera in enumerate(("static", "gripper")):
                panel = panels[2 * row + line, column]
                panel.imshow(seen[at][f"rgb_{camera}"], interpolation="nearest")
                panel.axis("off")
        panels[2 * row, 0].set_title(task, loc="left", fontsize=9, color="#57606a", pad=3)
    figure.subplots_adjust(0, 0, 1, 0.985, 0.03, 0.12)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with replacing(PICTURE) as partial:
        figure.savefig(partial, transparent=True)
    env.close()


def main() -> None:
    """Run a measurement, or draw the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("speed", "success", "page"))
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--policy", choices=("expert", "random"), default="expert")
    given = parser.parse_intermixed_args()
    if given.what == "page":
        page()
        return
    if given.what == "speed":
        name, row = "speed", speed(given.settings)
    else:
        name = given.policy
        row = success(given.settings, policy=given.policy, episodes=given.episodes)
    rows = json.loads(FILE.read_text()) if FILE.is_file() else {}
    key = " ".join([name, *given.settings])
    rows[key] = {**row, "provenance": provenance()}
    with replacing(FILE) as partial:
        partial.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps({k: v for k, v in row.items() if k != "tasks"}, indent=1))


if __name__ == "__main__":
    main()
