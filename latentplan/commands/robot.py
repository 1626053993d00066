"""`latentplan robot`: a planner drives an arm, or a node serves one; simulated or real.

A node runs where ROS is, so torch is imported for planning alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentplan import config
from latentplan.commands import connect, results
from latentplan.errors import ConfigError, RobotError, check_range, unknown
from latentplan.files import replacing

if TYPE_CHECKING:
    from latentplan.commands.robot_episodes import Record, Task

TASKS = ("reach",)


def run(
    *,
    backend: str | None = None,
    robot: str = "panda",
    run: str | None = None,
    task: str | None = None,
    episodes: int = 1,
    steps: int | None = None,
    goal: str | None = None,
    goal_text: str = "",
    address: str | None = None,
    python: str | None = None,
    planner: str | None = None,
    objective: str = "goal",
    seed: int = 0,
    out: str | None = None,
    device: str = "cpu",
    reset: bool = False,
    overrides: Sequence[str] = (),
) -> list[Record]:
    """Drive an arm for some episodes and return them, or serve it until a signal.

    Who plans is a trained `run` or a `task` that needs none. With `address` alone the planner
    connects to a node there; with `backend` and `address` and nobody who plans, this is the node;
    else both: a simulated arm in this process, any other through a node that is started, by the
    interpreter `python`. Sections of `overrides`: backend, safety, supervisor where the arm is
    driven from here; planner, objective, mpc, picking, tracking, reach where it is planned for.
    The planner is by default the model's own; `goal_text` names a task to a model that proposes.
    Raises RobotError, with the arm at rest and metrics.json written, where it trips.
    """
    check_range("--episodes", episodes, 1)
    check_range("--seed", seed, 0)
    if steps is not None:
        check_range("--steps", steps, 1)
    way = connect.way(
        backend=backend, robot=robot, address=address, python=python, reset=reset
    )
    if run is None and task is None and way.address is not None:
        if backend is None:
            raise ConfigError("--backend: none given; a node needs one to reach its arm by")
        serve(way, overrides)
        return []
    check_planner(run, task)

    from latentplan.commands import robot_episodes

    chosen: Task = robot_episodes.choose(
        way,
        run=run,
        steps=steps,
        goal=goal,
        goal_text=goal_text,
        planner=planner,
        objective=objective,
        seed=seed,
        device=device,
        overrides=overrides,
    )
    folder: Path | None = None
    records: list[Record] = []
    try:
        with chosen.connected() as arm:
            folder = results.folder(f"robot-{Path(run or task or '').resolve().name}", out)
            for index in range(episodes):
                records.append(chosen.episode(arm, index))
                print(_line(index, records[-1]), flush=True)
                if records[-1].trip:
                    raise RobotError(records[-1].trip)
    finally:  # with the arm at rest, whatever ended it
        if folder is not None:
            _write(folder, records, chosen, made_with={"robot": robot, "seed": seed})
    _summarise(records, folder)
    return records


def check_planner(run: str | None, task: str | None) -> None:
    """Raise a LatentplanError unless one of a run and a known task plans."""
    if run is None and task is None:
        raise ConfigError(
            "--run: nobody plans; give --run RUN or --task reach, or to latentplan robot an "
            "--address HOST:PORT to serve the arm at"
        )
    if run is not None and task is not None:
        raise ConfigError("--task: found together with --run; one of them plans")
    if task is not None and task not in TASKS:
        raise unknown("task", task, TASKS)


def serve(way: connect.Way, overrides: Sequence[str]) -> None:
    """Be the node of an arm until SIGTERM or SIGINT; the arm is at rest then."""
    from latentplan.real_robot.loop.node import Node
    from latentplan.real_robot.loop.node_process import announcement

    assert way.backend is not None and way.address is not None
    backend = way.backend
    settings = config.load(
        connect.sections(backend),
        preset={"backend": connect.real_time(backend)},
        overrides=overrides,
    )
    driver, supervisor = connect.build(replace(way, settings=settings))
    node = Node(driver, supervisor, address=way.address, period=way.period)
    node.run(lambda: print(announcement(way.arm.name, backend, node.address), flush=True))
    state, reason = supervisor.state, supervisor.reason
    print(f"node: left {way.arm.name} {state}" + (f" ({reason})" if reason else ""), flush=True)


def _line(index: int, record: Record) -> str:
    """Return what an episode came to, in one line."""
    parts = [f"episode {index + 1}:"]
    if record.start is not None and record.final is not None:
        parts.append(f"start {100 * record.start:.1f} cm, final {100 * record.final:.1f} cm,")
    parts.append(f"{record.actions} actions,")
    if record.refused:
        parts.append(f"{record.refused} refused,")
    interventions = sum(record.interventions.values())
    kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(record.interventions.items()))
    parts.append(f"interventions {interventions}" + (f" ({kinds})," if kinds else ","))
    parts.append(f"trips {int(bool(record.trip))}")
    if record.success is not None:
        parts.append(f"{'success' if record.success else 'no success'}")
    return " ".join(parts)


def _summarise(records: Sequence[Record], folder: Path) -> None:
    judged = [record.success for record in records if record.success is not None]
    if len(judged) > 1:
        print(f"success {sum(judged)} of {len(judged)}")
    print(f"results: {folder / 'metrics.json'}")


def _write(
    folder: Path, records: Sequence[Record], task: Task, *, made_with: Mapping[str, Any]
) -> None:
    """Write what is known: metrics.json, and video.mp4 where there are pictures."""
    from latentplan.evaluation import video
    from latentplan.evaluation.provenance import provenance

    judged = [record.success for record in records if record.success is not None]
    kinds = {kind for record in records for kind in record.interventions}
    values = {
        "episodes": len(records),
        "success": sum(judged) / len(judged) if judged else None,
        "trips": sum(bool(record.trip) for record in records),
        "interventions": {
            kind: sum(record.interventions.get(kind, 0) for record in records)
            for kind in sorted(kinds)
        },
        "each": [record.to_json() for record in records],
        **made_with,
        "backend": task.way.backend,
        "arm": task.way.arm.name,
        "plans": task.name,
        "config": {name: config.to_values(value) for name, value in task.settings.items()},
        **provenance(),
    }
    frames = [frame for record in records for frame in record.frames]
    if frames:
        video.encode(folder / "video.mp4", iter(frames), fps=task.fps)
    with replacing(folder / "metrics.json") as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
