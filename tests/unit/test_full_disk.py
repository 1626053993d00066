"""A disk that is full or read-only, for every command that writes: one line, nothing by halves.

A limit on the size of files stands for a full disk: beyond it a write fails with EFBIG. A folder is
made read-only by a bind mount in a namespace of its own, which holds for root too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import calvin_writer
import pytest
from full_disk import files_of_at_most

from latentplan import cli

COLLECT = ("collect", "toy:ToyEnv", "--episodes", "3", "--workers", "0", "length=8", "--out")
CFM = ("channels=[4,4]", "strides=[2,2]", "hidden=[8,8]", "latent=4", "window=2", "batch=4")
PLAN = ("plan", "--policy", "random", "--env", "toy:ToyEnv", "--episodes", "1", "length=2")
REACH = ("--task", "reach", "--episodes", "1", "--steps", "2")
LINES = {  # each makes `out`, or `out` with a suffix
    "collect": (*COLLECT, "out.zarr"),
    "import": ("import", "calvin", "calvin", "--out", "out.zarr", "--workers", "0"),
    "train": ("train", "cfm", "--data", "a.zarr", "--run", "out", *CFM, "steps=2", "held_out=0.4"),
    "plan": (*PLAN, "--out", "out"),
    "export as video": ("export", "lerobot", "a.zarr", "out", "--fps", "5", "codec=libx264"),
    "export as images": ("export", "lerobot", "a.zarr", "out", "--fps", "5", "--images"),
    "show as image": ("show", "a.zarr", "--out", "out.png"),
    "show as video": ("show", "a.zarr", "--out", "out.mp4"),
    "calibrate": ("calibrate", "board", "--out", "out.pdf"),
    "record": ("record", "--backend", "sim", *REACH, "--out", "out.zarr"),
    "robot": ("robot", "--backend", "sim", *REACH, "--out", "out"),
}
QUICK = ("collect", "export as video", "show as video", "calibrate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the commands read."""
    folder = tmp_path_factory.mktemp("disk")
    assert cli.main([*COLLECT, f"{folder}/a.zarr"]) == 0
    calvin_writer.write(folder / "calvin", segments=((1000, 1008),), windows=())
    return folder


def left(folder: Path) -> list[str]:
    """Return what is there and unfinished."""
    return [str(file) for file in folder.rglob("*") if "partial" in file.name]


@pytest.mark.slow_with(*(f"{name}-{limit}" for name in LINES for limit in (0, 1000)
                         if name not in QUICK or limit == 0))  # fmt: skip
@pytest.mark.parametrize("limit", [0, 1000])
@pytest.mark.parametrize("name", LINES)
def test_a_full_disk_is_told_and_the_same_goes_on_later(
    name: str,
    limit: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    for file in folder.glob("out*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    line = list(LINES[name])
    with files_of_at_most(limit):
        assert cli.main(line) == 2
    *progress, said = capsys.readouterr().err.splitlines()
    assert said.startswith("latentplan: ") and "free some" in said and not left(folder)
    assert all(re.search(r"\d+/\d+", each) for each in progress)
    if name == "train":
        line.append("--resume")
    assert cli.main(line) == 0, capsys.readouterr().err
    assert not left(folder)


TRY = """
import json, os, subprocess, sys
place, lines = sys.argv[1], json.loads(sys.argv[2])
os.chdir(place)
for command in (["mount", "--bind", place, place], ["mount", "-o", "remount,bind,ro", place]):
    subprocess.run(command, check=True)
os.chdir("/"), os.chdir(place)
from latentplan.cli import main
for line in lines:
    print("begin", flush=True), print("begin", file=sys.stderr, flush=True)
    print("code", main(line), flush=True)
"""


@pytest.mark.slow
def test_a_read_only_folder_is_told_by_every_command(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "closed"
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("out*"))
    allowed = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip("no namespaces here")
    found = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", TRY, str(place), json.dumps(list(LINES.values()))],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    codes = [line for line in found.stdout.splitlines() if line.startswith("code ")]
    assert codes == ["code 2"] * len(LINES), found.stderr
    for name, said in zip(LINES, found.stderr.split("begin\n")[1:], strict=True):
        last = said.splitlines()[-1]
        assert last.startswith("latentplan: ") and "ead-only file system" in last, (name, said)
        assert "Traceback" not in said
    assert not left(place)
