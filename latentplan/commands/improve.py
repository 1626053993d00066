"""`latentplan improve`: episodes of a run's own planner, and training on all data."""

from __future__ import annotations

from typing import Annotated

import typer

from latentplan.commands.options import Device, Overrides, number
from latentplan.commands.train import summary
from latentplan.errors import Interrupted

EXAMPLE = "latentplan improve runs/calibrated --out runs/improved --rounds 2 policy.noise=0.1"


def command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder of a training on collected data.")
    ],
    out: Annotated[str, typer.Option(help="Folder of the rounds; an existing one is continued.")],
    rounds: Annotated[int, number("Rounds of collecting and training.")] = 1,
    episodes: Annotated[int, number("Episodes that a round collects.")] = 500,
    workers: Annotated[
        int | None, number("Processes that collect. Default: one a core.")
    ] = None,
    device: Device = "cpu",
    overrides: Overrides = None,
) -> None:
    """Collect with a run's planner and train again on all data."""
    from latentplan.api.improve import improve
    from latentplan.commands.progress import Bars

    try:
        with Bars() as bars:
            found = improve(
                run,
                out=out,
                rounds=rounds,
                episodes=episodes,
                workers=workers,
                device=device,
                overrides=overrides or (),
                on_progress=bars,
            )
    except Interrupted:
        print(f"{out}: stopped; the same command continues")
        raise
    for index, each in enumerate(found.rounds, 1):
        print(f"round {index}")
        for line in summary(each):
            print(f"  {line}")
