"""`latentplan check`: whether a class keeps what its kind promises."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLE = "latentplan check env my_envs:Pusher"
SAYS = {"ok": "", "FAILED": ": found ", "skipped": ": "}


def command(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="env, model, objective, planner, policy or tokenizer."),
    ],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Registered, a preset, or MODULE:CLASS.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Fields of its Config.")
    ] = None,
) -> None:
    """Check that a class keeps what its kind promises."""
    from latentplan.conformance import suite

    tested = suite.subject(kind, name, overrides=overrides or [])
    counts = dict.fromkeys(SAYS, 0)
    for result in suite.run(tested):
        counts[result.status] += 1
        print(f"{result.status:8}{result.promise}{SAYS[result.status]}{result.found}", flush=True)
    ok, failed, skipped = counts.values()
    print(f"{kind} {name}: {ok} ok, {failed} failed, {skipped} skipped")
    raise typer.Exit(2 if failed else 0)
