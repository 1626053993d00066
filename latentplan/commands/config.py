"""`latentplan config`: the fields that KEY=VALUE may set, with type, default, range and meaning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

EXAMPLE = "latentplan config model cfm"
WIDTH = 110  # columns of a line without a terminal


def command(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="env, model, tokenizer, planner, objective, policy, source, backend; or training, "
            "mpc, collect, which have no NAME.",
        ),
    ],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Registered, a preset, or MODULE:CLASS.")
    ] = "",
) -> None:
    """Print the fields of a Config: type, default, range, meaning."""
    from rich.console import Console
    from rich.table import Table

    from latentplan.api.fields import describe

    found, elsewhere = describe(kind, name)
    preset = any(field.value != field.default for field in found)
    table = Table("field", "type", "default", box=None, padding=(0, 2, 0, 0))
    for column in (*(["preset"] if preset else []), "range", "meaning"):
        table.add_column(column, overflow="fold" if column == "meaning" else "ellipsis")
    for field in found:
        changed = field.value != field.default
        own = [_text(field.value) if changed else ""] if preset else []
        row = (field.name, field.type, _text(field.default), *own, field.range, field.meaning)
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
    if elsewhere:
        others = (f"{key}={_text(value)}" for key, value in _leaves(elsewhere))
        print("The preset also sets", " ".join(others))


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_text, value))}]"  # as KEY=VALUE takes it
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value) if value != "" else "''"


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
