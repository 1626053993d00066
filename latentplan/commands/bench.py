"""`latentplan bench`: measurements that train and evaluate on their own."""

from __future__ import annotations

from typing import Annotated

import typer

from latentplan.commands.options import Device, Seed, number

EXAMPLE = "latentplan bench models --suite rope --seeds 1 --out runs/models"
VIDEO_EXAMPLE = "latentplan bench video runs/teco --data tabletop.zarr --out runs/video"

app = typer.Typer(
    help="Train and compare on the same data, goals and budget.",
    epilog=f"Example: {EXAMPLE}",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _bench() -> None:
    pass


def names(text: str) -> list[str]:
    """Return the names of a list with commas."""
    return [each.strip() for each in text.split(",") if each.strip()]


@app.command(epilog=f"Example: {EXAMPLE}")
def models(
    out: Annotated[str, typer.Option(help="Folder; an existing one is continued.")],
    suite: Annotated[str, typer.Option(help="Envs, with commas.")] = "rope,cloth",
    models: Annotated[
        str, typer.Option(help="Models, with commas. Default: cfm and all baselines.")
    ] = "",
    seeds: Annotated[int | None, number("Trainings of each model. Default: 3.")] = None,
    planners: Annotated[str, typer.Option(help="Planners, with commas.")] = "cem,propose,beam",
    calibrate: Annotated[
        str | None,
        typer.Option(help="Models whose encoder is calibrated as well, with commas. Default: all."),
    ] = None,
    steps: Annotated[int | None, number("Steps of each network. Default: 4000.")] = None,
    goals: Annotated[int | None, number("Starts and goals. Default: 40.")] = None,
    episodes: Annotated[int | None, number("Episodes of data. Default: 1500.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder with ENV.zarr of each env, in place of collecting.")
    ] = None,
    workers: Annotated[
        int | None, number("Processes that collect. Default: one a core.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few steps, episodes and goals: shows that it works.")
    ] = False,
    device: Device = "cpu",
) -> None:
    """Train models on the same data, and plan with each."""
    from dataclasses import replace

    from latentplan.api import bench_models as bench
    from latentplan.commands.progress import Bars

    given = {"steps": steps, "goals": goals, "episodes": episodes}
    budget = bench.QUICK if quick else bench.Budget()
    budget = replace(budget, **{name: n for name, n in given.items() if n is not None})
    with Bars() as bars:
        found = bench.bench_models(
            names(suite),
            out=out,
            models=names(models) or bench.MODELS,
            seeds=seeds if seeds is not None else 1 if quick else 3,
            planners=names(planners),
            calibrate=None if calibrate is None else names(calibrate),
            data=data,
            budget=budget,
            workers=workers,
            device=device,
            on_progress=bars,
        )
    print(found.page.read_text(encoding="utf-8").partition("\n`dynamics` is")[0].strip())
    print(f"page: {found.page}")


@app.command(epilog=f"Example: {VIDEO_EXAMPLE}")
def video(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Trained models of video.")],
    data: Annotated[str, typer.Option(help="Store with held-out clips.")],
    out: Annotated[str, typer.Option(help="Folder for results.json, results.md and an image.")],
    steps: Annotated[int, number("Frames to imagine.")] = 16,
    context: Annotated[int, number("Frames given.")] = 2,
    clips: Annotated[int, number("Clips at most, one an episode.")] = 64,
    split: Annotated[
        str, typer.Option(help="test: held-out tenth of the episodes; all: of a store of its own.")
    ] = "test",
    camera: Annotated[str, typer.Option(help="Images compared. Default: the first.")] = "",
    temperature: Annotated[
        float, typer.Option(help="0 for the likeliest frames, else samples.")
    ] = 0.0,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Compare imagined video with what happened, open loop under the actions sent."""
    from latentplan.api.bench_video import bench_video
    from latentplan.commands.progress import Bars

    with Bars() as bars:
        found = bench_video(
            runs,
            data=data,
            out=out,
            steps=steps,
            context=context,
            clips=clips,
            split=split,
            camera=camera,
            temperature=temperature,
            seed=seed,
            device=device,
            on_progress=bars,
        )
    print(found.page.read_text(encoding="utf-8").partition("\nFigures are pooled")[0].strip())
    print(f"page: {found.page}")
