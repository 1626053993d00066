"""`latentplan check`: whether a class keeps what its kind promises."""

from __future__ import annotations

from typing import Annotated, Any

import typer

EXAMPLE = "latentplan check env my_envs:Pusher"
SAYS = {"ok": "", "FAILED": ": found ", "skipped": ": "}


def command(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="env, evaluation, model, objective, planner, policy, source or tokenizer.",
        ),
    ],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Registered, a preset, or MODULE:CLASS.")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA|ENV] KEY=VALUE",
            help="Path of data that a source reads, or env of an evaluation; fields of its Config.",
        ),
    ] = None,
) -> None:
    """Check that a class keeps what its kind promises."""
    from latentplan.conformance import suite

    tested = suite.subject(kind, name, **_given(kind, arguments or []))
    counts = dict.fromkeys(SAYS, 0)
    for result in suite.run(tested):
        counts[result.status] += 1
        print(f"{result.status:8}{result.promise}{SAYS[result.status]}{result.found}", flush=True)
    ok, failed, skipped = counts.values()
    print(f"{kind} {name}: {ok} ok, {failed} failed, {skipped} skipped")
    raise typer.Exit(2 if failed else 0)


def _given(kind: str, arguments: list[str]) -> dict[str, Any]:
    """Return the data of a source, or the env of an evaluation, and the overrides."""
    if kind == "source" and arguments:
        return {"data": arguments[0], "overrides": arguments[1:]}
    if kind == "evaluation" and arguments and "=" not in arguments[0]:
        return {"env": arguments[0], "overrides": arguments[1:]}
    return {"overrides": arguments}
