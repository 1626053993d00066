"""`latentplan doctor`: whether the core works here, and what to install if it does not."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLE = "latentplan doctor --json"


def command(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check versions, rendering and GPU; say what to install."""
    from json import dumps

    from latentplan.api.doctor import diagnose

    found = diagnose()
    if json:
        print(dumps(found.to_json(), indent=2))
    else:
        width = max(len(f.name) for f in found.findings)
        for f in found.findings:
            print(f"{f.state:8}  {f.name:{width}}  {f.found}")
            if f.remedy:
                print(f"{'':8}  {'':{width}}  -> {f.remedy}")
        works = "the core works" if found.works else "the core does not work: mend what is missing"
        print(works)
    raise typer.Exit(0 if found.works else 2)
