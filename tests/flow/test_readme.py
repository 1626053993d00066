"""The README is true: its commands run as they stand but for smaller numbers, and its code too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from latentplan.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SMALLER = {"collect": ("--episodes ", 12), "plan": ("--episodes ", 1)}
STAGES = [f"training.{stage}.steps=6" for stage in ("base", "dynamics", "inverse")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def scaled(command: str) -> list[str]:
    """Return the arguments of a command line of the README, with smaller numbers."""
    name, *_ = words = shlex.split(command)[1:]
    if name == "train":
        return [*words, *STAGES]
    if name not in SMALLER:
        return words
    before, number = SMALLER[name]
    smaller, count = re.subn(rf"{before}\d+", f"{before}{number}", command)
    assert count == 1, f"{command}: has no {before}N that could be scaled"
    return shlex.split(smaller)[1:]


def test_commands_and_code_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    three = [line for line in lines if line.startswith("latentplan ")]
    assert [shlex.split(line)[1] for line in three] == ["collect", "train", "plan"]
    inline = re.findall(r"`(latentplan (?:plan|list|show|doctor)[^`]*)`", README)
    assert len(inline) >= 4
    for command in [*three, *dict.fromkeys(inline)]:
        assert main(scaled(command)) == 0, command
    library, loop = blocks("python")
    for before, after in (
        ("episodes=1500", "episodes=12"),
        ("resume=True", f"resume=True, overrides={STAGES}"),
        ("episodes=40", "episodes=1"),
    ):
        assert library.count(before) == 1
        library = library.replace(before, after)
    capsys.readouterr()
    exec(compile(library, "README.md", "exec"), {})  # continues with what the commands left
    assert re.fullmatch(r"progress -?\d+\.\d\d\n", capsys.readouterr().out)
    exec(compile(loop, "README.md", "exec"), {})
    assert re.fullmatch(
        r"\d+\.\d cm from the goal\n\d+\.\d ms per action\n", capsys.readouterr().out
    )


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 110
