"""What the pages of benchmarks share: rows of tables, and how the figures were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def line(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def head(columns: Sequence[str]) -> list[str]:
    """Return the first two rows of a Markdown table."""
    return [line(columns), line(["---"] * len(columns))]


def interval(ends: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """Return ` (low to high)`."""
    low, high = (f"{scale * each:.{digits}f}" for each in ends)
    return f" ({low} to {high})"


def origin(made: Mapping[str, Any], *, device: str) -> list[str]:
    """Return the lines that state command, machine and versions."""
    machine = made["machine"]
    return [
        f"    {made['command']}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, GPU {machine['gpu'] or 'none'}, device "
        f"{device}; {', '.join(f'{k} {v}' for k, v in made['versions'].items())}; "
        f"{made['created']}.",
    ]
