"""A small slice of `benchmarks/kills.py`: some operations, killed at random and run again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLICE = "import lerobot; import minari; train vqvae; export; plan"


@pytest.mark.slow
def test_what_is_killed_and_run_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    file = tmp_path / "kills.json"
    line = ["benchmarks/kills.py", "--kills", "2", "--only", SLICE, "--json", str(file)]
    done = subprocess.run(
        [sys.executable, *line], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())["operations"]
    assert len(rows) == 6 and sum(row["kills"] for row in rows) >= 9
    assert all(row["equal"] + row["untouched"] == row["trials"] for row in rows)
    assert not sum(row["leftovers"] + row["processes"] for row in rows)
