"""A short search of every entry point: damaged input is read or refused, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from entry_points import ENTRIES, search


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_a_mutated_input_is_read_or_refused(name: str, tmp_path: Path) -> None:
    row = search(name, tmp_path / "sample", seed=0, seconds=2.0)
    assert row["found"] == {} and row["inputs"]
