"""The budget of reading: what a file claims is held against it before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import zarr

from latentplan import budget, foreign
from latentplan.api import import_data
from latentplan.budget import Budget
from latentplan.errors import BudgetError, ConfigError, LatentplanError, SourceError
from latentplan.types import ActionSpec, ArraySpec, Episode, Spec


def test_a_claim_beyond_the_budget_says_what_is_allowed_and_how_to_raise_it() -> None:
    budget.claim("a.npz: x", bytes=2 << 30, items=1_000_000)
    with pytest.raises(BudgetError) as e:
        budget.claim("a.npz: x", bytes=3e9)
    assert str(e.value) == (
        "a.npz: x: needs 3 GB, allowed are 2.147 GB for one file or episode; if you trust its "
        "source, raise the budget: LATENTPLAN_BUDGET=bytes=6e+09"
    )
    for items in (1_000_001, 10**15, float("inf"), float("nan")):
        with pytest.raises(BudgetError, match=r"a\.npz: x: needs .* items, allowed are 1,000,000"):
            budget.claim("a.npz: x", items=items)


def test_claims_add_up_within_one_reading_alone() -> None:
    with budget.using(Budget(bytes=100)):
        for _ in range(3):
            budget.claim("x", bytes=60)
            with budget.reading():
                budget.claim("x", bytes=60)
        with budget.reading():
            budget.claim("x", bytes=60)
            with budget.reading(apart=True):
                budget.claim("x", bytes=60)
            with budget.reading(), pytest.raises(BudgetError, match="x: needs 120 bytes"):
                budget.claim("x", bytes=60)
            budget.claim("x", bytes=40)  # the refused one was not charged
    with budget.using(Budget(seconds=1e-9)), budget.reading():
        with pytest.raises(BudgetError, match=r"x: needs .* s of the processor, allowed are 1e-09"):
            budget.claim("x")


def test_the_environment_and_a_caller_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(budget.VARIABLE, "bytes=8e9, items=5")
    assert budget.allowed() == Budget(bytes=8e9, items=5)
    with budget.using(Budget(items=7)):
        assert budget.allowed().items == 7
        with budget.using(None):
            assert budget.allowed().items == 7
    assert budget.allowed().items == 5
    for text, said in (
        ("bites=1", "found 'bites', known: bytes, items, seconds"),
        ("bytes", "found 'bytes', need NAME=NUMBER"),
        ("bytes=many", "found 'bytes=many', need NAME=NUMBER"),
        ("bytes=-1", "Budget.bytes: found -1.0, need a positive number"),
        ("seconds=nan", "Budget.seconds: found nan, need a positive number"),
    ):
        monkeypatch.setenv(budget.VARIABLE, text)
        with pytest.raises(ConfigError, match=f"^LATENTPLAN_BUDGET: .*{said}"):
            budget.allowed()


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    os.mkfifo(tmp_path / "pipe")
    yield tmp_path / "pipe"


def test_only_regular_files_are_read(tmp_path: Path, pipe: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    assert foreign.content(tmp_path / "link", error=SourceError) == b"abc"
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path, said in (
        (pipe, "is a pipe, need a regular file"),
        ("/dev/zero", "is a device, need a regular file"),
        (tmp_path / "zero", "is a device, need a regular file"),
        (tmp_path, "is a folder, need a regular file"),
        (tmp_path / "none", "cannot be read .No such file"),
        (tmp_path / ("x" * 300), "cannot be read .File name too long"),
        ("a\0b", "cannot be read .embedded null byte"),
    ):
        for read in (foreign.content, foreign.text, foreign.check_regular, foreign.read_json):
            with pytest.raises(SourceError, match=said) as e:
                read(path, error=SourceError)
            assert str(e.value).isprintable()


def test_a_file_beyond_the_budget_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BudgetError, match=r"sparse: needs 1100 GB"):
        foreign.content(tmp_path / "sparse", error=SourceError)
    with pytest.raises(SourceError, match=r"sparse: has 1099511627776 bytes, allowed are 10"):
        foreign.content(tmp_path / "sparse", error=SourceError, limit=10)


def test_messages_are_one_line_that_a_terminal_prints_as_it_is() -> None:
    hostile = LatentplanError("a\nb\x1b[31m\ud800 ü: " + "x" * 10**6)
    assert str(hostile).startswith("a\\nb\\x1b[31m\\ud800 ü: xxx") and len(str(hostile)) < 2000


class Claiming:
    """A Source of two episodes, of which the second claims as much as its config says."""

    @dataclass(frozen=True)
    class Config:
        bytes: float = 0

    settings: ClassVar[dict[str, str]] = {}
    spec = Spec({"x": ArraySpec((1,))}, ActionSpec((-1.0,), (1.0,)))

    def __init__(
        self, path: Path, config: Config | None = None, *, keys: tuple[str, ...] | None = None
    ) -> None:
        self.path, self.config = path, config or self.Config()

    def __len__(self) -> int:
        return 2

    def episode(self, index: int) -> Episode:
        budget.claim(f"{self.path}/{index}", bytes=self.config.bytes * index)
        rows = np.zeros((3, 1), np.float32)
        return Episode({"x": rows}, rows[1:], np.zeros(2, np.float32))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_import_has_a_budget_for_each_episode(tmp_path: Path, workers: int) -> None:
    def imported(**more: Any) -> import_data.Imported:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
        overrides = ["source.bytes=3e9"]
        return import_data.import_data(
            Claiming, "/data", out=out, workers=workers, overrides=overrides, **more
        )

    with pytest.raises(SourceError, match="^/data/1: needs 3 GB, allowed are 2.147 GB"):
        imported()
    skipped = imported(skip_bad=True)
    assert (skipped.episodes, skipped.skipped) == (1, 1)
    assert imported(budget="bytes=4e9").episodes == 2
    assert imported(budget=Budget(bytes=4e9)).episodes == 2
    with pytest.raises(ConfigError, match=r"^import\.budget: found 'bites'"):
        imported(budget="bites=1")


def test_a_store_that_claims_a_petabyte_of_episodes_is_refused() -> None:
    from latentplan.data import layout

    column = zarr.create_array({}, shape=(10**14,), chunks=(4096,), dtype="int64")
    with pytest.raises(BudgetError, match=r"^store: .*needs 8e\+05 GB"):
        layout.read_ends(column)
