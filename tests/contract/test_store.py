"""What every episode store promises: whole episodes, bit for bit, whatever happens."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored import (
    EVERY,
    SPEC,
    Crash,
    arrays,
    assert_equal_arrays,
    assert_same,
    episode,
    filled,
    of_before,
    until_crash,
)

from latentplan.data import location, pending
from latentplan.data.location import Folder
from latentplan.data.store import ZarrStore
from latentplan.errors import ShapeError, StoreError
from latentplan.types import ActionSpec, ArraySpec, Episode, Label, Spec

pytestmark = pytest.mark.usefixtures("small_shards")

@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lengths=st.lists(st.integers(1, 13), min_size=1, max_size=9), reopen=st.integers(0, 9))
def test_gives_back_what_was_appended(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], reopen: int
) -> None:
    path = tmp_path_factory.mktemp("store") / "data.zarr"
    wanted = [episode(number, length) for number, length in enumerate(lengths)]
    with ZarrStore.create(path, SPEC) as store:
        for one in wanted[:reopen]:
            store.append(one)
    with ZarrStore.open(path, "a") as store:
        for one in wanted[reopen:]:
            store.append(one)
        assert len(store) == len(wanted)
        for number, one in enumerate(wanted):  # some in the arrays, some pending
            assert_same(store.episode(number), one)
    with ZarrStore.open(path, spec=SPEC) as store:
        assert store.spec == SPEC
        assert store.ends.tolist() == np.cumsum([length + 1 for length in lengths]).tolist()
        for number, one in enumerate(wanted):
            assert_same(store.episode(number), one)
        whole = np.concatenate([one.observations["rgb"] for one in wanted])
        middle = len(whole) // 2
        for start, stop in ((0, len(whole)), (middle, middle + 1), (1, 99), (middle, middle)):
            np.testing.assert_array_equal(
                store.rows("observation/rgb", start, stop), whole[start:stop]
            )


def test_last_action_row_of_an_episode_is_zero(tmp_path: Path) -> None:
    with ZarrStore.open(filled(tmp_path / "a.zarr", 5)) as store:
        last = store.ends - 1
        assert not store.rows("action", 0, 99)[last].any()
        assert not store.rows("reward", 0, 99)[last].any()


def test_numbers_of_episodes_come_back_by_name(tmp_path: Path) -> None:
    late = [np.nan, np.nan, -1, -1, -1]
    with ZarrStore.create(tmp_path / "a.zarr", SPEC) as store:
        for number in range(5):
            store.append(episode(number))
            said = store.info()  # some in the arrays, some pending
            np.testing.assert_array_equal(said["friction"], np.arange(number + 1) / 7)
            np.testing.assert_array_equal(
                said.get("late", late[:2])[: number + 1], late[: number + 1]
            )
        for name in ("", "a/b"):
            with pytest.raises(ShapeError, match=r"Episode.info: found '(a/b)?', a name"):
                store.append(Episode(**{**vars(episode(5)), "info": {name: 1.0}}))
    with ZarrStore.open(tmp_path / "a.zarr") as store:
        np.testing.assert_array_equal(store.info()["late"], late)


def test_a_store_from_before_numbers_were_kept_opens_and_goes_on(tmp_path: Path) -> None:
    path = of_before(filled(tmp_path / "a.zarr", 4))
    shutil.rmtree(path / "episode/info")
    with ZarrStore.open(path, "a") as store:
        assert store.info() == {} and store.episode(3).info == {}
        store.append(episode(4))
    with ZarrStore.open(path) as store:
        np.testing.assert_array_equal(store.info()["friction"], [np.nan] * 4 + [4 / 7])
        assert_same(store.episode(4), episode(4))


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    said=st.lists(
        st.lists(
            st.builds(
                Label,
                text=st.text(),
                task=st.text(),
                start=st.integers(0, 2),
                stop=st.sampled_from([-1, 2, 3]),
            ),
            max_size=3,
        ),
        min_size=1,
        max_size=7,
    )
)
def test_labels_come_back_with_the_number_of_their_episode(
    tmp_path_factory: pytest.TempPathFactory, said: list[list[Label]]
) -> None:
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    wanted = []
    with ZarrStore.create(path, SPEC) as store:
        for number, labels in enumerate(said):
            store.append(replace(episode(number), labels=tuple(labels)))
            wanted += [(number, label) for label in labels]
            assert store.labels() == wanted  # some in the arrays, some pending
    with ZarrStore.open(path) as store:
        assert store.labels() == wanted
        assert [store.episode(i).labels for i in range(len(said))] == [tuple(x) for x in said]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 4), (3, 2), (4, -1), (0, -2)])
def test_labels_outside_the_episode_are_refused(tmp_path: Path, start: int, stop: int) -> None:
    with ZarrStore.create(tmp_path / "a.zarr", SPEC) as store:
        with pytest.raises(ShapeError, match=f"labels: 'x' is from {start} to {stop}, .* 0 to 3"):
            store.append(replace(episode(0), labels=(Label("x", "", start, stop),)))
        assert len(store) == 0


def test_a_store_without_labels_reads_and_goes_on(tmp_path: Path) -> None:
    path = of_before(filled(tmp_path / "a.zarr", 4))
    shutil.rmtree(path / "episode/labels")  # as one from before there were labels
    with ZarrStore.open(path, "a") as store:
        assert store.labels() == [] and store.episode(2).labels == ()
        store.append(episode(4))
    with ZarrStore.open(path) as store:
        assert store.labels() == [(4, label) for label in episode(4).labels]


def test_index_counts_from_the_end_and_is_checked(tmp_path: Path) -> None:
    with ZarrStore.open(filled(tmp_path / "a.zarr", 3)) as store:
        assert_same(store.episode(-1), episode(2))
        for index in (3, -4):
            with pytest.raises(IndexError):
                store.episode(index)


def test_a_reader_sees_the_episodes_of_an_open_writer(tmp_path: Path) -> None:
    with ZarrStore.create(tmp_path / "a.zarr", SPEC) as writer:
        for number in range(5):
            writer.append(episode(number))
            with ZarrStore.open(tmp_path / "a.zarr") as reader:
                assert len(reader) == number + 1
                assert_same(reader.episode(number), episode(number))
        before = ZarrStore.open(tmp_path / "a.zarr")
    assert [before.episode(number).seed for number in range(5)] == [
        episode(number).seed for number in range(5)
    ]


def crash_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Raise Crash at the disk operation number `steps`, and at every later one."""
    left = [steps]

    def step() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Crash

    write, unlink, replace = location._Durable.set, Path.unlink, Path.replace

    async def set_(self, key, value):  # type: ignore[no-untyped-def]
        step()
        await write(self, key, value)

    def unlink_(self: Path, missing_ok: bool = False) -> None:
        step()
        unlink(self, missing_ok)

    def replace_(self: Path, target: Path) -> Path:
        if target.suffix == ".npz" or target.name == "commit.json":  # zarr's own are in set
            step()
        return replace(self, target)

    monkeypatch.setattr(location._Durable, "set", set_)
    monkeypatch.setattr(Path, "unlink", unlink_)
    monkeypatch.setattr(Path, "replace", replace_)


