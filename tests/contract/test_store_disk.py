"""A disk that is full or closed to us: one error, nothing half-written, and a retry succeeds."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from full_disk import files_of_at_most
from stored import SPEC, arrays, assert_equal_arrays, assert_same, episode, filled

from latentplan.data.derived import derive
from latentplan.data.store import ZarrStore
from latentplan.errors import StoreError

pytestmark = pytest.mark.usefixtures("small_shards")
TOTAL = 5


def assert_whole(path: Path, least: int) -> int:
    """Assert that a store holds the first episodes, `least` or more, and nothing half-written."""
    assert not list(path.parent.rglob(".*partial*"))
    with ZarrStore.open(path) as store:
        assert len(store) >= least
        for number in range(len(store)):
            assert_same(store.episode(number), episode(number))
        return len(store)


def append(path: Path) -> tuple[int, str]:
    """Append what is missing of TOTAL; return how many episodes there are, and the error."""
    done = 0
    try:
        with ZarrStore.open(path, "a") as store:
            done = len(store)
            for number in range(done, TOTAL):
                store.append(episode(number))
                done = number + 1
    except StoreError as e:
        return done, str(e)
    return done, ""


@pytest.mark.parametrize(
    "size", [150, 700, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 60, 420, 900))]
)
def test_a_disk_that_takes_no_more_loses_nothing(tmp_path: Path, size: int) -> None:
    whole = arrays(filled(tmp_path / "whole.zarr", TOTAL))
    path = tmp_path / "a/a.zarr"
    with files_of_at_most(size), pytest.raises(StoreError, match="disk is full; free some space"):
        ZarrStore.create(path, SPEC)
    assert not path.exists()
    filled(path, 1)
    for _ in range(2):
        with files_of_at_most(size):
            done, error = append(path)
        assert "disk is full; free some space" in error and "\n" not in error
        assert_whole(path, done)
    append(path)
    assert_equal_arrays(path, whole | {"episode/info/friction": np.arange(TOTAL) / 7})


def test_one_store_goes_on_when_there_is_space_again(tmp_path: Path) -> None:
    path = tmp_path / "a/a.zarr"
    with ZarrStore.create(path, SPEC) as store:
        for number in range(TOTAL):
            for size in (0, 300, 700, 1100):
                with files_of_at_most(size):
                    try:
                        store.append(episode(number))
                        break
                    except StoreError as e:
                        assert "disk is full" in str(e)
                assert_whole(path, number)
                assert len(store) == number
            else:
                store.append(episode(number))
            assert_same(store.episode(-1), episode(number))
            assert len(store) == number + 1
    assert_whole(path, TOTAL)


def test_a_derived_store_goes_on_when_there_is_space_again(tmp_path: Path) -> None:
    path = tmp_path / "b/b.zarr"
    ZarrStore.create(path, SPEC).close()
    with ZarrStore.open(filled(tmp_path / "a.zarr", TOTAL)) as store:
        for size in (100, 900):
            with files_of_at_most(size), pytest.raises(StoreError, match="disk is full"):
                derive(store, path, spec=SPEC, make=list)
            assert_whole(path, 0)
        with derive(store, path, spec=SPEC, make=list):
            assert assert_whole(path, TOTAL) == TOTAL


@pytest.fixture
def readable() -> Iterator[Path]:
    """Return a folder that every user of the machine can enter, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user who may write nothing, also if the tests are run by root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_may_not_be_written_to(readable: Path) -> None:
    path = filled(readable / "a.zarr", 3)
    shutil.copytree(path, readable / "b.zarr")
    files = {file: file.stat().st_size for file in path.rglob("*")}
    for folder in [readable, path, *(f for f in path.rglob("*") if f.is_dir())]:
        folder.chmod(0o555)
    (path / ".lock").chmod(0o444)
    try:
        with nobody():
            assert_whole(path, 3)
            with pytest.raises(StoreError, match=r"a\.zarr: cannot be written \(Permission denied"):
                ZarrStore.open(path, "a")
            with pytest.raises(StoreError, match=r"c\.zarr: cannot be written \(Permission denied"):
                ZarrStore.create(readable / "c.zarr", SPEC)
    finally:
        for folder in [readable, path, *(f for f in path.rglob("*") if f.is_dir())]:
            folder.chmod(0o755)
    (path / ".lock").chmod(0o644)
    assert {file: file.stat().st_size for file in path.rglob("*")} == files
    with ZarrStore.open(path, "a") as store:
        store.append(episode(3))
    assert_whole(path, 4)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount).returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_real_disk_is_filled_and_freed(disk: Path) -> None:
    (disk / "other").write_bytes(bytes(400_000))
    done = 0
    with pytest.raises(StoreError, match="disk is full"):
        with ZarrStore.create(disk / "a.zarr", SPEC) as store:
            for done in range(9999):
                store.append(episode(done))
    assert done > 30
    count = assert_whole(disk / "a.zarr", done)
    with pytest.raises(StoreError, match="disk is full"):
        ZarrStore.create(disk / "b.zarr", SPEC)
    (disk / "other").unlink()
    with ZarrStore.open(disk / "a.zarr", "a") as store:
        for number in range(count, count + 9):
            store.append(episode(number))
    assert_whole(disk / "a.zarr", count + 9)
