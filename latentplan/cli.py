"""The `latentplan` command: parses arguments, calls `commands/`, turns errors into one line.

Nothing heavy is imported here or at the top of `commands/`, so that `--help` comes at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from latentplan import __version__
from latentplan.commands import check, config
from latentplan.errors import LatentplanError

INTERRUPTED = 130  # 128 + SIGINT, what shells expect
# A disk that is full (or as good as) or closed to us is the user's matter.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)

app = typer.Typer(
    name="latentplan",
    help="Learn a latent dynamics model from robot experience and plan with it.",
    epilog="Example: latentplan plan --run rope-cfm",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes in half the time; rich draws the progress bars
)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"found {text!r}, needs a whole number") from None


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option}: found {text!r}, needs numbers like 64,512") from None


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Config fields: FIELD=VALUE or SECTION.FIELD=VALUE."),
]
Seed = Annotated[
    int, typer.Option(parser=_whole, metavar="<int>", help="Everything random follows from it.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:INDEX; never replaced by another.")]
Backend = Annotated[
    str | None, typer.Option(help="How the arm is reached: sim, ros2, ros1, ... Default: sim.")
]
Python = Annotated[
    str | None, typer.Option(help="Interpreter that has ROS, for the node. Default: this one.")
]
Reset = Annotated[
    bool, typer.Option("--reset", help="The arm was stopped, you have looked, it may go on.")
]
Arm = Annotated[str, typer.Option(help="The arm: panda, ur5e, or a YAML file.")]
Driver = Annotated[
    str | None, typer.Option(help="Who plans: run folder, file or shipped checkpoint.")
]
Task = Annotated[str | None, typer.Option(help="Instead of a run: reach.")]
Many = Annotated[int, typer.Option(parser=_whole, metavar="<int>", help="How many.")]
Steps = Annotated[
    int | None, typer.Option(parser=_whole, metavar="<int>", help="Actions an episode, at most.")
]
Planner = Annotated[
    str | None,
    typer.Option(help="A planner or a preset of one. Default: the model's own, mostly cem."),
]


def _version(asked: bool) -> None:
    if asked:
        print(f"latentplan {__version__}")
        raise typer.Exit


bench = typer.Typer(help="Measure what users wait for.", rich_markup_mode=None)
app.add_typer(bench, name="bench", no_args_is_help=True)


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: latentplan collect rope --episodes 500 --out rope.zarr --workers 2")
def collect(
    env: Annotated[
        str, typer.Argument(metavar="ENV", help="An env or a preset of one; see latentplan list.")
    ],
    episodes: Annotated[
        int,
        typer.Option(
            parser=_whole, metavar="<int>", help="How many the store shall hold in the end."
        ),
    ],
    out: Annotated[
        str, typer.Option(help="Episode store DATA.zarr, also s3://...; an existing one goes on.")
    ],
    workers: Annotated[
        int | None,
        typer.Option(
            parser=_whole,
            metavar="<int>",
            help="Processes; the data is the same. Default: one a core.",
        ),
    ] = None,
    seed: Seed = 0,
    explorer: Annotated[str, typer.Option(help="Who chooses the actions.")] = "random",
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Workers on a Ray cluster: HOST:PORT, auto, or local (when left out).",
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Collect episodes of an env into a store."""
    from latentplan.commands import collect as command

    command.run(
        env,
        episodes=episodes,
        out=out,
        workers=workers,
        seed=seed,
        explorer=explorer,
        ray=ray,
        overrides=overrides or [],
    )


