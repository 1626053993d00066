"""`latentplan join`: the episodes of several stores, into one."""

from __future__ import annotations

from typing import Annotated

import typer

from latentplan.commands.options import Store

EXAMPLE = "latentplan join flatten.zarr place.zarr --out cloth.zarr"


def command(
    parts: Annotated[list[str], typer.Argument(metavar="DATA...", help="Stores of one spec.")],
    out: Store,
) -> None:
    """Join the episodes of several stores in a new one."""
    from latentplan.api.join import join
    from latentplan.commands.progress import Bars

    with Bars() as bars:
        found = join(parts, out=out, on_progress=bars)
    print(f"{out}: {found.episodes} episodes, {found.transitions} transitions")
