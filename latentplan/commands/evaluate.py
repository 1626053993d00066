"""`latentplan evaluate`: how well a run fits recorded episodes, without a simulator."""

from __future__ import annotations

from typing import Annotated

import typer

from latentplan.commands.options import Device, Objective, Overrides, Planner, Seed, number

EXAMPLE = "latentplan evaluate runs/arm --data demos.zarr"


def command(
    run: Annotated[str, typer.Argument(help="Run folder, file or shipped checkpoint.")],
    data: Annotated[str, typer.Option(help="Store of recorded episodes.")],
    split: Annotated[
        str, typer.Option(help="test: held-out tenth of the episodes; all: of a store of its own.")
    ] = "test",
    episodes: Annotated[int, number("Episodes at most.")] = 50,
    planner: Planner = None,
    objective: Objective = "goal",
    seed: Seed = 0,
    out: Annotated[
        str | None,
        typer.Option(help="Folder for results.json, results.md. Default: runs/offline-..."),
    ] = None,
    device: Device = "cpu",
    overrides: Overrides = None,
) -> None:
    """Compare a run with recorded episodes: actions, predictions, costs."""
    from pathlib import Path

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from latentplan.api import offline_page, results
    from latentplan.api.evaluate_offline import evaluate_offline
    from latentplan.commands.progress import Bars

    with Bars() as bars:
        found = evaluate_offline(
            run,
            data=data,
            out=results.new_folder(f"offline-{Path(run).resolve().name}") if out is None else out,
            split=split,
            episodes=episodes,
            planner=planner,
            objective=objective,
            seed=seed,
            device=device,
            overrides=overrides or (),
            on_progress=bars,
        )
    table = Table(*offline_page.COLUMNS, box=SIMPLE_HEAD)
    for cells in offline_page.rows(found.figures):
        table.add_row(*cells)
    Console().print(table)
    for name, reason in found.skipped.items():
        print(f"no {name}: {reason}")
    print(f"page: {found.files['results.md']}")
