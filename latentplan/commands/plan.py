"""`latentplan plan`: a trained model, evaluated beside its baselines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentplan.commands.options import Device, Objective, Overrides, Planner, Seed, number
from latentplan.errors import Interrupted

if TYPE_CHECKING:
    from latentplan.api.evaluate import Evaluated

EXAMPLE = "latentplan plan --run rope-cfm --episodes 8 --out runs/report"


def command(
    run: Annotated[
        str | None, typer.Option(help="Run folder, .safetensors file or shipped checkpoint.")
    ] = None,
    env: Annotated[
        str | None, typer.Option(help="The env to plan in. Default: that of the run's data.")
    ] = None,
    evaluation: Annotated[
        str, typer.Option(help="What is measured; see latentplan list evaluations.")
    ] = "goals",
    episodes: Annotated[
        int | None, number("Trials. Default: 8 held-out starts and goals; of CALVIN's, all.")
    ] = None,
    seed: Seed = 0,
    policy: Annotated[
        str | None,
        typer.Option(help="Default: the model's own, mostly mpc; without a run: random, oracle."),
    ] = None,
    planner: Planner = None,
    objective: Objective = "goal",
    goal_text: Annotated[
        str, typer.Option(help="The instruction, in words. Default: the env's own.")
    ] = "",
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder for metrics.json, report.html and video.mp4. Default: runs/plan-..."
        ),
    ] = None,
    device: Device = "cpu",
    overrides: Overrides = None,
) -> None:
    """Plan to held-out goals, beside random, no-op and oracle."""
    from latentplan.api import results
    from latentplan.api.evaluate import evaluate
    from latentplan.commands.progress import Bars

    file = Path(run or policy or "")
    name = file.parent.name if file.is_file() else file.resolve().name
    try:
        with Bars() as bars:
            found = evaluate(
                run,
                env=env,
                evaluation=evaluation,
                episodes=episodes,
                seed=seed,
                policy=policy,
                planner=planner,
                objective=objective,
                goal_text=goal_text,
                out=results.new_folder(f"plan-{name}") if out is None else out,
                device=device,
                overrides=overrides or (),
                on_progress=bars,
            )
    except Interrupted as e:
        show(e.result)
        raise
    show(found)


def show(found: Evaluated) -> None:
    """Print the figures and where the files are."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    figures = found.metrics.table()
    first, *others = figures.columns
    table = Table(first, box=SIMPLE_HEAD)
    for column in others:
        table.add_column(column, justify="right")
    for row in figures.rows:
        table.add_row(*row)
    Console().print(table)
    for note in figures.notes:
        print(note)
    if read := found.settings["privileged"]:
        print(f"the model reads {', '.join(read)} of the simulator: a bound, not a result")
    name = "report.html" if "report.html" in found.files else "metrics.json"
    print(f"{name.partition('.')[0]}: {found.files[name]}")
