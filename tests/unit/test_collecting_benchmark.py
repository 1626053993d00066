from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from latentplan import registry
from latentplan.errors import ConfigError, UnknownName

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from collecting import main, run  # noqa: E402


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN["env"], "toy", "toy:ToyEnv")


def test_rows_state_the_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    argv = ["--env", "toy", "--episodes", "12", "--repeats", "2"]
    argv += ["--json", str(file), "env.unstable=0.02", "length=5"]
    main(argv)
    told = capsys.readouterr().out
    assert "overhead" in told and "toy" in told
    one, two = json.loads(file.read_text())
    for row, workers in ((one, 1), (two, 2)):
        assert (row["env"], row["engine"], row["workers"], row["kind"]) == (
            "toy", "", workers, "process",
        )  # fmt: skip
        low, high = row["transitions_per_s_min_max"]
        assert 0 < low <= row["transitions_per_s"] <= high
        assert 0 <= row["overhead"] <= 1
        assert row["images_per_s"] == 0  # it has no render of its own
        assert {"machine", "versions", "command"} <= set(row["made_with"])
    # The same episodes are made in both repeats: 8 to settle and 12, or 16 and 12.
    assert one["unstable"] > 0 and one["unstable"] % 2 == two["unstable"] % 2 == 0
    assert two["unstable"] >= one["unstable"]


def test_rates_are_of_the_env(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = run(env="toy", workers=[1], episodes=4, repeats=1, overrides=["env.discs=1"])
    (slow,) = run(env="slow_toy", workers=[1], episodes=4, repeats=1)
    assert slow["transitions_per_s"] < 100 < row["transitions_per_s"]
    assert slow["overhead"] < row["overhead"]


@pytest.fixture(autouse=True)
def slow_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN["env"], "slow_toy", "toy:SlowToyEnv")


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ({"episodes": 0}, {"repeats": 0}, {"workers": [0]}, {"ray": [0]}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: 0 must be at least 1"):
            run(**{"env": "toy", **wrong})
    with pytest.raises(UnknownName, match="tyo"):
        run(env="tyo")
    with pytest.raises(SystemExit):
        main(["--workers", "two"])
    assert "invalid numbers value: 'two'" in capsys.readouterr().err
