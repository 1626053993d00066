"""The Python of pages that need no data runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import point_world
import pytest

from latentplan.protocols import Normalised

DOCS = Path(__file__).parents[2] / "docs"
# Blocks that run one after the other in one namespace; later ones stand for the reader's code.
PAGES = {
    "arms.md": 1,
    "cameras.md": 1,
    "envs.md": 1,
    "extending.md": 6,
    "python.md": 2,
    "tabletop.md": 1,
}


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow) if p == "python.md" else p for p in PAGES],
)
def test_python_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.DOTALL)
    namespace = {"__name__": "notebook"}
    for number, block in enumerate(blocks[: PAGES[page]]):
        exec(compile(block, f"{page}[{number}]", "exec", dont_inherit=True), namespace)
    if page == "extending.md":
        assert float(capsys.readouterr().out) > 0.8  # success of the example's planner
        assert isinstance(namespace["MyDynamics"](point_world.spec(("joints",))), Normalised)
