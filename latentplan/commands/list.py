"""`latentplan list`: every name that commands take, plug-ins included."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLE = "latentplan list models"
KINDS = (  # those of api.names, which is not imported for --help
    *("envs", "models", "tokenizers", "planners", "objectives", "policies", "sources"),
    *("evaluations", "backends", "robots", "presets", "checkpoints"),
)


def command(
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help=f"{', '.join(KINDS)}.")
    ] = None,
) -> None:
    """List the names that commands take, plug-ins included."""
    from latentplan.api import names

    for section in names.sections() if kind is None else [kind]:
        found = names.entries(section)
        width = max((len(name) for name in found), default=0)
        print(section)
        for name, meaning in sorted(found.items()):
            print(f"  {name:{width}}  {meaning}".rstrip())
        if not found:
            print("  none")
