"""`latentplan replay`: a recorded episode, sent to an arm again."""

from __future__ import annotations

from typing import Annotated

import typer

from latentplan.commands import options
from latentplan.commands.options import Overrides, number
from latentplan.commands.signals import terminable

EXAMPLE = "latentplan replay arm.zarr --episode 3 --backend sim"


def command(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Store that record wrote.")],
    episode: Annotated[int, number("Its number in the store.")] = 0,
    backend: options.Backend = None,
    robot: options.Arm = "panda",
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of the arm's node.")
    ] = None,
    python: options.Python = None,
    reset: options.Reset = False,
    overrides: Overrides = None,
) -> None:
    """Send a recorded episode to an arm again, and print how near it came."""
    from latentplan.api.connection import connection
    from latentplan.api.replay import replay

    arm = connection(backend, robot=robot, address=address, python=python, reset=reset)
    with terminable():
        found = replay(arm, data, episode=episode, overrides=overrides or ())
    played, counts = found.played, found.interventions
    print(f"sent {played.actions} actions, {found.seconds:.1f} s")
    print(f"joints: {played.mean:.4f} rad away on the mean, {played.worst:.4f} at most")
    print("  " + ", ".join(f"{name} {error:.4f}" for name, error in found.worst.items()))
    kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(counts.items()))
    print(f"interventions {sum(counts.values())}" + (f" ({kinds})" if kinds else ""))
