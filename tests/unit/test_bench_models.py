"""`latentplan bench models`: cells that are made once, and a table that tells them apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from toy import ToyEnv

from latentplan import registry
from latentplan.api import bench_models as bench
from latentplan.cli import main
from latentplan.evaluation import comparison
from latentplan.types import Progress

TOY = "toy:ToyEnv"
SMALL = {"planners": ["cem", "propose"], "seeds": 1, "workers": 0}


def run(out: Path, models: list[str], listen=lambda progress: None, **options) -> bench.Compared:
    given = {"budget": bench.QUICK, **SMALL, "on_progress": listen, **options}
    return bench.bench_models([TOY], out=out, models=models, **given)


def timeless(found: bench.Compared) -> list[dict]:
    left_out = ("act_ms_p50", "minutes")
    return [
        {key: value for key, value in row.items() if key not in left_out}
        for row in found.envs[TOY]["rows"]
    ]


class StopAt:
    """An `on_progress` that ends the call at a moment."""

    def __init__(self, task: str, done: int) -> None:
        self.moment = task, done

    def __call__(self, progress: Progress) -> None:
        if (progress.task.partition(" ")[0], progress.done) == self.moment:
            raise KeyboardInterrupt


def test_the_command_compares_a_model_with_a_bound_and_controls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", "models", "--quick", "--suite", TOY, "--models", "keypoints", "--workers", "0"]
    argv += ["--planners", "cem,propose", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    for text in ("| oracle |", "keypoints (reads keypoints) | own | no | cem |"):
        assert text in shown
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["versions"]["torch"] and results["machine"]["cores"] >= 1
    found = results["envs"][TOY]
    assert found["controls"]["oracle"]["progress"] == 1 and found["controls"]["noop"]["goals"] == 2
    cells = {(row["dynamics"], row["planner"], row["proposals"]) for row in found["rows"]}
    assert cells == {
        *(("own", "cem", False), ("calibrated", "cem", False)),
        *(("own", "propose", True), ("calibrated", "propose", True)),
    }
    for row in found["rows"]:
        assert row["privileged"] == ["keypoints"] and np.isfinite(row["final"])
        assert row["seeds"] == 1 and row["error"] > 0 and row["minutes"] > 0
    assert (tmp_path / "out/results.md").read_text().count("reads keypoints") == 4


def test_stopped_anywhere_it_continues_to_the_same_results(tmp_path: Path) -> None:
    events: list[Progress] = []
    options = {"calibrate": []}
    whole = run(tmp_path / "whole", ["joint"], events.append, **options)
    assert {each.task.partition(" ")[0] for each in events} == {"collect", "train", "plan"}
    for moment in (("collect", 5), ("train", 2), ("plan", 1)):
        with pytest.raises(BaseException) as stopped:
            run(tmp_path / "cut", ["joint"], StopAt(*moment), **options)
        assert type(stopped.value).__name__ in ("Interrupted", "KeyboardInterrupt")
    again: list[Progress] = []
    cut = run(tmp_path / "cut", ["joint"], again.append, **options)
    assert timeless(cut) == timeless(whole) and len(timeless(cut)) == 1
    again.clear()
    assert timeless(run(tmp_path / "cut", ["joint"], again.append, **options)) == timeless(whole)
    assert not [each for each in again if each.task.startswith(("train", "plan"))]


def test_other_settings_are_refused_and_other_models_are_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(out, ["joint"], calibrate=[])
    argv = ["bench", "models", "--quick", "--suite", TOY, "--models", "joint", "--out", str(out)]
    assert main([*argv, "--steps", "4"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "--out: the settings in" in told and "steps: 3 there, 4 now" in told
    more = run(out, ["joint", "keypoints"], calibrate=[])
    assert [row["model"] for row in more.envs[TOY]["rows"]] == ["joint", "keypoints"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--models", "jont"], ["'jont'", "'joint'"]),
        (["--suite", "rpoe"], ["'rpoe'", "'rope'"]),
        (["--planners", "cme"], ["'cme'", "'cem'"]),
        (["--seeds", "0"], ["--seeds", "0", "at least 1"]),
        (["--suite", TOY, "--data", "absent"], ["--data", "absent", "toy"]),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str],
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "models", "--quick", "--out", "out", *options]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and all(word in told for word in said), told


def trials(finals: list[float], *, starts: list[int] | None = None) -> list[dict]:
    return [
        {
            "start_seed": start,
            "goal_seed": start + 100,
            "threshold": 0.1,
            "distance": [1.0, final],
            "solved": [False, final <= 0.1],
            "act_ms": [1.0],
        }
        for start, final in zip(starts or range(len(finals)), finals, strict=True)
    ]


def test_figures_are_paired_and_over_seeds() -> None:
    controls = {
        "random": trials([1.0, 1.0, 1.0, 1.0]),
        "noop": trials([0.5, 0.5, 0.5, 0.5]),
        "oracle": trials([0.0, 0.0, 0.0, 0.0]),
    }
    runs = [trials([0.04, 0.2, 0.08, 0.3]), trials([0.04, 0.2, 0.08, 0.7])]
    found = comparison.outcomes(runs, controls)
    assert (found["seeds"], found["goals"], found["unpaired"]) == (2, 4, 0)
    assert found["progress"] == pytest.approx(1 - (0.155 + 0.255) / 2)
    assert found["success"] == 0.5 and found["strict_success"] == 0.25
    low, high = found["progress_ci95"]
    assert low < found["progress"] < high
    # Equal trials have no spread of goals, so that what is left is that of seeds.
    seeds = comparison.outcomes([trials([0.2] * 4), trials([0.4] * 4)], controls)
    assert seeds["final_ci95"] == pytest.approx([0.2, 0.4])
    # A trial that began again with other seeds has no partner.
    odd = comparison.outcomes([trials([0.0, 0.5, 0.5, 0.5], starts=[9, 1, 2, 3])], controls)
    assert (odd["goals"], odd["unpaired"]) == (3, 1) and odd["final"] == 0.5


@pytest.mark.slow
def test_models_of_the_rope_are_compared(tmp_path: Path) -> None:
    argv = ["bench", "models", "--quick", "--suite", "rope", "--models", "cfm,planet,pixel"]
    assert main([*argv, "--calibrate", "cfm", "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out/results.json").read_text())["envs"]["rope"]["rows"]
    assert [row["model"] for row in rows].count("cfm") == 5 and len(rows) == 7


def test_the_default_models_are_registered() -> None:
    assert set(bench.MODELS) <= set(registry.BUILT_IN["model"]) and ToyEnv.__module__ in sys.modules
