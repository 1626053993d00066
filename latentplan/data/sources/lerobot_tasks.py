"""The tasks of LeRobot's data sets: sentences by number, and those of each episode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from latentplan.errors import SourceError

COLUMNS = ("task", "__index_level_0__")  # of the sentences, by LeRobot's version


def sentences(where: object, rows: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Return the sentence of each task_index in the rows of meta/tasks.parquet.

    Sentences are in the column `task`, in pandas' index, or in the only column of texts. Raises
    SourceError that lists the columns if it is none of these, or if a number is missing.
    """
    rows = list(rows)
    if not rows:
        return {}
    texts = [name for name, value in rows[0].items() if isinstance(value, str)]
    found = [name for name in COLUMNS if name in texts] or texts
    if len(found) != 1 and not set(found) & set(COLUMNS):
        raise SourceError(
            f"{where}: found the columns {', '.join(rows[0])}, need one with the sentences, "
            f"called {COLUMNS[0]!r}"
        )
    try:
        return {int(row["task_index"]): str(row[found[0]] or "") for row in rows}
    except (LookupError, TypeError, ValueError, OverflowError) as e:
        raise SourceError(f"{where}: not LeRobot's tasks ({type(e).__name__}: {e})") from None


def of_episode(episode: Mapping[str, Any]) -> list[str]:
    """Return the sentences that meta/episodes has of an episode."""
    found = episode.get("tasks")
    found = [found] if isinstance(found, str) else found
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
