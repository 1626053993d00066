"""`latentplan robot`: a planner drives an arm, or a node serves one; simulated or real."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentplan.commands import options
from latentplan.commands.options import Device, Overrides, Seed
from latentplan.commands.signals import terminable
from latentplan.errors import ConfigError

if TYPE_CHECKING:
    from latentplan.api.connection import Connection
    from latentplan.api.robot import Driven
    from latentplan.api.robot_tasks import Record

EXAMPLE = "latentplan robot --backend sim --run rope-cfm --episodes 1"


def command(
    backend: options.Backend = None,
    robot: options.Arm = "panda",
    run: options.Run = None,
    task: options.Task = None,
    episodes: options.Episodes = 1,
    steps: options.Steps = None,
    goal: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="Image of the goal, or DATA.zarr:EPISODE[:STEP]."),
    ] = None,
    goal_text: Annotated[
        str, typer.Option(help="Instead of an image: an instruction that the model takes.")
    ] = "",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Of a node: alone, plan for it; with --backend and no planner, be it.",
        ),
    ] = None,
    python: options.Python = None,
    planner: options.Planner = None,
    objective: options.Objective = "goal",
    seed: Seed = 0,
    out: Annotated[
        str | None, typer.Option(help="Folder for metrics.json, video.mp4. Default: runs/robot-...")
    ] = None,
    device: Device = "cpu",
    reset: options.Reset = False,
    overrides: Overrides = None,
) -> None:
    """Drive an arm, simulated or real, with a planner; or serve it to one."""
    from latentplan.api import connection, results
    from latentplan.api.robot import drive

    found = connection.connection(backend, robot=robot, address=address, python=python, reset=reset)
    if run is None and task is None and address is not None:
        be_node(found, overrides or ())
        return
    name = f"robot-{Path(run or task or '').resolve().name}"
    with terminable():
        driven = drive(
            found,
            run=run,
            task=task,
            episodes=episodes,
            steps=steps,
            goal=goal,
            goal_text=goal_text,
            planner=planner,
            objective=objective,
            seed=seed,
            out=results.new_folder(name) if out is None else out,
            device=device,
            overrides=overrides or (),
            on_episode=lambda index, record: print(line(index, record), flush=True),
            on_wait=lambda sentence: print(sentence, flush=True),
        )
    print(summary(driven))


def be_node(connection: Connection, overrides: list[str] | tuple[str, ...]) -> None:
    """Be the node of an arm until a signal, and print the state that it is left in."""
    from latentplan.api.robot import serve

    if connection.backend is None:
        raise ConfigError("--backend: none given; a node needs one to reach its arm by")
    state, reason = serve(
        connection, overrides=overrides, on_ready=lambda line: print(line, flush=True)
    )
    print(f"node: left {connection.arm.name} {state}" + (f" ({reason})" if reason else ""))


def summary(driven: Driven) -> str:
    """Return how many episodes succeeded, if several were judged, and where the results are."""
    judged = [record.success for record in driven.records if record.success is not None]
    rate = f"success {sum(judged)} of {len(judged)}\n" if len(judged) > 1 else ""
    return f"{rate}results: {driven.files['metrics.json']}"


def line(index: int, record: Record) -> str:
    """Return what an episode did, in one line."""
    parts = [f"episode {index + 1}:"]
    if record.start is not None and record.final is not None:
        parts.append(f"start {100 * record.start:.1f} cm, final {100 * record.final:.1f} cm,")
    parts.append(f"{record.actions} actions,")
    if record.refused:
        parts.append(f"{record.refused} refused,")
    interventions = sum(record.interventions.values())
    kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(record.interventions.items()))
    parts.append(f"interventions {interventions}" + (f" ({kinds})," if kinds else ","))
    parts.append(f"faults {int(bool(record.fault))}")
    if record.success is not None:
        parts.append(f"{'success' if record.success else 'no success'}")
    return " ".join(parts)
