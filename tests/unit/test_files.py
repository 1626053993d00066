"""Files and folders that exist whole or not at all, leftovers of killed processes, and locks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentplan import files
from latentplan.data.location import Folder
from latentplan.errors import StoreError
from latentplan.training import run_folder

HOLD = """
import sys
from pathlib import Path
from latentplan import files
with files.{name}(Path(sys.argv[1])) as partial:
    (partial / "part" if partial.is_dir() else partial).write_text("half")
    print(partial.name, flush=True)
    sys.stdin.read()
"""


def writer(name: str, path: Path) -> tuple[subprocess.Popen[str], Path]:
    """Return a process that is amid writing `path`, and what it writes to."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(name=name), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, path.with_name(process.stdout.readline().strip())


@pytest.mark.parametrize("name", ["replacing", "making"])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path, name: str) -> None:
    process, partial = writer(name, tmp_path / "a.txt")
    assert partial.exists()
    with files.replacing(tmp_path / "b.txt") as other:  # beside one that is still at work
        other.write_text("whole")
    assert partial.exists() and not (tmp_path / "a.txt").exists()
    process.kill()
    process.communicate()
    old = tmp_path / ".best.12345.partial.safetensors"  # as versions before named them
    old.write_text("half")
    for kept in (".x.partial", "a.123.partial", ".notes"):
        (tmp_path / kept).write_text("not ours")
    with files.making(tmp_path / "c") as folder:
        assert not partial.exists() and not old.exists()
        (folder / "x").write_text("whole")
    kept = {".x.partial", "a.123.partial", ".notes"}
    assert {file.name for file in tmp_path.iterdir()} == {"b.txt", "c", *kept}
    assert (tmp_path / "c/x").read_text() == "whole"


@pytest.mark.parametrize("name", ["replacing", "making"])
def test_what_fails_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ZeroDivisionError), getattr(files, name)(tmp_path / "new/a.txt"):
        raise ZeroDivisionError
    assert not list((tmp_path / "new").iterdir())


def test_a_name_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    path = tmp_path / ("ö" * 125 + ".txt")
    with files.replacing(path) as partial:
        partial.write_text("x")
    files.write(path, b"y")
    assert path.read_text() == "y"


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    with files.replacing(link) as partial:
        partial.write_text("new")
    assert (target.read_text(), link.read_text()) == ("precious", "new")
    link.unlink()
    link.symlink_to(target)
    files.write(link, b"new")
    assert (target.read_text(), link.is_symlink()) == ("precious", False)


def test_a_lock_follows_no_link_and_empties_no_file(tmp_path: Path) -> None:
    target, lock = tmp_path / "target", tmp_path / ".lock"
    target.write_text("precious")
    lock.symlink_to(target)
    with pytest.raises(OSError, match="symbolic link; remove it"):
        files.lock(lock)
    with pytest.raises(StoreError, match="symbolic link; remove it"):
        Folder(tmp_path).lock()
    with pytest.raises(OSError, match="symbolic link"):
        run_folder.claim(tmp_path)
    lock.unlink()
    lock.symlink_to(tmp_path / "nothing")  # which would be made
    with pytest.raises(OSError, match="symbolic link"):
        files.lock(lock)
    assert target.read_text() == "precious" and not (tmp_path / "nothing").exists()
    lock.unlink()
    lock.write_text("a note")
    files.lock(lock).close()
    assert lock.read_text() == "a note"


def test_a_folder_with_nothing_of_a_run_is_not_in_use(tmp_path: Path) -> None:
    for name in (".lock", ".DS_Store", "._best.safetensors", ".config.1f.partial.yaml"):
        (tmp_path / name).touch()
    assert not run_folder.in_use(tmp_path)
    (tmp_path / "config.yaml").touch()
    assert run_folder.in_use(tmp_path)


def test_files_keep_the_permissions_that_the_user_chose(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "a", b"")
        with files.making(tmp_path / "b"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o750
