"""`latentplan doctor`: whether the core works here, or what is wrong with recorded episodes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from latentplan.commands.options import number

EXAMPLE = "latentplan doctor demos.zarr"


def command(
    data: Annotated[
        str | None,
        typer.Argument(help="Episodes to check. Default: versions, rendering and GPU here."),
    ] = None,
    format: Annotated[
        str, typer.Option(help="Of the data, if they are no store: see latentplan list sources.")
    ] = "",
    episodes: Annotated[int | None, number("The first ones alone. Default: all.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine, or recorded episodes; exit with 2 if a fault is found."""
    if data is None:
        _machine(json)
    from latentplan.api.checkup import check_up, summary
    from latentplan.commands.progress import Bars

    with Bars() as bars:
        found = check_up(data or "", format=format, episodes=episodes, on_progress=bars)
    _print(found.to_json() if json else None, summary(found))
    raise typer.Exit(0 if found.healthy else 2)


def _machine(json: bool) -> None:
    """Print what works here, and exit."""
    from latentplan.api.doctor import diagnose, summary

    found = diagnose()
    _print(found.to_json() if json else None, summary(found))
    raise typer.Exit(0 if found.works else 2)


def _print(values: Any, lines: Any) -> None:
    """Print JSON values if there are any, else lines."""
    from json import dumps

    for line in [dumps(values, indent=2)] if values is not None else lines:
        print(line)
