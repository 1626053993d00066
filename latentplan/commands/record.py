"""`latentplan record`: what an arm does, into a store."""

from __future__ import annotations

from typing import Annotated

import typer

from latentplan.commands import options
from latentplan.commands.options import Overrides, Seed
from latentplan.commands.signals import terminable
from latentplan.errors import Interrupted

EXAMPLE = "latentplan record --address 127.0.0.1:5757 --out arm.zarr"


def command(
    out: Annotated[
        str, typer.Option(help="Episode store DATA.zarr; an existing one of the arm is continued.")
    ],
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of a node, whose arm is watched.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="sim: an arm in this process, driven by --run or --task.")
    ] = None,
    robot: options.Arm = "panda",
    run: options.Run = None,
    task: options.Task = None,
    episodes: options.Episodes = 1,
    steps: options.Steps = None,
    planner: options.Planner = None,
    seed: Seed = 0,
    overrides: Overrides = None,
) -> None:
    """Record what an arm does into a store, with the actions that were really sent."""
    from latentplan.api.record import Recorded, record

    def summary(found: Recorded) -> str:
        added = f"new {found.new_episodes} episodes, {found.new_actions} actions"
        return f"{found.store}: {found.episodes} episodes; {added}"

    try:
        with terminable():
            found = record(
                out,
                address=address,
                backend=backend,
                robot=robot,
                run=run,
                task=task,
                episodes=episodes,
                steps=steps,
                planner=planner,
                seed=seed,
                overrides=overrides or (),
                on_episode=lambda index, count: print(
                    f"episode {index}: {count} actions", flush=True
                ),
            )
    except Interrupted as e:
        assert isinstance(e.result, Recorded)
        print(summary(e.result))
        raise
    print(summary(found))
