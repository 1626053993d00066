"""`latentplan show`: what an episode store or a run holds, in words and images."""

from __future__ import annotations

from typing import Annotated

import typer

from latentplan.commands.options import number

EXAMPLE = "latentplan show runs/rope.zarr --out rope.png"


def command(
    what: Annotated[
        str, typer.Argument(metavar="DATA_OR_RUN", help="An episode store, run or checkpoint.")
    ],
    out: Annotated[
        str | None,
        typer.Option(
            help="Image to write, or video DATA.mp4. Default: DATA.png, RUN/curves.png."
        ),
    ] = None,
    episode: Annotated[int | None, number("All of this episode of a store.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Episodes that a video model is shown on. Default: its own data."),
    ] = None,
) -> None:
    """Show what a store or a run holds, in words and images."""
    from latentplan.api.show import describe

    for line in describe(what, out=out, episode=episode, data=data):
        print(line)
