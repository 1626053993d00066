"""The episodes of several stores in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy import ToyEnv

import latentplan
from latentplan.cli import main
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, StoreError
from latentplan.types import Progress


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two stores of an env with different settings, and one of another spec."""
    folder = tmp_path_factory.mktemp("parts")
    for seed, name, overrides in (
        (1, "a", ["length=4"]),
        (2, "b", ["length=6"]),
        (3, "other", ["length=4", "env.discs=2"]),
    ):
        latentplan.collect(
            ToyEnv, out=folder / f"{name}.zarr", episodes=3, seed=seed, workers=0,
            overrides=overrides,
        )  # fmt: skip
    return [folder / f"{name}.zarr" for name in ("a", "b", "other")]


def test_episodes_follow_each_other(parts: list[Path], tmp_path: Path) -> None:
    found = latentplan.join(parts[:2], out=tmp_path / "both.zarr")
    assert (found.episodes, found.transitions) == (6, 3 * 4 + 3 * 6)
    both = ZarrStore.open(tmp_path / "both.zarr")
    for start, part in enumerate(map(ZarrStore.open, parts[:2])):
        for index in range(3):
            one, same = part.episode(index), both.episode(3 * start + index)
            assert one.seed == same.seed
            np.testing.assert_array_equal(one.actions, same.actions)
            for key, value in one.observations.items():
                np.testing.assert_array_equal(value, same.observations[key])
    assert both.settings["collect"] == ZarrStore.open(parts[0]).settings["collect"]
    assert len(both.settings["joined"]) == 2


def test_an_interrupted_one_is_continued(parts: list[Path], tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.done == 4:
            raise KeyboardInterrupt

    out = tmp_path / "both.zarr"
    with pytest.raises(KeyboardInterrupt):
        latentplan.join(parts[:2], out=out, on_progress=stop)
    done: list[int] = []
    latentplan.join(parts[:2], out=out, on_progress=lambda progress: done.append(progress.done))
    assert done == [5, 6]
    with pytest.raises(StoreError, match="settings"):  # another order is other data
        latentplan.join([parts[1], parts[0]], out=out)


def test_what_does_not_belong_together_is_refused(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both.zarr"
    assert main(["join", str(parts[0]), str(parts[2]), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"latentplan: {parts[2]}: spec") and said.count("\n") == 1
    assert not out.exists()
    with pytest.raises(ConfigError, match="need at least one store"):
        latentplan.join([], out=out)
    assert main(["join", *map(str, parts[:2]), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 6 episodes, 30 transitions\n"
