"""The Python of pages that need no data runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {"arms.md": 1, "cameras.md": 1, "envs.md": 1, "tabletop.md": 1}  # blocks that run alone


@pytest.mark.parametrize("page", PAGES)
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.DOTALL)
    assert len(blocks) == PAGES[page]
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}[{number}]", "exec"), {})
