"""`latentplan.connect`, and episodes of an arm: driven by a planner, or served by a node.

A node runs in ROS's environment, so torch is imported for planning alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentplan import config
from latentplan.api import connection as links
from latentplan.api import results
from latentplan.api.choice import Overrides, as_overrides
from latentplan.api.connection import Connection
from latentplan.errors import ConfigError, RobotError, check_range, unknown
from latentplan.files import replacing
from latentplan.urls import public_values

if TYPE_CHECKING:
    from latentplan.api.robot_tasks import Record, RobotTask
    from latentplan.real_robot.link.remote import RemoteRobot
    from latentplan.real_robot.loop.local import LocalRobot

TASKS = ("reach",)


@dataclass(frozen=True)
class Driven:
    """Episodes of an arm."""

    records: tuple[Record, ...]
    files: Mapping[str, Path]  # that were written, by name; empty without `out`


@contextmanager
def connect(
    backend: str | None = None,
    *,
    robot: str = "panda",
    address: str | None = None,
    python: str | None = None,
    reset: bool = False,
    period: float = 0.1,
    overrides: Overrides = (),
) -> Iterator[LocalRobot | RemoteRobot]:
    """Yield an arm that is armed: `observe()`, `send(action)`; it is stopped at the end.

    Without backend and address it is a simulated arm in this process; with the `address`
    (HOST:PORT) of a node the arm of that node; else a node of the `backend` is started, by the
    interpreter `python`. `robot` is a registered arm or a YAML file, `reset` clears the stop of an
    arm that was stopped, an action lasts `period` seconds. Sections of `overrides`: backend,
    safety, supervisor, if there is a backend. Raises RobotError if the arm does not answer.
    """
    check_range("robot.period", period, 1e-3, 10)
    found = links.connection(backend, robot=robot, address=address, python=python, reset=reset)
    preset = {}
    if found.backend is not None and not found.here:
        preset["backend"] = links.real_time(found.backend)
    settings = config.load(
        links.sections(found.backend), preset=preset, overrides=as_overrides(overrides)
    )
    with links.connected(replace(found, settings=settings, period=period)) as arm:
        yield arm


def drive(
    connection: Connection,
    *,
    run: str | None = None,
    task: str | None = None,
    episodes: int = 1,
    steps: int | None = None,
    goal: str | None = None,
    goal_text: str = "",
    planner: str | None = None,
    objective: str = "goal",
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "cpu",
    overrides: Overrides = (),
    on_episode: Callable[[int, Record], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Driven:
    """Drive an arm for some episodes and return their records.

    A trained `run` plans, or a `task` that needs none. With a folder `out`, metrics.json and
    video.mp4 are written there, also if a fault or Ctrl-C ends the episodes. Sections of
    `overrides`: backend, safety, supervisor if there is a backend; planner, objective, mpc,
    picking, tracking, reach. The planner is by default the model's own; `goal` is an image file or
    a recorded observation DATA.zarr:EPISODE[:STEP], `goal_text` an instruction. `on_episode` is
    called after every episode, `on_wait` with a sentence while the arm waits for a goal. Raises
    RobotError, with the arm at rest, on a fault.
    """
    check_range("robot.episodes", episodes, 1)
    check_range("robot.seed", seed, 0)
    if steps is not None:
        check_range("robot.steps", steps, 1)
    check_planner(run, task)

    from latentplan.api.robot_choice import choose

    chosen = choose(
        connection,
        run=run,
        steps=steps,
        goal=goal,
        goal_text=goal_text,
        planner=planner,
        objective=objective,
        seed=seed,
        device=device,
        overrides=as_overrides(overrides),
    )
    if on_wait is not None:
        chosen.on_wait = on_wait
    made_with = {"robot": connection.robot, "seed": seed}
    return _drive(chosen, episodes, out, made_with=made_with, on_episode=on_episode)


def _drive(
    task: RobotTask,
    episodes: int,
    out: str | Path | None,
    *,
    made_with: Mapping[str, Any],
    on_episode: Callable[[int, Record], None] | None,
) -> Driven:
    """Return the records of a task's episodes, written into the folder `out` if there is one."""
    records: list[Record] = []
    files: dict[str, Path] = {}
    folder: Path | None = None
    with ExitStack() as stack:
        try:
            with task.connected() as arm:
                if out is not None:
                    folder = stack.enter_context(results.folder(out))
                for index in range(episodes):
                    records.append(task.episode(arm, index))
                    if on_episode is not None:
                        on_episode(index, records[-1])
                    if records[-1].fault:
                        raise RobotError(records[-1].fault)
        finally:  # the arm is at rest, whatever ended it
            if folder is not None:
                files = write(folder, records, task, made_with=made_with)
    return Driven(tuple(records), files)


def check_planner(run: str | None, task: str | None) -> None:
    """Raise a LatentplanError unless one of a run and a known task plans."""
    if run is None and task is None:
        raise ConfigError("robot.run: found neither a run nor a task; give a run, or task=reach")
    if run is not None and task is not None:
        raise ConfigError("robot.task: found together with a run; give one of them")
    if task is not None and task not in TASKS:
        raise unknown("task", task, TASKS)


def serve(
    connection: Connection,
    *,
    overrides: Overrides = (),
    on_ready: Callable[[str], None] = lambda line: None,
) -> tuple[str, str]:
    """Be the node of an arm until SIGTERM or SIGINT; return its state, at rest, and the reason.

    `on_ready` is called with the line that announces the node's address.
    """
    from latentplan.real_robot.loop.node import Node
    from latentplan.real_robot.loop.node_process import announcement

    if connection.backend is None or connection.address is None:
        raise ConfigError("robot.backend: found none; a node needs one to reach its arm by")
    backend = connection.backend
    settings = config.load(
        links.sections(backend),
        preset={"backend": links.real_time(backend)},
        overrides=as_overrides(overrides),
    )
    driver, supervisor = links.build(replace(connection, settings=settings))
    node = Node(driver, supervisor, address=connection.address, period=connection.period)
    node.run(lambda: on_ready(announcement(connection.arm.name, backend, node.address)))
    return supervisor.state, supervisor.reason


def write(
    folder: Path, records: list[Record], task: RobotTask, *, made_with: Mapping[str, Any]
) -> dict[str, Path]:
    """Write metrics.json, and video.mp4 if there are images; return the files by name."""
    from latentplan import mp4
    from latentplan.evaluation.provenance import provenance

    judged = [record.success for record in records if record.success is not None]
    kinds = {kind for record in records for kind in record.interventions}
    values = {
        "episodes": len(records),
        "success": sum(judged) / len(judged) if judged else None,
        "faults": sum(bool(record.fault) for record in records),
        "interventions": {
            kind: sum(record.interventions.get(kind, 0) for record in records)
            for kind in sorted(kinds)
        },
        "each": [record.to_json() for record in records],
        **made_with,
        "backend": task.connection.backend,
        "arm": task.connection.arm.name,
        "plans": task.name,
        "config": {name: config.to_values(value) for name, value in task.settings.items()},
        **provenance(),
    }
    values = public_values(values)
    files = {"metrics.json": folder / "metrics.json"}
    frames = [frame for record in records for frame in record.frames]
    if frames:
        files["video.mp4"] = folder / "video.mp4"
        mp4.encode(files["video.mp4"], iter(frames), fps=task.fps)
    with replacing(files["metrics.json"]) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return files