@EVERY
def test_a_crash_at_any_step_loses_at_most_the_episode_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    total = 3  # two fill a shard, the third is written on closing
    undisturbed = arrays(filled(tmp_path / "whole.zarr", total))
    empty = filled(tmp_path / "empty.zarr", 0)
    crashes = 0
    for steps in range(0, 1000, every):
        path = tmp_path / f"{steps}.zarr"
        shutil.copytree(empty, path)
        store = ZarrStore.open(path, "a")
        with monkeypatch.context() as patch:
            crash_after(patch, steps)
            appended, crashed = until_crash(store, total)
        if not crashed:
            break
        crashes += 1
        store._release()  # as the kernel does for a process that is gone
        with ZarrStore.open(path) as reader:  # readable at once, before any repair
            assert appended <= len(reader) <= appended + 1
            for number in range(len(reader)):
                assert_same(reader.episode(number), episode(number))
        with ZarrStore.open(path, "a") as store:
            group = zarr.open_group(path, mode="r")
            ends = np.asarray(group["episode/end"][:])
            assert group["action"].shape[0] == ends.max(initial=0)  # no rows without an end
            for number in range(len(store), total):
                store.append(episode(number))
        assert_equal_arrays(path, undisturbed)
        assert not list(path.rglob("*.partial*")) and not list(path.rglob("*.npz"))
    assert crashes > 30 // every  # the steps of appending, of writing shards and of cleaning up


def test_ctrl_c_amid_an_episode_is_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives = []

    def interrupted(archive: zipfile.ZipFile, *_: object) -> None:
        archives.append(archive)
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile, "_ZipWriteFile", interrupted)  # whose end a zip then misses
    with pytest.raises(KeyboardInterrupt):
        pending.write(Folder(tmp_path), 0, episode(0))
    assert not list(tmp_path.iterdir())
    (archive,) = archives
    archive._writing = False  # or it would warn that it cannot be closed
    archive.close()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with ZarrStore.create(tmp_path / "a.zarr", SPEC):
        with pytest.raises(StoreError, match="another process is writing"):
            ZarrStore.open(tmp_path / "a.zarr", "a")
    ZarrStore.open(tmp_path / "a.zarr", "a").close()


def test_a_reader_does_not_append(tmp_path: Path) -> None:
    with ZarrStore.open(filled(tmp_path / "a.zarr", 1)) as store:
        with pytest.raises(StoreError, match="mode 'a'"):
            store.append(episode(1))
    assert len(ZarrStore.open(tmp_path / "a.zarr")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: {"observations": {"rgb": e.observations["rgb"]}}, "need .*joints"),
        (lambda e: {"actions": e.actions[:, :2]}, "action: found float32 rows of shape"),
        (lambda e: {"actions": e.actions.astype(np.float64)}, "action: found float64"),
        (lambda e: {"actions": e.actions * np.nan}, "NaN or infinite"),
    ],
)
def test_an_episode_of_another_spec_is_refused(tmp_path: Path, change, message: str) -> None:
    good = episode(0)
    bad = Episode(**{**vars(good), **change(good)})
    with ZarrStore.create(tmp_path / "a.zarr", SPEC) as store:
        with pytest.raises(ShapeError, match=message):
            store.append(bad)
        store.append(good)
        assert len(store) == 1
        assert_same(store.episode(0), good)


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    filled(tmp_path / "a.zarr", 1)
    with pytest.raises(StoreError, match="is there already"):
        ZarrStore.create(tmp_path / "a.zarr", SPEC)
    assert len(ZarrStore.open(tmp_path / "a.zarr")) == 1


