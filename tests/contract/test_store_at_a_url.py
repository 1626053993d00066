"""An episode store at a URL: what one in a folder promises, without a lock or a rename."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import fsspec
import pytest
from stored import EVERY, SPEC, Crash, assert_same, episode, until_crash
from zarr.storage import FsspecStore

from latentplan.data import pending
from latentplan.data.store import ZarrStore
from latentplan.errors import MissingDependency, StoreError

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    root = f"/{request.node.originalname}"
    yield f"memory:/{root}/data.zarr"
    if memory.exists(root):
        memory.rm(root, recursive=True)


def test_a_store_at_a_url_holds_what_one_in_a_folder_holds(tmp_path: Path, url: str) -> None:
    for place in (url, tmp_path / "a.zarr"):
        with ZarrStore.create(place, SPEC, settings={"seed": 3}) as store:
            for number in range(7):
                store.append(episode(number))
                with ZarrStore.open(place) as reader:
                    assert_same(reader.episode(-1), episode(number))
    with ZarrStore.open(url) as store, ZarrStore.open(tmp_path / "a.zarr") as other:
        assert (len(store), store.spec, store.settings) == (7, SPEC, {"seed": 3})
        for number in range(7):
            assert_same(store.episode(number), other.episode(number))
        for name in ("observation/rgb", "action"):
            assert store.disk_bytes(name) == other.disk_bytes(name) > 0
    with pytest.raises(StoreError, match="is there already"):
        ZarrStore.create(url, SPEC)


@EVERY
def test_a_kill_at_a_url_loses_nothing_either(
    url: str, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    memory, total, crashes = type(fsspec.filesystem("memory")), 3, 0
    put, remove, write = memory.pipe_file, memory.rm_file, FsspecStore.set
    for steps in range(0, 1000, every):
        place = url.replace("data", str(steps))
        store = ZarrStore.create(place, SPEC)
        left = [steps]

        def step(action: Any, *given: Any, left: list[int] = left, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return action(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(memory, "pipe_file", partialmethod(partial(step, put)))
            patch.setattr(memory, "rm_file", partialmethod(partial(step, remove)))
            patch.setattr(FsspecStore, "set", partialmethod(partial(step, write)))
            appended, crashed = until_crash(store, total)
        if not crashed:
            break
        crashes += 1
        with ZarrStore.open(place, "a") as store:
            assert appended <= len(store) <= appended + 1
            for number in range(len(store), total):
                store.append(episode(number))
        with ZarrStore.open(place) as store:
            assert len(store) == total
            for number in range(total):
                assert_same(store.episode(number), episode(number))
            assert not store._location.sizes(pending.FOLDER)
    assert crashes > 20 // every


def test_two_writers_at_a_url_notice_each_other(url: str) -> None:
    first = ZarrStore.create(url, SPEC)
    second = ZarrStore.open(url, "a")
    first.append(episode(0))
    with pytest.raises(StoreError, match="another process is writing"):
        second.append(episode(0))
    first.append(episode(1))  # two fill a shard: they are in the arrays, and their files gone
    with pytest.raises(StoreError, match="another process is writing.*2 episodes"):
        second.append(episode(5))
    with ZarrStore.open(url) as store:
        assert [store.episode(number).seed for number in range(2)] == [
            episode(number).seed for number in range(2)
        ]


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    with ZarrStore.create(f"file://{tmp_path}/a.zarr", SPEC) as store:
        store.append(episode(0))
        with pytest.raises(StoreError, match="another process is writing"):
            ZarrStore.open(tmp_path / "a.zarr", "a")
    assert_same(ZarrStore.open(tmp_path / "a.zarr").episode(0), episode(0))


def test_a_url_that_leads_nowhere_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="no such episode store"):
        ZarrStore.open(url)
    with pytest.raises(StoreError, match="nofs://a/b: Protocol not known: nofs"):
        ZarrStore.open("nofs://a/b")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingDependency, match=r's3://.*pip install "latentplan\[s3\]"'):
        ZarrStore.create("s3://bucket/a.zarr", SPEC)
