"""Paths, arguments and settings that cannot be meant: one line and exit code 2, by any command."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from processes import refused

from latentplan import cli
from latentplan.cli import of_the_disk

LONG = "n" * 300
COLLECT = ("collect", "toy:ToyEnv", "--episodes", "1", "--workers", "0")
PLAN = ("plan", "--policy", "random", "--env", "toy:ToyEnv", "--episodes", "1", "length=1")
REACH = ("--task", "reach", "--episodes", "1")
DIGITS = "9" * 5000

CASES = {
    "a store of a long name": ((*COLLECT, "--out", LONG), "File name too long"),
    "a store below a file": ((*COLLECT, "--out", "file/a.zarr"), "File exists"),
    "a store that is a file": ((*COLLECT, "--out", "file"), "file: is not an episode store"),
    "a run of a long name": (("train", "cfm", "--data", "a.zarr", "--run", LONG), "too long"),
    "a run that is a file": (
        ("train", "cfm", "--data", "a.zarr", "--run", "file"),
        "file: Not a directory; give another path",
    ),
    "data of a long name": (("train", "cfm", "--data", LONG, "--run", "run"), "too long"),
    "a report of a long name": ((*PLAN, "--out", LONG), "too long"),
    "a report that is a file": ((*PLAN, "--out", "file"), "file: the folder cannot be made"),
    "a planner of a long name": (("plan", "--run", LONG), "too long"),
    "an export of a long name": (
        ("export", "lerobot", "a.zarr", LONG, "--fps", "5"),
        "too long",
    ),
    "an export below a file": (
        ("export", "lerobot", "a.zarr", "file/x", "--fps", "5"),
        "file: File exists",
    ),
    "an image of a long name": (("show", "a.zarr", "--out", f"{LONG}.png"), "too long"),
    "a video below a file": (("show", "a.zarr", "--out", "file/x.mp4"), "file: File exists"),
    "a target below a file": (("calibrate", "board", "--out", "file/x.pdf"), "file: File exists"),
    "images of a long name": (("calibrate", LONG, "--out", "c.yaml"), "too long"),
    "data to import of a long name": (("import", "calvin", LONG, "--out", "a.zarr"), "too long"),
    "an arm of a long name": (("robot", "--backend", "sim", "--robot", LONG, *REACH), "no robot"),
    "a power as a port": (("robot", "--address", "x:²", *REACH), "--address: found 'x:²', need HO"),
    "an endless port": (("robot", "--address", f"x:{DIGITS}", *REACH), "--address: found 'x:9999"),
    "a host without a name": (("robot", "--address", "..:80", *REACH), "--address: found '..:80'"),
    "a host of a long name": (("robot", "--address", f"{LONG}:80", *REACH), "need HOST:PORT"),
    "an endless number": ((*COLLECT, "--out", "b.zarr", f"env.discs={DIGITS}"), "5010 characters"),
    "an endless option": (("show", "a.zarr", "--episode", DIGITS), "needs a whole number"),
    "half a character": ((*COLLECT, "--out", "b.zarr", "env.discs=\ud800"), "is not text"),
    "a name that is no text": ((*COLLECT, "--out", "b.zarr", "env.discs=\udcff"), "not key=value"),
    "a zero character": ((*COLLECT, "--out", "a\0b"), "has a zero character"),
    "a relative module": (("collect", ".:b", "--out", "b", "--episodes", "1"), "no module '.' is"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store a.zarr and a file."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "file").write_text("x")
    line = [*COLLECT, "--out", f"{folder}/a.zarr", "length=2"]
    assert cli.main(line) == 0
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    line, said = CASES[case]
    before = {file.name for file in folder.iterdir()}
    assert said in refused(list(line), capsys)
    assert {file.name for file in folder.iterdir()} == before


def test_a_name_that_is_no_text_is_a_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    name = "\udcff.png"  # of bytes that are not UTF-8
    assert cli.main(["show", "a.zarr", "--out", name]) == 0
    assert (folder / name).exists()
    (folder / name).unlink()


PACKAGE = Path(cli.__file__).parent


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "x", "run/a"), "run/a: the disk is full; free some space"),
        (OSError(errno.EFBIG, "x"), "disk: the disk is full"),
        (OSError(errno.EACCES, "Permission denied", "run/.a.12.partial.json"), "run/a.json: Perm"),
        (OSError(errno.ENOENT, "No such file", "run/log"), "run/log: No such file"),
        (OSError(errno.ENOENT, "No such file", "other/log"), None),  # no argument names it
        (OSError(errno.EACCES, "Permission denied", str(PACKAGE / "cli.py")), None),
        (OSError(errno.ENOENT, "No such file", str(PACKAGE / "gone.j2")), None),
        (OSError(errno.EBADF, "Bad file descriptor"), None),
        (OSError("no number"), None),
    ],
)
def test_an_error_of_ours_is_not_taken_for_the_users(error: OSError, line: str | None) -> None:
    found = of_the_disk(error, ["train", "cfm", "--run", "run"])
    assert found is None if line is None else (found or "").startswith(line)
