"""latentplan import: any source into a store, resumed, by any number of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import calvin_writer
import fsspec
import numpy as np
import pytest
import zarr

from latentplan import registry
from latentplan.api.import_data import import_data as run
from latentplan.cli import main
from latentplan.data import importing
from latentplan.data.selection import Selection, resized
from latentplan.data.sources.calvin import Calvin
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, ShapeError, SourceError, StoreError
from latentplan.types import ActionSpec, ArraySpec, Episode, Label, PickSpec, Spec


class Numbered:
    """A Source of episodes whose numbers tell which they are; some of them damaged."""

    @dataclass(frozen=True)
    class Config:
        bad: tuple[int, ...] = ()
        odd: tuple[int, ...] = ()  # that a store refuses
        deadly: int = -1  # ends the process that reads it
        sleep: float = 0.0  # s an episode takes
        count: int = 12

    def __init__(
        self, path: Path, config: Config, *, keys: Sequence[str] | None = None
    ) -> None:
        self.path, self.config = path, config
        self.settings: dict[str, Any] = {"count": config.count}
        self.spec = Spec(
            {
                "rgb": ArraySpec((32, 40, 3), "uint8"),
                "depth": ArraySpec((32, 40), "float32"),
                "q": ArraySpec((7,), "float64"),
                "intrinsics": ArraySpec((3, 3), "float64", "lens"),
                "truth": ArraySpec((2,), "float32"),
            },
            ActionSpec((-1.0,) * 2, (1.0,) * 2),
            privileged=("truth",),
            pick=PickSpec("rgb", (1, 1, 1)),
        )

    def __len__(self) -> int:
        return self.config.count

    def episode(self, index: int) -> Episode:
        if index in self.config.bad:
            raise SourceError(f"{self.path}/{index}: is damaged")
        if index == self.config.deadly:
            os._exit(3)
        time.sleep(self.config.sleep)
        length = 3 + index % 3
        rng = np.random.default_rng(index)
        actions = np.full((length, 2), index / 100, np.float32)
        if index in self.config.odd:
            actions[0] = np.nan
        return Episode(
            {
                "rgb": rng.integers(0, 256, (length + 1, 32, 40, 3), np.uint8),
                "depth": rng.random((length + 1, 32, 40), np.float32),
                "q": rng.normal(size=(length + 1, 7)),
                "intrinsics": rng.normal(size=(length + 1, 3, 3)),
                "truth": np.zeros((length + 1, 2), np.float32),
            },
            actions,
            np.zeros(length, np.float32),
            info={"mine": float(index)},
            labels=(Label(f"number {index}"),),
        )


@pytest.fixture(autouse=True)
def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN["source"], "numbered", f"{__name__}:Numbered")


def imported(out: Path, *, workers: int = 0, **changes: Any) -> list[int]:
    """Import numbered episodes, and return the numbers of those that are there."""
    config = Numbered.Config(**{k: v for k, v in changes.items() if k in vars(Numbered.Config())})
    options = {k: v for k, v in changes.items() if k not in vars(config)}
    opening = importing.Opening(Numbered, Path("/data"), config)
    spec = opening.open().spec
    with ZarrStore.open(out, "a") if out.exists() else ZarrStore.create(out, spec) as store:
        importing.add(store, opening, count=len(opening.open()), workers=workers, **options)
        return numbers(store)


def numbers(store: ZarrStore) -> list[int]:
    info = store.info()
    index = info.get(importing.SOURCE_INDEX, np.zeros(0))
    for number, of_source in enumerate(index.astype(int).tolist()):
        episode = store.episode(number)
        assert (episode.actions == np.float32(of_source / 100)).all()
        assert episode.info["mine"] == of_source
        assert episode.labels == (Label(f"number {of_source}"),)
    return [int(i) for i in index]


def arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in zarr.open_group(path, mode="r").members(max_depth=None):
        if isinstance(array, zarr.Array):
            yield name, np.asarray(array[:])


def assert_equal_arrays(path: Path, other: Path) -> None:
    found, wanted = dict(arrays(path)), dict(arrays(other))
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, strict=True, err_msg=name)


def test_the_store_is_the_same_for_any_number_of_processes_and_stops(tmp_path: Path) -> None:
    assert imported(tmp_path / "a.zarr") == list(range(12))
    assert imported(tmp_path / "b.zarr", workers=2) == list(range(12))
    for episodes in (3, 3, 1, 8, None):
        kept = imported(tmp_path / "c.zarr", episodes=episodes, workers=2 * (episodes == 8))
        assert kept == list(range(max(3, episodes or 12)))
    for name in "bc":
        assert_equal_arrays(tmp_path / f"{name}.zarr", tmp_path / "a.zarr")


@pytest.mark.slow_with("2")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_that_is_damaged_is_told(tmp_path: Path, workers: int) -> None:
    with pytest.raises(SourceError, match="^/data/4: is damaged; skip_bad leaves"):
        imported(tmp_path / "a.zarr", bad=(4, 6), workers=workers)
    assert imported(tmp_path / "a.zarr") == list(range(12))  # goes on when it is mended
    with pytest.raises(SourceError, match="^/data: episode 2: Episode action: 2 of 10 numbers are"):
        imported(tmp_path / "b.zarr", odd=(2,), workers=workers)
    with ZarrStore.open(tmp_path / "b.zarr") as store:
        assert numbers(store) == [0, 1]


@pytest.mark.slow_with("2")
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_damaged_is_skipped_and_nothing_shifts(tmp_path: Path, workers: int) -> None:
    told: list[importing.Progress] = []
    bad: dict[str, Any] = {"bad": (0, 4, 5, 11), "odd": (7,), "skip_bad": True, "workers": workers}
    good = [1, 2, 3, 6, 8, 9, 10]
    assert imported(tmp_path / "a.zarr", report=told.append, **bad) == good
    assert told[-1].skipped == 5 and told[-1].episodes == 7
    assert told[-1].reasons == {
        "/data/0: is damaged": 4,  # those that differ in numbers alone are counted together
        "/data: episode 7: Episode action: 2 of 8 numbers are NaN or infinite": 1,
    }
    for episodes in (2, 4, 5, None):  # 4: stops behind a damaged one
        kept = imported(tmp_path / "b.zarr", episodes=episodes, **bad)
        assert kept == good[:episodes]
    assert_equal_arrays(tmp_path / "b.zarr", tmp_path / "a.zarr")


def test_an_episode_that_ends_its_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"worker process died .*at episode 5; stored episodes"):
        imported(tmp_path / "a.zarr", deadly=5, workers=2)
    assert imported(tmp_path / "a.zarr", workers=2) == list(range(12))


def test_kinds_of_reasons_are_bounded() -> None:
    reasons = importing.Reasons()
    for letter in "abcdefghijklmnopqrstuvwxyz":
        for number in range(2):
            reasons.add(f"{letter}{number} is bad")
    found = reasons.counts()
    assert found["a0 is bad"] == 2 and found["other reasons"] == 12
    assert len(found) == importing.REASONS + 1 and sum(found.values()) == 52


# --- what is kept, and how large -------------------------------------------------------------


def triangles(before: int, after: int) -> np.ndarray:
    """Return the weights (after, before) of pixels in a smaller picture."""
    scale = before / after
    middle, pixel = (np.arange(after) + 0.5) * scale, np.arange(before) + 0.5
    weights = (1 - np.abs(pixel - middle[:, None]) / scale).clip(0)
    return weights / weights.sum(1, keepdims=True)


def test_observations_are_chosen_and_pictures_resized() -> None:
    whole = Numbered(Path("/data"), Numbered.Config())
    some = Selection(whole, keys=["depth", "rgb"], size=16)
    assert some.spec == replace(
        whole.spec,
        observation={
            "depth": ArraySpec((16, 16), "float32", "; resized from 32x40"),
            "rgb": ArraySpec((16, 16, 3), "uint8", "; resized from 32x40"),
        },
        privileged=(),
    )
    episode, before = some.episode(1), whole.episode(1)
    rgb = before.observations["rgb"].astype(float)
    wanted = np.einsum("thwc,ph,qw->tpqc", rgb, triangles(32, 16), triangles(40, 16))
    assert np.abs(episode.observations["rgb"] - wanted).max() <= 1
    depth = before.observations["depth"]
    assert np.isin(episode.observations["depth"], depth).all()  # no value that was not there
    np.testing.assert_array_equal(episode.observations["depth"][:, :, 0], depth[:, 1::2, 1])
    assert (episode.labels, episode.info) == (before.labels, before.info)
    numbers = Selection(whole, keys=["q", "intrinsics", "depth"], size=16)
    assert numbers.spec.pick is None
    for key, said in {"q": "", "intrinsics": "lens; of the image before it was resized"}.items():
        assert numbers.spec.observation[key].meaning == said
        kept = numbers.episode(1).observations[key]
        np.testing.assert_array_equal(kept, before.observations[key])
    same = Selection(whole)
    assert same.spec == whole.spec
    for key, value in same.episode(1).observations.items():
        np.testing.assert_array_equal(value, before.observations[key])


@pytest.mark.parametrize("size", [8, 20, 33, 80])
def test_resizing_keeps_the_means_of_colours_and_the_values_of_the_rest(size: int) -> None:
    ramp = np.linspace(0, 250, 40)[None, :, None, None] + np.zeros((2, 40, 40, 6))
    pictures = np.moveaxis(ramp, 1, 2).round().astype(np.uint8)
    found = resized(pictures, size)
    assert found.shape == (2, size, size, 6) and found.dtype == np.uint8
    centres = (np.arange(size) + 0.5) * 40 / size - 0.5
    wanted = np.interp(centres, np.arange(40), np.linspace(0, 250, 40))
    assert np.abs(found[0, 0, 1:-1, 0] - wanted[1:-1]).max() < 3.5
    masks = np.random.default_rng(0).integers(0, 1 << 24, (2, 40, 40), np.int32)
    assert np.isin(resized(masks, size), masks).all()


# --- the command -----------------------------------------------------------------------------


@pytest.fixture
def calvin(tmp_path: Path) -> Path:
    return calvin_writer.write(tmp_path / "calvin")


def test_the_command_imports_shows_and_goes_on(
    calvin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.zarr"
    overrides = ["length=5", "source.action=absolute"]
    argv = ["import", "calvin", str(calvin), "--out", str(out), "--episodes", "4", "--workers", "0"]
    assert main([*argv, *overrides]) == 0
    told = capsys.readouterr()
    assert "4 episodes, 20 transitions" in told.out and "import calvin: 4/4 episodes" in told.err
    run("calvin", calvin, out=out, workers=2, overrides=overrides)
    source = Calvin(calvin, Calvin.Config(length=5, action="absolute"))
    with ZarrStore.open(out, spec=source.spec) as store:
        assert len(store) == len(source) == 6
        assert store.settings["format"] == "calvin" and store.settings["image_size"] is None
        assert store.settings["source"] == source.settings
        for index in range(6):
            for key, value in source.episode(index).observations.items():
                found = store.episode(index).observations[key]
                np.testing.assert_array_equal(found, value, strict=True)
    for changed in (["length=6", overrides[1]], overrides[:1]):
        with pytest.raises(StoreError, match="settings.source.*; use the same settings to"):
            run("calvin", calvin, out=out, overrides=changed)
    with pytest.raises(StoreError, match="settings.image_size"):
        run("calvin", calvin, out=out, image_size=8, overrides=overrides)


def test_the_command_tells_what_it_skipped(
    calvin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = calvin_writer.SEGMENTS[0][0]
    file = calvin / f"training/episode_{first + 3:07d}.npz"
    file.write_bytes(file.read_bytes()[:500])
    options: dict[str, Any] = {"workers": 0, "keys": ["rgb_static"], "image_size": 16}
    with pytest.raises(SourceError, match=f"{file}: .*skip_bad"):
        run("calvin", calvin, out=tmp_path / "a.zarr", **options)
    argv = ["import", "calvin", str(calvin), "--out", str(tmp_path / "a.zarr"), "--skip-bad"]
    assert main([*argv, "--workers", "0", "--keys", "rgb_static", "--image-size", "16"]) == 0
    told = capsys.readouterr().out
    assert f"1 episodes skipped:\n  1: {file}: " in told
    with ZarrStore.open(tmp_path / "a.zarr") as store:
        assert len(store) == 1 and list(store.spec.observation) == ["rgb_static"]
        assert store.labels()[0][1].task == "turn_on_led"
    run("numbered", "/x", out=tmp_path / "b.zarr", workers=0, overrides=["count=2"])
    with pytest.raises(SourceError, match="all 2 episodes are damaged: /x/0: is damaged"):
        out, overrides = tmp_path / "c.zarr", ["count=2", "bad=[0,1]"]
        run("numbered", "/x", out=out, workers=0, skip_bad=True, overrides=overrides)


@pytest.mark.parametrize("place", ["folder", "url"])
def test_an_import_of_nothing_leaves_no_store(
    tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "a.zarr" if place == "folder" else "memory://nothing/a.zarr"
    if place == "url":
        memory = fsspec.filesystem("memory")
        request.addfinalizer(lambda: memory.rm("/nothing", recursive=True))
    options: dict[str, Any] = {"out": out, "workers": 0, "overrides": ["bad=[0,1]", "count=2"]}
    for skip_bad in (False, True):
        with pytest.raises(SourceError, match="/x/0: is damaged"):
            run("numbered", "/x", skip_bad=skip_bad, **options)
        with pytest.raises(StoreError, match="no such episode store"):
            ZarrStore.open(out)
        assert not list(tmp_path.iterdir())
    ZarrStore.create(out, Numbered(Path("/x"), Numbered.Config()).spec).close()
    with pytest.raises(StoreError, match="use the same settings"):
        run("numbered", "/x", **options)
    assert len(ZarrStore.open(out)) == 0  # another call's stays


def test_more_episodes_than_there_are_is_noted(calvin: Path, tmp_path: Path) -> None:
    found = run("calvin", calvin, out=tmp_path / "a.zarr", workers=0, episodes=9)
    assert found.episodes == 2
    assert found.notes == ("episodes: 9 asked for, the data set has 2",)


def test_what_cannot_be_asked_for_is_told(calvin: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.zarr"
    with pytest.raises(LookupError, match="no source named 'calvn'; did you mean 'calvin'"):
        run("calvn", calvin, out=out)
    with pytest.raises(ConfigError, match="import.keys: no observation 'rgb'; the data set has:"):
        run("calvin", calvin, out=out, keys=["rgb"])
    with pytest.raises(ConfigError, match="import.keys: none is given"):
        run("calvin", calvin, out=out, keys=[])
    for name, value in (("image_size", 0), ("episodes", 0), ("workers", -1)):
        with pytest.raises(ConfigError, match=f"import.{name}: {value} must be"):
            run("calvin", calvin, out=out, **{name: value})
    assert not out.exists()


def test_a_store_that_is_no_import_is_left_alone(calvin: Path, tmp_path: Path) -> None:
    spec = Spec({"x": ArraySpec((1,))}, ActionSpec((0.0,), (1.0,)))
    ZarrStore.create(tmp_path / "a.zarr", spec, settings={"seed": 1}).close()
    with pytest.raises(StoreError, match="settings.format: the store has None, given is 'cal"):
        run("calvin", calvin, out=tmp_path / "a.zarr")


SLOW = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from latentplan import cli
if __name__ == "__main__":
    sys.exit(cli.main(["import", "calvin", sys.argv[1], "--out", sys.argv[2], "--workers", "2",
                       "length=2"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stop_at_any_moment_keeps_what_was_done(tmp_path: Path, how: signal.Signals) -> None:
    segment = (1000, 1240)
    root = calvin_writer.write(tmp_path / "calvin", segments=(segment,), windows=())
    out, script = tmp_path / "a.zarr", tmp_path / "slow.py"
    script.write_text(SLOW)
    command = [sys.executable, str(script), str(root), str(out)]
    stopped = 0
    for _ in range(3):
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        before = _count(out)
        while process.poll() is None and _count(out) < before + 12:
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, how)
        _, errors = process.communicate(timeout=60)
        if process.returncode:
            stopped += 1
            assert process.returncode == (130 if how == signal.SIGINT else -how), errors
            assert b"Traceback" not in errors
        assert _count(out) >= before + 12 or process.returncode == 0
    assert stopped
    run("calvin", root, out=out, workers=0, overrides=["length=2"])
    run("calvin", root, out=tmp_path / "b.zarr", workers=0, overrides=["length=2"])
    assert_equal_arrays(out, tmp_path / "b.zarr")


def _count(path: Path) -> int:
    """Return how many episodes are there, seen from outside."""
    try:
        return len(ZarrStore.open(path))
    except StoreError:
        return 0


def test_a_row_that_is_no_number_is_refused_by_the_store(tmp_path: Path) -> None:
    with ZarrStore.create(tmp_path / "a.zarr", Numbered(Path("x"), Numbered.Config()).spec) as s:
        with pytest.raises(ShapeError, match="NaN"):
            s.append(Numbered(Path("x"), Numbered.Config(odd=(0,))).episode(0))
