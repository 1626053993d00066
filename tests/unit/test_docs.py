"""Links, paths and commands in the pages are valid, and the index lists every page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from latentplan.cli import app

ROOT = Path(__file__).parents[2]
INDEX = ROOT / "docs" / "README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|^ {4,}\S.*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"`((?:latentplan|sim|real_robot|robots|configs|tests|benchmarks|docs)/[\w./]+)`")

FENCED = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4,}latentplan (?:.*\\\n)*.*$", re.MULTILINE)
COMMAND = re.compile(r"^ *latentplan ((?:.*\\\n)*.*)$", re.MULTILINE)
INLINE = re.compile(r"`latentplan ([^`]+)`")


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page: Path) -> None:
    text = page.read_text()
    shell = "\n".join(FENCED.findall(text) + INDENTED.findall(text))
    for command in COMMAND.findall(shell) + INLINE.findall(text):
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        check(typer.main.get_command(app), [word for word in words if word != "..."])


def check(command: Any, words: list[str]) -> None:
    """Fail unless `words` name a command that exists and options that it has.

    Arguments and required options may be missing, as in a sentence that names a command.
    """
    if hasattr(command, "commands"):
        if words and not words[0].startswith("-"):
            assert words[0] in command.commands, words
            check(command.commands[words[0]], words[1:])
        return
    options = {name for option in command.params for name in [*option.opts, *option.secondary_opts]}
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= {*options, "--help"}, words


def test_a_missing_target_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b\n[x](gone.md) ![y](a.png)\n[z](#a-b) `[no](code.md)` [w](https://a.b)\n")
    found = links(page)
    assert [path.name for path, _ in found] == ["gone.md", "a.png", "page.md"]
    assert not found[0][0].exists() and found[2][1] in anchors(page)
