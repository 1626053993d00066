"""`latentplan import`: a data set in another format, into an episode store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from latentplan.commands.options import Overrides, Store, number
from latentplan.errors import Interrupted

if TYPE_CHECKING:
    from latentplan.api.import_data import Imported

EXAMPLE = "latentplan import calvin task_D_D --out d.zarr"


def command(
    format: Annotated[
        str, typer.Argument(metavar="FORMAT", help="A source; see latentplan list sources.")
    ],
    source: Annotated[str, typer.Argument(metavar="SRC", help="Path of the data set.")],
    out: Store,
    episodes: Annotated[
        int | None, number("How many the store shall hold in the end. Default: all.")
    ] = None,
    keys: Annotated[
        str | None, typer.Option(help="Observations to keep, with commas. Default: all.")
    ] = None,
    image_size: Annotated[
        int | None, number("Pixels a side of every image. Default: as they are.")
    ] = None,
    workers: Annotated[
        int | None, number("Processes that read. Default: one a core but one.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out damaged episodes, and list them.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="LIMITS",
            help="What an episode may claim: bytes=8e9,items=1e7,seconds=600; see docs/security.md",
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Import a data set of another format into a store."""
    from latentplan.api.import_data import import_data
    from latentplan.commands.progress import Bars

    try:
        with Bars() as bars:
            found = import_data(
                format,
                source,
                out=out,
                episodes=episodes,
                keys=None if keys is None else [key for key in keys.split(",") if key],
                image_size=image_size,
                workers=workers,
                skip_bad=skip_bad,
                budget=budget,
                overrides=overrides or (),
                on_progress=bars,
            )
    except Interrupted as e:
        print(summary(e.result))
        raise
    print(summary(found))


def summary(found: Imported) -> str:
    """Return what a store holds, what was added and what was left out."""
    rate = found.new_transitions / max(found.seconds, 1e-9)
    lines = [
        *found.notes,
        f"{found.store}: {found.episodes} episodes, {found.transitions} transitions, "
        f"{found.bytes / 1e6:.1f} MB; new {found.new_episodes} episodes, "
        f"{found.new_transitions} transitions at {rate:.1f}/s",
    ]
    if found.skipped:
        lines.append(f"{found.skipped} episodes skipped:")
        lines += [f"  {count}: {reason}" for reason, count in found.reasons.items()]
    return "\n".join(lines)