def test_what_is_not_a_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    zarr.open_group(tmp_path / "foreign", mode="w")
    for mode in ("r", "a"):
        with pytest.raises(StoreError, match="no such episode store"):
            ZarrStore.open(tmp_path / "nowhere", mode)
        for name in ("folder", "file", "foreign"):
            with pytest.raises(StoreError, match=f"{name}: is not an episode store"):
                ZarrStore.open(tmp_path / name, mode)
    assert os.listdir(tmp_path / "folder") == []


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.zarr", 1)
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"]["latentplan"]["schema"] = 99
    (path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match="schema version 99, this version .* reads 1 and 2"):
        ZarrStore.open(path)


def test_another_spec_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.zarr", 1)
    other = Spec(SPEC.observation, ActionSpec((-2.0,) * 3, (1.0,) * 3))
    with pytest.raises(StoreError, match=r"spec\.action\.low: the store has \[-1.0"):
        ZarrStore.open(path, "a", spec=other)
    ZarrStore.open(path, "a", spec=SPEC).close()  # the lock was given back


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0xFF
    file.write_bytes(content)


def test_damage_is_told_not_returned(tmp_path: Path) -> None:
    path = filled(tmp_path / "flipped.zarr", 6)
    flip_a_byte(path / "observation/rgb/c/1/0/0/0")
    with ZarrStore.open(path) as store:
        with pytest.raises(StoreError, match="observation/rgb cannot be read.*damaged"):
            store.rows("observation/rgb", 0, 24)

    path = filled(tmp_path / "lost.zarr", 6)
    (path / "observation/rgb/c/1/0/0/0").unlink()
    with pytest.raises(StoreError, match="observation/rgb/c/1/0/0/0 is missing.*damaged"):
        ZarrStore.open(path)

    path = filled(tmp_path / "cut.zarr", 6)
    (path / "action/zarr.json").write_text("{")
    with pytest.raises(StoreError, match="arrays cannot be read"):
        ZarrStore.open(path)

    path = tmp_path / "pending.zarr"
    ZarrStore.create(path, SPEC).close()
    pending.write(Folder(path), 0, episode(0))
    flip_a_byte(path / ".pending/00000000.npz")
    with pytest.raises(StoreError, match="damaged"):
        ZarrStore.open(path)


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, whole = tmp_path / "a.zarr", arrays(filled(tmp_path / "whole.zarr", 4))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = ZarrStore.create(path, SPEC)
    store.append(episode(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(2):
            with pytest.raises(StoreError, match="disk is full.*are kept"):
                store.append(episode(1))
    assert len(store) == 1
    with monkeypatch.context() as patch:
        patch.setattr(location._Durable, "set", full)
        with pytest.raises(StoreError, match="disk is full.*are kept"):
            store.append(episode(1))  # fills a shard, which finds no place
        with pytest.raises(StoreError, match="disk is full"):
            store.close()
    with ZarrStore.open(path) as reader:
        assert [reader.episode(i).seed for i in range(len(reader))] == [episode(0).seed]
    with ZarrStore.open(path, "a") as store:
        for number in (1, 2, 3):
            store.append(episode(number))
    assert_equal_arrays(path, whole)


@pytest.mark.parametrize(
    ("key", "array", "says"),
    [
        ("x", ArraySpec((0,)), r"'x' has rows of shape \(0,\), which hold no numbers; leave it"),
        ("x", ArraySpec((2, 0, 3), "uint8"), "which hold no numbers"),
        ("x", ArraySpec((2,), "float128"), "'x' holds float128, not numbers of at most 64 bits"),
        ("x", ArraySpec((2,), "<U5"), "not numbers"),
        ("x", ArraySpec((2,), ">f4"), "'x' holds '>f4', need the dtype's name, 'float32'"),
        ("x", ArraySpec((2,), "floaty"), "'floaty', which is not the name of a dtype"),
        *(
            (name, ArraySpec((2,)), "has a name that cannot be one of a folder")
            for name in ("", "..", "a/../b", "/a", "a/", "a\\b", "a\0b", "a\nb", "\ud800")
        ),
        ("é" * 101, ArraySpec((2,)), "has a name of more than 200 bytes"),
    ],
)
def test_an_observation_that_no_store_can_hold_is_named(tmp_path, key, array, says):
    spec = Spec({"fine": ArraySpec((2,)), key: array}, ActionSpec((-1.0,), (1.0,)))
    with pytest.raises(ShapeError, match=f"^Spec.observation: .*{says}"):
        ZarrStore.create(tmp_path / "a.zarr", spec)
    assert list(tmp_path.iterdir()) == []
