"""`latentplan export`: an episode store, written in another package's format."""

from __future__ import annotations

from typing import Annotated

import typer

from latentplan.commands.options import Overrides, number

EXAMPLE = "latentplan export lerobot rope.zarr rope-lerobot --fps 10"


def command(
    format: Annotated[str, typer.Argument(metavar="FORMAT", help="lerobot.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Episode store DATA.zarr.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to make.")],
    fps: Annotated[int | None, number("Frames a second. Default: the store's.")] = None,
    images: Annotated[
        bool,
        typer.Option("--images/--video", help="Images as PNG, exact, or as videos with losses."),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Export a store as a LeRobot data set."""
    from latentplan.api.export_data import export_data
    from latentplan.commands.progress import Bars

    with Bars() as bars:
        found = export_data(
            data,
            out,
            format=format,
            fps=fps,
            images=images,
            overrides=overrides or (),
            on_progress=bars,
        )
    print(
        f"{found.folder}: {found.episodes} episodes, {found.frames} frames at {found.fps} a "
        f"second, {found.bytes / 1e6:.1f} MB; {found.frames / max(found.seconds, 1e-9):.1f} "
        "frames/s"
    )
