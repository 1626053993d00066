"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import typer


def whole(text: str) -> int:
    """Return a whole number; BadParameter for another text."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"found {text!r}, needs a whole number") from None


def number(help: str) -> Any:
    """Return an option that takes a whole number."""
    return typer.Option(parser=whole, metavar="<int>", help=help)


Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Config fields: FIELD=VALUE or SECTION.FIELD=VALUE."),
]
Seed: TypeAlias = Annotated[int, number("Source of all randomness.")]
Device: TypeAlias = Annotated[
    str, typer.Option(help="cpu, cuda or cuda:INDEX; never replaced by another.")
]
Store: TypeAlias = Annotated[
    str,
    typer.Option(help="Episode store DATA.zarr, also s3://...; an existing one is continued."),
]
Planner: TypeAlias = Annotated[
    str | None, typer.Option(help="A planner of mpc or a preset of one. Default: cem.")
]
Objective: TypeAlias = Annotated[str, typer.Option(help="The cost of a plan, or a preset of one.")]

Backend: TypeAlias = Annotated[
    str | None, typer.Option(help="How the arm is reached: sim, ros2, ros1, ... Default: sim.")
]
Python: TypeAlias = Annotated[
    str | None, typer.Option(help="Interpreter that has ROS, for the node. Default: this one.")
]
Reset: TypeAlias = Annotated[
    bool, typer.Option("--reset", help="Clear the stop of an arm that was stopped and inspected.")
]
Arm: TypeAlias = Annotated[str, typer.Option(help="The arm: panda, ur5e, or a YAML file.")]
Run: TypeAlias = Annotated[
    str | None, typer.Option(help="The planner: run folder, file or shipped checkpoint.")
]
Task: TypeAlias = Annotated[str | None, typer.Option(help="Instead of a run: reach.")]
Episodes: TypeAlias = Annotated[int, number("Number of episodes.")]
Steps: TypeAlias = Annotated[int | None, number("Actions an episode, at most.")]
