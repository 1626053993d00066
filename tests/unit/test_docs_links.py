"""Links, images and paths in the pages point to what exists, and the index lists every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INDEX = ROOT / "docs" / "README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|^ {4,}\S.*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"`((?:latentplan|sim|real_robot|robots|configs|tests|benchmarks|docs)/[\w./]+)`")


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def links(page: Path) -> list[tuple[Path, str]]:
    """Return the relative links and images of a page, each as a path and an anchor."""
    found = []
    for target in LINK.findall(CODE.sub("", page.read_text())):
        if not re.match(r"https?:|mailto:", target):
            path, _, anchor = target.partition("#")
            found.append(((page.parent / path).resolve() if path else page, anchor))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), f"{target.name}#{anchor}"
    for path in PATH.findall(page.read_text()):
        assert (ROOT / path).exists(), path


def test_the_index_lists_every_page() -> None:
    listed = {target for target, _ in links(INDEX)}
    assert {page for page in PAGES[2:] if page != INDEX} <= listed


def test_a_missing_target_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b\n[x](gone.md) ![y](a.png)\n[z](#a-b) `[no](code.md)` [w](https://a.b)\n")
    found = links(page)
    assert [path.name for path, _ in found] == ["gone.md", "a.png", "page.md"]
    assert not found[0][0].exists() and found[2][1] in anchors(page)
