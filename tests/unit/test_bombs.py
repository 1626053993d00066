"""Hostile files are refused in one line, within bounds of time and memory."""

from __future__ import annotations

import hostile
import pytest


@pytest.mark.parametrize("kind", hostile.READERS)
def test_bombs_are_refused_and_damaged_files_too_or_read(kind: str) -> None:
    check(hostile.attack(kind, count=150, budget="items=50000"), count=150)


@pytest.mark.slow
@pytest.mark.parametrize("kind", hostile.READERS)
def test_many_damaged_files_by_the_default_budget(kind: str) -> None:
    check(hostile.attack(kind, count=1500), count=1500)


def check(found: dict[str, str], *, count: int) -> None:
    bombs = {name: outcome for name, outcome in found.items() if not name.isdecimal()}
    assert bombs and "read" not in bombs.values(), bombs
    assert len(found) == len(bombs) + count
