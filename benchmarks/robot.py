"""What a planner reaches through a simulated arm, beside the same planner in the env.

    python benchmarks/robot.py [EPISODES] [--reach 50] [--json benchmarks/robot.json]

Rope: `rope-cfm` plans 20 picks towards a goal picture, once where the env's own gripper does them
and once where a Panda does, through tracking, filter and supervisor; starts, goals and the
planner's seeds are those of `latentplan plan --seed 0`. Reach: points for a Panda and a UR5e.
Written after every episode, so that it may be stopped at any time; it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentplan.api import robot_choice
from latentplan.api.connection import connection
from latentplan.evaluation.goals import EVALUATION
from latentplan.evaluation.metrics import bootstrap, wilson
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing

SUCCESS = 0.03  # m, of the rope's task `goal`


def choose(run: str | None, arm: str) -> Any:
    """Return a task of `latentplan robot` on a simulated arm."""
    return robot_choice.choose(
        connection("sim", robot=arm),
        run=run,
        steps=None,
        goal=None,
        planner="cem",
        objective="goal",
        seed=0,
        device="cpu",
        overrides=[] if run else ["backend.fps=10"],
    )


def in_env(task: Any, index: int) -> dict[str, Any]:
    """Return what the planner reaches where the env's gripper does the picks."""
    env, agent = task.scene.env, task.agent
    key = np.random.SeedSequence(0, spawn_key=(EVALUATION, index, 0))
    start, end, plan = (int(s) >> 1 for s in key.generate_state(3, np.uint64))
    goal = env.goal(seed=end)
    observation, _ = env.reset(seed=start, options={"goal": goal})
    agent.reset(seed=plan)
    agent.goal({"rgb": goal["rgb"]})
    begin = env.distance(observation, goal)
    for _ in range(robot_choice.PICKS):
        observation = env.step(agent.act({"rgb": observation["rgb"]})).observation
    return {"start": begin, "final": env.distance(observation, goal)}


def rope(episodes: int, rows: list[dict[str, Any]], save: Any) -> None:
    """Do the episodes that are missing, in the env and on the arm."""
    task = choose("rope-cfm", "panda")
    with task.connected() as robot:
        for index in range(len(rows), episodes):
            direct = in_env(task, index)
            began, clock = time.perf_counter(), robot.driver.now()
            record = task.episode(robot, index)
            rows.append(
                {
                    "env": direct,
                    "arm": record.to_json(),
                    "seconds": round(time.perf_counter() - began, 2),
                    "simulated_s": round(robot.driver.now() - clock, 2),
                }
            )
            save()
            print(index, direct, record.start, record.final, record.interventions, flush=True)


def reach(arm: str, episodes: int, rows: list[dict[str, Any]], save: Any) -> None:
    """Do all episodes again unless they are there; points follow from one stream."""
    if len(rows) >= episodes:
        return
    rows.clear()
    task = choose(None, arm)
    with task.connected() as robot:
        for index in range(episodes):
            rows.append(task.episode(robot, index).to_json())
        latency = task.reach.latency
        rows[-1]["act_ms"] = {"p50": latency.p50_ms, "p99": latency.p99_ms}
    save()


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of what was done."""
    found: dict[str, Any] = {}
    for name in ("panda", "ur5e"):
        done = rows[f"reach_{name}"]
        if done:
            found[f"reach_{name}"] = {
                "episodes": len(done),
                "success": float(np.mean([r["success"] for r in done])),
                "success_ci95": list(wilson(sum(r["success"] for r in done), len(done))),
                "final_m": float(np.mean([r["final"] for r in done])),
                "worst_m": float(max(r["final"] for r in done)),
                "actions": float(np.mean([r["actions"] for r in done])),
                "interventions": sum(sum(r["interventions"].values()) for r in done),
                "faults": sum(bool(r["fault"]) for r in done),
            }
    done = rows["rope"]
    for who in ("env", "arm") if done else ():
        start = np.array([r[who]["start"] for r in done])
        final = np.array([r[who]["final"] for r in done])
        found[f"rope_{who}"] = {
            "episodes": len(done),
            "start_m": float(start.mean()),
            "final_m": float(final.mean()),
            "final_ci95": list(bootstrap(lambda x: x.mean(-1), final, seed=0)),
            "left": float(final.mean() / start.mean()),  # of the distance at the start
            "success": float((final <= SUCCESS).mean()),
            "success_ci95": list(wilson(int((final <= SUCCESS).sum()), len(done))),
        }
    if done:
        found["rope_arm"] |= {
            "picks": sum(r["arm"]["actions"] for r in done),
            "refused": sum(r["arm"]["refused"] for r in done),
            "interventions": sum(sum(r["arm"]["interventions"].values()) for r in done),
            "faults": sum(bool(r["arm"]["fault"]) for r in done),
            "worst_tracking_rad": max(r["arm"]["error"] for r in done),
            "simulated_s_a_pick": float(
                sum(r["simulated_s"] for r in done) / sum(r["arm"]["actions"] for r in done)
            ),
        }
    return found


def main() -> None:
    """Measure what is missing; write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("episodes", nargs="?", type=int, default=20)
    parser.add_argument("--reach", type=int, default=50)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/robot.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {"reach_panda": [], "reach_ur5e": [], "rope": []}
    if given.json.exists():
        rows |= json.loads(given.json.read_text())["rows"]

    def save() -> None:
        values = {"summary": summary(rows), "rows": rows, **provenance()}
        with replacing(given.json) as partial:
            partial.write_text(json.dumps(values, indent=1) + "\n")

    for name in ("panda", "ur5e"):
        reach(name, given.reach, rows[f"reach_{name}"], save)
    rope(given.episodes, rows["rope"], save)
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
