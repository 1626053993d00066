"""A damaged store: what is absent is never taken for empty, and nothing is cut without evidence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import refused
from stored import SPEC, assert_same, episode, filled, of_before
from zarr.storage import _local

from latentplan.data import commit, pending
from latentplan.data.location import Folder
from latentplan.data.store import ZarrStore
from latentplan.errors import StoreError
from latentplan.types import Episode, Label

pytestmark = pytest.mark.usefixtures("small_shards")
TOTAL = 5  # of `killed`: four in the arrays, two shards of them, and one that waits


def appended(number: int) -> Episode:
    return replace(episode(number), info={"friction": number / 7})


def killed(path: Path) -> Path:
    """Return a store whose writer was killed while an episode waited."""
    store = ZarrStore.create(path, SPEC)
    for number in range(TOTAL):
        store.append(appended(number))
    assert len(store._pending) == 1
    store._release()  # as the kernel does for a process that is gone
    return path


def everything(path: Path) -> list[Any]:
    with ZarrStore.open(path) as store:
        found: list[Any] = [store.labels(), {k: v.tolist() for k, v in store.info().items()}]
        for number in range(len(store)):
            e = store.episode(number)
            found.append((e.seed, e.terminated, e.truncated, e.info, e.labels))
            found += [x.tolist() for x in (e.actions, e.rewards, *e.observations.values())]
        return found


def cut(file: Path, *, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "emptied": lambda file: cut(file, size=0),
    "halved": lambda file: cut(file, size=file.stat().st_size // 2),
    "shortened": lambda file: cut(file, size=max(file.stat().st_size - 1, 0)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.slow_with("emptied", "halved", "shortened")
def test_a_damaged_file_is_refused_or_changes_nothing(tmp_path: Path, damage: str) -> None:
    whole = killed(tmp_path / "whole.zarr")
    wanted, unread = everything(whole), set()
    files = sorted(f.relative_to(whole) for f in whole.rglob("*") if f.is_file())
    for file in files:
        path = tmp_path / "a.zarr"
        shutil.copytree(whole, path)
        DAMAGES[damage](path / file)
        try:
            assert everything(path) == wanted, file
            unread.add(file.as_posix())
        except StoreError as e:
            assert "\n" not in str(e)
        before = {f: f.read_bytes() for f in path.rglob("*") if f.is_file()}
        try:
            with ZarrStore.open(path, "a") as store:
                assert len(store) == TOTAL, file
                store.append(episode(TOTAL))
        except StoreError:  # and what is left is still there
            assert all(f.exists() for f in before if f.suffix not in (".partial", ".npz")), file
        else:
            with ZarrStore.open(path) as store:
                for number in range(TOTAL):
                    with suppress(StoreError) if file.as_posix() not in unread else nullcontext():
                        assert_same(store.episode(number), appended(number))
                assert_same(store.episode(TOTAL), episode(TOTAL))
        shutil.rmtree(path)
    expected = {".lock", "episode/zarr.json", "observation/zarr.json", "episode/info/zarr.json"}
    assert unread <= expected | {commit.FILE}, unread
    assert len(files) > 25


def test_one_lost_file_does_not_empty_a_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for of in (lambda path: path, of_before):
        path = of(filled(tmp_path / "a.zarr", 6))
        (path / "episode/end/c/0").unlink()
        assert "damaged" in refused(["show", str(path)], capsys)
        with pytest.raises(StoreError, match="episode/end.*damaged"):
            ZarrStore.open(path, "a")
        assert (path / "observation/rgb/c/2/0/0/0").exists()
        shutil.rmtree(path)


@pytest.mark.parametrize("lost", ["episode/seed/c/0", "episode/terminated/c/0", "action/c/0/0"])
def test_a_store_of_before_reads_and_goes_on_but_not_with_a_lost_file(
    tmp_path: Path, lost: str
) -> None:
    path = of_before(killed(tmp_path / "a.zarr"))
    wanted = everything(path)
    shutil.copytree(path, tmp_path / "b.zarr")
    (tmp_path / "b.zarr" / lost).unlink()
    for mode in ("r", "a"):
        with pytest.raises(StoreError, match=f"{lost} is missing.*damaged"):
            ZarrStore.open(tmp_path / "b.zarr", mode)
    with ZarrStore.open(path, "a") as store:
        assert len(store) == TOTAL
    assert everything(path) == wanted
    assert json.loads((path / "zarr.json").read_text())["attributes"]["latentplan"]["schema"] == 2
    (path / "episode/info/friction/c/0").unlink()  # from now on it counts
    with pytest.raises(StoreError, match="episode/info/friction/c/0 is missing"):
        ZarrStore.open(path)


@pytest.mark.parametrize("before", [False, True])
def test_a_killed_writer_leaves_at_most_what_waits_and_one_more(
    tmp_path: Path, before: bool
) -> None:
    """More entries of `episode/end` than that are no remains, and are not cut."""
    path = filled(tmp_path / "a.zarr", 2)
    old = (path / commit.FILE).read_bytes()
    with ZarrStore.open(path, "a") as store:
        for number in range(2, 6):
            store.append(episode(number))
    if before:
        of_before(path)
        (path / "episode/end/c/1").unlink()  # of episodes 4 and 5
        with pytest.raises(StoreError, match="has 6 entries, but only 4 can be read"):
            ZarrStore.open(path)
    else:
        (path / commit.FILE).write_bytes(old)  # from a copy that was made while it was written
        assert len(ZarrStore.open(path)) == 2
    with pytest.raises(StoreError, match="has 6 entries, but only [24] can be read"):
        ZarrStore.open(path, "a")
    (path / commit.FILE).unlink(missing_ok=True)
    if not before:  # the way out
        with ZarrStore.open(path, "a") as store:
            assert len(store) == 6


def test_a_lost_waiting_episode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with ZarrStore.create(path, SPEC) as store:
        for number in range(3):
            store.append(episode(number, length=1))
        assert len(store._pending) == 3
        shutil.copytree(path, tmp_path / "b.zarr")
    (tmp_path / "b.zarr/.pending/00000001.npz").unlink()
    for mode in ("r", "a"):
        with pytest.raises(StoreError, match=r"00000001.npz is missing; restore it .* delete"):
            ZarrStore.open(tmp_path / "b.zarr", mode)
    (tmp_path / "b.zarr/commit.json").unlink()
    with pytest.raises(StoreError, match=r"00000001.npz is missing"):  # 2 is still there
        ZarrStore.open(tmp_path / "b.zarr", "a")
    (tmp_path / "b.zarr/.pending/00000002.npz").unlink()  # as the error says
    with ZarrStore.open(tmp_path / "b.zarr", "a") as store:
        assert len(store) == 1
        store.append(episode(1))
        assert_same(store.episode(0), episode(0, length=1))


@pytest.mark.parametrize("during", ["read", "second"])
def test_a_reader_is_right_while_a_writer_moves_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    writer = ZarrStore.create(tmp_path / "a.zarr", SPEC)
    writer.append(episode(0))
    numbers: Iterator[int] = iter(range(1, 9))

    def write() -> None:
        for number in [next(numbers), next(numbers)]:
            writer.append(episode(number))  # one of them fills a shard

    read, counts = pending.read, commit.read

    def slow_read(*given: Any, **named: Any) -> dict[int, Episode]:
        write()
        found = read(*given, **named)
        write()
        return found

    reads = []

    def slow_counts(location: Any) -> Any:
        found = counts(location)
        reads.append(found)
        if len(reads) == 2:
            write()
        return found

    with monkeypatch.context() as patch:
        if during == "read":
            patch.setattr(pending, "read", slow_read)
        else:
            patch.setattr(commit, "read", slow_counts)
        reader = ZarrStore.open(tmp_path / "a.zarr")
    write()
    assert len(reader) >= 1
    for number in range(len(reader)):
        assert_same(reader.episode(number), episode(number))
    writer.close()


def test_a_shard_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "a.zarr", 3)
    reader, writer = ZarrStore.open(tmp_path / "a.zarr"), ZarrStore.open(tmp_path / "a.zarr", "a")
    get, replaced = _local._get, []

    def slow_get(path: Path, prototype: Any, byte_range: Any) -> Any:
        found = get(path, prototype, byte_range)
        if "joints" in str(path) and byte_range is not None and not replaced:  # the index
            replaced.append(path)
            writer.append(episode(3))
            writer.append(episode(4))
        return found

    monkeypatch.setattr(_local, "_get", slow_get)
    assert_same(reader.episode(2), episode(2))
    assert replaced
    writer.close()


BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "nan": (lambda a: a.update(action=a["action"] * np.nan), "action: 9 of 9 numbers are NaN"),
    "dtype": (lambda a: a.update(action=a["action"].astype("f8")), "action: found float64"),
    "shape": (lambda a: a.update(action=a["action"][:, :2]), r"action: found .* \(2,\)"),
    "no_image": (lambda a: a.pop("observation/rgb"), "need .*rgb"),
    "more": (lambda a: a.update({"observation/x": a["reward"]}), "Episode.observations.*x"),
    "length": (lambda a: a.update(reward=a["reward"][:2]), "rewards: got 2 for 3 actions"),
    "rows": (lambda a: a.update({"observation/joints": a["observation/joints"][:2]}), "got 2 rows"),
    "scalar": (lambda a: a.update(reward=np.float32(1)), "unsized"),
    "no_action": (lambda a: a.pop("action"), "'action'"),
    "flags": (lambda a: a.update(seed_terminated_truncated=np.zeros(3)), "is float64"),
    "info": (lambda a: a.update({"info/friction": np.zeros(2)}), "info/friction is float64"),
    "labels": (lambda a: a.update(labels=np.array('[{"text": 3}]')), "is no label"),
    "part": (
        lambda a: a.update(labels=np.array('[{"text": "x", "task": "", "start": 9, "stop": 9}]')),
        "'x' is from 9 to 9",
    ),
    "objects": (lambda a: a.update(action=np.array([{}], object)), "pickle|Object"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_waiting_episode_that_could_not_be_appended_is_refused(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "a.zarr"
    ZarrStore.create(path, SPEC).close()
    pending.write(Folder(path), 0, episode(0))
    file = path / pending.file(0)
    with np.load(file) as content:
        arrays = dict(content)
    change, message = BAD[bad]
    change(arrays)
    np.savez(file, **arrays, allow_pickle=True) if bad == "objects" else np.savez(file, **arrays)
    for mode in ("r", "a"):
        with pytest.raises(StoreError, match=rf"00000000\.npz is damaged.*{message}.*restore it"):
            ZarrStore.open(path, mode)
    assert file.exists()


def test_a_compressed_waiting_episode_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    ZarrStore.create(path, SPEC).close()
    (path / ".pending").mkdir()
    np.savez_compressed(path / pending.file(0), action=np.zeros((1 << 20, 3), np.float32))
    with pytest.raises(StoreError, match=r"00000000\.npz is damaged.*compressed"):
        ZarrStore.open(path)


def test_a_damaged_last_chunk_stops_appending_and_keeps_the_rest(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.zarr", 3)
    file = path / "observation/joints/c/0/0"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(StoreError, match="cannot be added to its arrays.*damaged"):
        with ZarrStore.open(path, "a") as store:
            store.append(episode(3))  # into the same chunk
    with ZarrStore.open(path) as store:
        assert len(store) == 4  # the new one waits
        assert_same(store.episode(3), episode(3))
        np.testing.assert_array_equal(
            store.rows("observation/rgb", 8, 12), episode(2).observations["rgb"]
        )


def test_files_of_an_operating_system_do_not_disturb(tmp_path: Path) -> None:
    path = killed(tmp_path / "a.zarr")
    wanted = everything(path)
    for folder in [path, *(f for f in path.rglob("*") if f.is_dir())]:
        for name in (".DS_Store", "._zarr.json", "._0", "._00000004.npz", "Thumbs.db"):
            (folder / name).write_bytes(b"\0\5\x16\7")
    assert everything(path) == wanted
    with ZarrStore.open(path, "a") as store:
        store.append(episode(TOTAL))
    with ZarrStore.open(path) as store:
        assert_same(store.episode(TOTAL), episode(TOTAL))


@pytest.mark.parametrize(
    "change",
    [
        {"labels": (Label("\ud800"),)},
        {"seed": 1 << 63},
        {"info": {"zarr.json": 1.0}},
        {"info": {"..": 1.0}},
    ],
)
def test_what_could_not_be_written_later_is_refused_at_once(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    with ZarrStore.create(tmp_path / "a.zarr", SPEC) as store:
        with pytest.raises(ValueError, match=r"Episode\.(labels|seed|info)"):
            store.append(replace(episode(0), **change))
        store.append(episode(0))
    assert len(ZarrStore.open(tmp_path / "a.zarr")) == 1
