"""Measure robosuite's tasks: success of the experts, speed, and exact images.

    python benchmarks/robosuite_tasks.py success Lift --episodes 50 [KEY=VALUE ...]
    python benchmarks/robosuite_tasks.py speed Lift
    python benchmarks/robosuite_tasks.py images Lift

`success` counts episodes that end with robosuite's success. `speed` times steps, images and
snapshots, and compares them with robosuite's own env. `images` counts images that differ after 50
resets and beside other envs. Each replaces its row of robosuite.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from latentplan import config, registry
from latentplan.evaluation.metrics import wilson
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.sim.robosuite.state import seeded

OUT = Path(__file__).parent / "robosuite.json"
Row = dict[str, Any]


def env_of(task: str, *settings: str) -> Any:
    """Return the env of a task, with settings."""
    env_class = registry.get("env", f"robosuite/{task}")
    return env_class(config.load({"env": env_class.Config}, overrides=settings)["env"])


def success(task: str, settings: tuple[str, ...], episodes: int) -> Row:
    """Return the success rate of the expert, and its numbers of actions."""
    env = env_of(task, "cameras=[]", *settings)
    actions, failed = [], []
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        count, ended = 0, False
        while not ended and count < env.episode_length:
            step = env.step(env.expert(observation, rng))
            observation, ended, count = step.observation, step.terminated, count + 1
        if step.info["success"]:
            actions.append(count)
        else:
            failed.append(seed)
    env.close()
    return {
        "episodes": episodes,
        "success": len(actions),
        "interval_95": [round(bound, 3) for bound in wilson(len(actions), episodes)],
        "failed_seeds": failed,
        "actions_median": median(actions) if actions else None,
        "actions_max": max(actions, default=None),
    }


def speed(task: str, settings: tuple[str, ...], episodes: int) -> Row:
    """Return rates, each the median of `episodes` interleaved measurements."""
    blind, seeing = env_of(task, "cameras=[]", *settings), env_of(task, *settings)
    theirs = _robosuite(task, use_camera_obs=False)
    for env in (blind, seeing):
        env.reset(seed=0)
    with seeded(0):
        theirs.reset()
    action = np.zeros(blind.data_spec.action.size)
    state = blind.snapshot()
    cases: dict[str, tuple[int, Callable[[], Any]]] = {
        "steps_per_s": (50, lambda: blind.step(action)),
        "steps_per_s_with_a_64_camera": (20, lambda: seeing.step(action)),
        "images_64_per_s": (20, seeing.render),
        "snapshots_per_s": (50, blind.snapshot),
        "restores_per_s": (50, lambda: blind.restore(state)),
        "robosuite_steps_per_s": (50, lambda: theirs.step(action)),
    }
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _, run in cases.values():
        run()  # compiled by numba, uploaded to OpenGL
    for _ in range(episodes):
        for name, (count, run) in cases.items():
            begin = perf_counter()
            for _ in range(count):
                run()
            rates[name].append(count / (perf_counter() - begin))
    return {"turns": episodes} | {name: round(median(found), 1) for name, found in rates.items()}


def images(task: str, settings: tuple[str, ...], episodes: int) -> Row:
    """Return the number of images that differ from the first image of the same start (expected: 0).

    In between, the env is reset to other starts, and other envs, a rope's among them, are created
    and freed.
    """
    env, rope = env_of(task, *settings), registry.get("env", "rope")()
    want, rope_want = env.reset(seed=0)[0]["rgb"], rope.reset(seed=0)[0]["rgb"].copy()
    wrong = 0
    for seed in range(episodes):
        env.reset(seed=seed + 1)
        if seed % 10 == 0:
            other = env_of(task, *settings)
            wrong += not np.array_equal(other.reset(seed=0)[0]["rgb"], want)
            if seed % 20:
                other.close()
            del other
        wrong += not np.array_equal(rope.reset(seed=0)[0]["rgb"], rope_want)
        wrong += not np.array_equal(env.reset(seed=0)[0]["rgb"], want)
    return {"resets": 2 * episodes, "differing_images": wrong}


def _robosuite(task: str, **settings: Any) -> Any:
    import robosuite

    return robosuite.make(
        task,
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=False,
        hard_reset=False,
        renderer="mujoco",
        ignore_done=True,
        **settings,
    )


MEASURES = {"success": success, "speed": speed, "images": images}


def main() -> None:
    """Run a measurement and write its row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("task")
    parser.add_argument("settings", nargs="*", help="of the env, as key=value")
    parser.add_argument("--episodes", type=int, default=50, help="episodes, resets or repeats")
    parser.add_argument("--json", type=Path, default=OUT)
    typed = parser.parse_args()
    settings = tuple(sorted(typed.settings))
    row: Row = {"measure": typed.measure, "task": typed.task, "settings": list(settings)}
    load = os.getloadavg()[0]
    found = MEASURES[typed.measure](typed.task, settings, typed.episodes)
    made_with = {**provenance(), "load_average_before": load}
    rows: list[Row] = json.loads(typed.json.read_text()) if typed.json.exists() else []
    rows = [r for r in rows if any(r[key] != row[key] for key in row)]
    rows.append(row | found | {"made_with": made_with})
    rows.sort(key=lambda r: (r["measure"], r["task"], r["settings"]))
    with replacing(typed.json) as partial:
        partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(row | found))


if __name__ == "__main__":
    main()
