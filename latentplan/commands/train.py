"""`latentplan train`: a model of an episode store, in a run folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, cast

import typer

from latentplan.commands.options import Device, Overrides, Seed
from latentplan.errors import Interrupted

if TYPE_CHECKING:
    from latentplan.api.train import Run

EXAMPLE = "latentplan train cfm --data rope.zarr --run runs/rope batch=256"


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A model, tokenizer or a preset of one; see latentplan list."
        ),
    ],
    data: Annotated[str, typer.Option(help="Episode store to learn from.")],
    run: Annotated[str, typer.Option(help="Run folder to write: checkpoints, curves, config.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where the run stopped.")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    cache: Annotated[
        str | None,
        typer.Option(help="Folder of a model's stages, shared by runs. Default: RUN/stages."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train a model or a tokenizer on a store.

    What can be set: latentplan config model MODEL
    """
    # Threads that wait for each other are not to spin: beside other work that took half the speed
    # and more, alone it gains nothing. Before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from latentplan.api.train import train
    from latentplan.commands.progress import Bars

    try:
        with Bars() as bars:
            found = train(
                model,
                data=data,
                run=run,
                resume=resume,
                seed=seed,
                device=device,
                overrides=overrides or (),
                cache=cache,
                on_progress=bars,
            )
    except Interrupted as e:
        step = cast("Run", e.result).step
        print(f"{run}: stopped{f' at step {step}' if step else ''}; --resume continues")
        raise
    if found.steps == 0:
        print(f"{run}: has done its {found.step} steps; raise training.steps to continue")
    for line in summary(found):
        print(line)


def summary(found: Run) -> list[str]:
    """Return the held-out figures, a line for each stage, and the checkpoint."""
    stages: dict[str, list[str]] = {}
    for key, value in found.figures.items():
        stage, _, name = key.rpartition(".")
        stages.setdefault(stage, []).append(f"{name} {value:.4g}")
    whole = stages.pop("", [])
    last = f"held out: {', '.join(whole)}" if whole else "all stages done"
    lines = [f"{stage}: {', '.join(figures)}" for stage, figures in stages.items()]
    return [*lines, f"{found.checkpoint}: step {found.step}; {last}"]
