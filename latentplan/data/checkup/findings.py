"""Findings of the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What a check found, and where it begins."""

    check: str  # its name
    where: str  # observation, action[i] or ""
    episodes: tuple[int, ...]  # those that have it, in order
    row: int | None  # of the first of them
    text: str  # what was found, and what to do
    level: Literal["fault", "note"] = "fault"

    def line(self) -> str:
        """Return the finding in one line."""
        place = [self.where, _named(self.episodes)]
        if self.row is not None and self.episodes:
            place.append(f"row {self.row}")
        return f"{self.check}: {', '.join(filter(None, place))}: {self.text}"


def _named(episodes: Sequence[int]) -> str:
    if not episodes:
        return ""
    shown = ", ".join(map(str, episodes[:3]))
    rest = len(episodes) - 3
    kind = "episode" if len(episodes) == 1 else "episodes"
    return f"{kind} {shown}" + (f" and {rest} more" if rest > 0 else "")