@app.command(name="import", epilog="Example: latentplan import calvin task_D_D --out d.zarr")
def import_(
    format: Annotated[
        str, typer.Argument(metavar="FORMAT", help="A source; see latentplan list sources.")
    ],
    source: Annotated[str, typer.Argument(metavar="SRC", help="Where the data set lies.")],
    out: Annotated[
        str, typer.Option(help="Episode store DATA.zarr, also s3://...; an existing one goes on.")
    ],
    episodes: Annotated[
        int | None,
        typer.Option(
            parser=_whole,
            metavar="<int>",
            help="How many the store shall hold in the end. Default: all.",
        ),
    ] = None,
    keys: Annotated[
        str | None, typer.Option(help="Observations to keep, with commas. Default: all.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            parser=_whole,
            metavar="<int>",
            help="Pixels a side of every picture. Default: as they are.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            parser=_whole, metavar="<int>", help="Processes that read. Default: one a core but one."
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out episodes that are damaged, and say so.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Import a data set of another format into a store."""
    from latentplan.commands import import_data as command

    command.run(
        format,
        source,
        out=out,
        episodes=episodes,
        keys=None if keys is None else [key for key in keys.split(",") if key],
        image_size=image_size,
        workers=workers,
        skip_bad=skip_bad,
        overrides=overrides or [],
    )


@app.command(epilog="Example: latentplan export lerobot rope.zarr rope-lerobot --fps 10")
def export(
    format: Annotated[str, typer.Argument(metavar="FORMAT", help="lerobot.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Episode store DATA.zarr.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to make.")],
    fps: Annotated[
        int | None,
        typer.Option(
            parser=_whole, metavar="<int>", help="Frames a second. Default: the store's."
        ),
    ] = None,
    images: Annotated[
        bool,
        typer.Option("--images/--video", help="Pictures as PNG, exact, or as videos with losses."),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Export a store as a LeRobot data set."""
    from latentplan.commands import export as command

    command.run(format, data, out=out, fps=fps, images=images, overrides=overrides or [])


@app.command(epilog="Example: latentplan train cfm --data rope.zarr --run runs/rope batch=256")
def train(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model or a preset of one; see latentplan list."),
    ],
    data: Annotated[str, typer.Option(help="Episode store to learn from.")],
    run: Annotated[str, typer.Option(help="Run folder to write: checkpoints, curves, config.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    cache: Annotated[
        str | None,
        typer.Option(help="Folder of a model's stages, shared by runs. Default: RUN/stages."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train a model or a tokenizer on a store."""
    # Threads that wait for each other are not to spin: beside other work that took half the speed
    # and more, alone it gains nothing. Before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from latentplan.commands import train as command

    command.run(
        model,
        data=data,
        run=run,
        resume=resume,
        seed=seed,
        device=device,
        cache=cache,
        overrides=overrides or [],
    )


@app.command(epilog="Example: latentplan plan --run rope-cfm --episodes 8 --out runs/report")
def plan(
    run: Annotated[str, typer.Option(help="Run folder, .safetensors file or shipped checkpoint.")],
    env: Annotated[
        str | None, typer.Option(help="Where to plan. Default: where the data came from.")
    ] = None,
    episodes: Annotated[
        int, typer.Option(parser=_whole, metavar="<int>", help="Held-out starts and goals.")
    ] = 8,
    seed: Seed = 0,
    planner: Planner = None,
    objective: Annotated[str, typer.Option(help="What a plan costs, or a preset of it.")] = "goal",
    goal_text: Annotated[
        str, typer.Option(help="What to do, in words. Default: what the env says of its task.")
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
    from latentplan.commands import plan as command

    command.run(
        run,
        env=env,
        episodes=episodes,
        seed=seed,
        planner=planner,
        objective=objective,
        goal_text=goal_text,
        out=out,
        device=device,
        overrides=overrides or [],
    )


@bench.command(name="collect", epilog="Example: latentplan bench collect --env rope --json a.json")
def bench_collect(
    env: Annotated[str, typer.Option(help="An env or a preset of one. Default: all.")] = "",
    workers: Annotated[str, typer.Option(help="Processes; numbers, with commas.")] = "1,2",
    ray: Annotated[str, typer.Option(help="Actors of a local Ray; numbers, with commas.")] = "",
    episodes: Annotated[
        int, typer.Option(parser=_whole, metavar="<int>", help="Timed ones, of each repeat.")
    ] = 100,
    repeats: Annotated[int, typer.Option(parser=_whole, metavar="<int>", help="Of each row.")] = 3,
    seed: Seed = 0,
    json: Annotated[str | None, typer.Option(help="File for the rows, as a JSON list.")] = None,
    overrides: Overrides = None,
) -> None:
    """Time collecting with random actions: each env and engine, by processes and on Ray."""
    from latentplan.commands import bench_collect as command

    command.run(
        env=env,
        workers=_numbers("--workers", workers),
        ray=_numbers("--ray", ray) if ray else (),
        episodes=episodes,
        repeats=repeats,
        seed=seed,
        out=json,
        overrides=overrides or [],
    )


@bench.command(name="plan", epilog="Example: latentplan bench plan --quick --json out.json")
def bench_plan(
    quick: Annotated[
        bool, typer.Option("--quick", help="A part of the table, in seconds.")
    ] = False,
    candidates: Annotated[str, typer.Option(help="Numbers, with commas.")] = "64,512,2048",
    horizon: Annotated[str, typer.Option(help="Numbers, with commas.")] = "10",
    batch: Annotated[str, typer.Option(help="Problems at once; numbers, with commas.")] = "1,16",
    dtype: Annotated[
        str, typer.Option(help="Of rollouts: float32, tf32, bfloat16, float16; with commas.")
    ] = "float32",
    planners: Annotated[str, typer.Option(help="Names, with commas. Default: all.")] = "",
    threads: Annotated[
        int, typer.Option(parser=_whole, metavar="<int>", help="Of the CPU, for all alike.")
    ] = 1,
    repeats: Annotated[
        int,
        typer.Option(parser=_whole, metavar="<int>", help="Solves of each, on as many problems."),
    ] = 15,
    device: Device = "cpu",
    json: Annotated[str | None, typer.Option(help="File for the rows, as a JSON list.")] = None,
    plot: Annotated[
        str | None, typer.Option(help="Picture of cost against milliseconds to write.")
    ] = None,
) -> None:
    """Time planners on a random network, beside installed peers and the matrix products alone."""
    from latentplan.commands import bench_plan as command

    command.run(
        quick=quick,
        candidates=_numbers("--candidates", candidates),
        horizons=_numbers("--horizon", horizon),
        batches=_numbers("--batch", batch),
        dtypes=dtype.split(","),
        planners=planners.split(",") if planners else (),
        threads=threads,
        repeats=repeats,
        device=device,
        out=json,
        plot=plot,
    )


@app.command(name="list", epilog="Example: latentplan list models")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            help="envs, models, planners, objectives, explorers, sources, presets, checkpoints.",
        ),
    ] = None,
) -> None:
    """List the names that commands know, plug-ins included."""
    from latentplan.commands import list as command

    command.run(kind=kind)


@app.command(epilog="Example: latentplan show runs/rope.zarr --out rope.png")
def show(
    what: Annotated[
        str, typer.Argument(metavar="DATA_OR_RUN", help="An episode store, run or checkpoint.")
    ],
    out: Annotated[
        str | None,
        typer.Option(
            help="Picture to write, or film DATA.mp4. Default: DATA.png, RUN/curves.png."
        ),
    ] = None,
    episode: Annotated[
        int | None,
        typer.Option(parser=_whole, metavar="<int>", help="All of this episode of a store."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Episodes that a videoworld run is shown on. Default: its own."),
    ] = None,
) -> None:
    """Show what a store or a run holds, in words and pictures."""
    from latentplan.commands import show as command

    command.run(what, out=out, episode=episode, data=data)


@app.command(epilog="Example: latentplan calibrate poses.zarr --robot ur5e --out front.yaml")
def calibrate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Store or folder of pictures with joint positions; `board` draws one to print.",
        ),
    ],
    out: Annotated[str, typer.Option(help="CAMERA.yaml to write; of a board, its .png or .pdf.")],
    board: Annotated[str, typer.Option(help="charuco or apriltag.")] = "charuco",
    robot: Annotated[str, typer.Option(help="The arm, or its YAML file.")] = "panda",
    mount: Annotated[
        str,
        typer.Option(help="Where the camera is: table (the arm carries the board) or flange."),
    ] = "table",
    camera: Annotated[str, typer.Option(help="Its name in the store and in CAMERA.yaml.")] = "rgb",
    lens: Annotated[
        str | None,
        typer.Option(help="CAMERA.yaml whose lens is taken. Default: found from the pictures."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Calibrate a camera by the arm: lens, pose on the table or the flange, and what is left."""
    from latentplan.commands import calibrate as command

    if source == "board":
        command.draw(board, out=out, overrides=overrides or [])
        return
    command.run(
        source,
        kind=board,
        robot=robot,
        mount=mount,
        camera=camera,
        out=out,
        lens=lens,
        overrides=overrides or [],
    )


@app.command(epilog="Example: latentplan robot --backend sim --run rope-cfm --episodes 1")
def robot(
    backend: Backend = None,
    robot: Arm = "panda",
    run: Driver = None,
    task: Task = None,
    episodes: Many = 1,
    steps: Steps = None,
    goal: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Picture of what shall be seen.")
    ] = None,
    goal_text: Annotated[
        str, typer.Option(help="Instead of a picture: a task of the model, in its words.")
    ] = "",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Of a node: alone, plan for it; with --backend and nobody who plans, be it.",
        ),
    ] = None,
    python: Python = None,
    planner: Planner = None,
    objective: Annotated[str, typer.Option(help="What a plan costs, or a preset of it.")] = "goal",
    seed: Seed = 0,
    out: Annotated[
        str | None, typer.Option(help="Folder for metrics.json, video.mp4. Default: runs/robot-...")
    ] = None,
    device: Device = "cpu",
    reset: Reset = False,
    overrides: Overrides = None,
) -> None:
    """Drive an arm, simulated or real, with a planner; or serve it to one."""
    from latentplan.commands import robot as command

    command.run(
        backend=backend,
        robot=robot,
        run=run,
        task=task,
        episodes=episodes,
        steps=steps,
        goal=goal,
        goal_text=goal_text,
        address=address,
        python=python,
        planner=planner,
        objective=objective,
        seed=seed,
        out=out,
        device=device,
        reset=reset,
        overrides=overrides or [],
    )


@app.command(epilog="Example: latentplan record --address 127.0.0.1:5757 --out arm.zarr")
def record(
    out: Annotated[
        str, typer.Option(help="Episode store DATA.zarr; an existing one of the arm goes on.")
    ],
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of a node, whose arm is watched.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="sim: an arm in this process, driven by --run or --task.")
    ] = None,
    robot: Arm = "panda",
    run: Driver = None,
    task: Task = None,
    episodes: Many = 1,
    steps: Steps = None,
    planner: Planner = None,
    seed: Seed = 0,
    overrides: Overrides = None,
) -> None:
    """Record what an arm does into a store, with the actions that were really sent."""
    from latentplan.commands import record as command

    command.run(
        out=out,
        address=address,
        backend=backend,
        robot=robot,
        run=run,
        task=task,
        episodes=episodes,
        steps=steps,
        planner=planner,
        seed=seed,
        overrides=overrides or [],
    )


@app.command(epilog="Example: latentplan replay arm.zarr --episode 3 --backend sim")
def replay(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Store that record wrote.")],
    episode: Annotated[int, typer.Option(parser=_whole, metavar="<int>", help="Which.")] = 0,
    backend: Backend = None,
    robot: Arm = "panda",
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of the arm's node.")
    ] = None,
    python: Python = None,
    reset: Reset = False,
    overrides: Overrides = None,
) -> None:
    """Play a recorded episode back to an arm, and say how near it came."""
    from latentplan.commands import replay as command

    command.run(
        data,
        episode=episode,
        backend=backend,
        robot=robot,
        address=address,
        python=python,
        reset=reset,
        overrides=overrides or [],
    )


