"""Cells of a table, a column of them a run, measured once and kept in a JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from latentplan.api.bench_tables import head, interval, line
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing

Cells = dict[str, dict[str, Any]]  # by run and row


def measured(
    file: Path,
    runs: Mapping[str, str],
    rows: Iterable[str],
    measure: Callable[[str, str], Any],
    **about: Any,
) -> Cells:
    """Return the cells of a file, after `measure(run, row)` of those that it lacks.

    The file is written after each, with `about` and the provenance.
    """
    done = json.loads(file.read_text()) if file.exists() else {"cells": {}}
    rows = list(rows)
    for name, run in runs.items():
        cells = done["cells"].setdefault(name, {})
        for row in rows:
            if row in cells:
                continue
            cells[row] = measure(run, row)
            done |= {**about, "provenance": provenance()}
            with replacing(file) as partial:
                partial.write_text(json.dumps(done, indent=1) + "\n")
            print(f"{name}, {row}: measured", flush=True)
    found: Cells = done["cells"]
    return found


def table(
    first: str,
    cells: Cells,
    rows: Iterable[str],
    columns: Mapping[str, Callable[[dict[str, Any], str], str]],
) -> str:
    """Return a Markdown table of `rows`, with these columns of each run; a missing cell is empty.

    A column is a function of a run's cells and the row.
    """
    found = head([first, *(f"{name}: {column}" for name in cells for column in columns)])
    for row in rows:
        values = [
            show(of_run, row) if row in of_run else ""
            for of_run in cells.values()
            for show in columns.values()
        ]
        found.append(line([row, *values]))
    return "\n".join(found)


def progress(metrics: Mapping[str, Any]) -> str:
    """Return the progress of metrics, with its interval."""
    return f"{metrics['progress']:.3f}{interval(metrics['progress_ci95'], 3)}"


def success(metrics: Mapping[str, Any]) -> str:
    """Return the success of metrics in per cent, with its interval."""
    return f"{metrics['success']:.0%}{interval(metrics['success_ci95'], 0, 100)}"