@app.command(epilog="Example: latentplan doctor --json")
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check versions, rendering and GPU; say what to install."""
    from latentplan.commands import doctor as command

    raise typer.Exit(0 if command.run(json=json) else 2)


app.command(name="config", epilog=f"Example: {config.EXAMPLE}")(config.command)
app.command(name="check", epilog=f"Example: {check.EXAMPLE}")(check.command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 2 a user's mistake, 130 Ctrl-C.

    An error of our own keeps its traceback.
    """
    arguments = _filled(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        code = app(arguments, prog_name="latentplan", standalone_mode=False)
    except (LatentplanError, typer.TyperException) as e:
        return _refuse(e.format_message() if isinstance(e, typer.TyperException) else str(e))
    except OSError as e:
        if e.errno not in NO_ROOM:
            raise
        return _refuse(f"{e.filename or 'disk'}: {e.strerror}")
    if code == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
        print("latentplan: interrupted; what was done is kept", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _filled(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the value of `--ray` that may be left out; typer has no such."""
    following = [*arguments[1:], "-"]
    return [
        "--ray=local" if this == "--ray" and after.startswith("-") else this
        for this, after in zip(arguments, following, strict=False)
    ]


def _refuse(message: str) -> int:
    line = " ".join(message.split())
    print(f"latentplan: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
