"""VideoWorld on the real tabletop, as typed: collect, train all stages, kill, go on, plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from processes import Command, killed, refused, told

from latentplan.cli import main
from latentplan.data.store import ZarrStore
from latentplan.training import checkpoint

COLLECT = [
    *("collect", "tabletop_short", "--policy", "expert", "--episodes", "6", "--workers", "1"),
    *("goals=false", "task=open_drawer"),
]
TRAIN = [
    *("train", "videoworld_tiny", "--data", "demos.zarr", "--run", "run"),
    *("model.images=[rgb_static]", "model.ldm.levels=[3,3]", "model.tokenizer.levels=[4,3]"),
    *(f"training.{part}.batch=4" for part in ("tokenizer", "ldm", "transformer")),
    *(f"training.{part}.batch=4" for part in ("inverse", "dynamics")),
    *(f"training.{part}.steps=3" for part in ("tokenizer", "ldm", "transformer")),
    *(f"training.{part}.steps=3" for part in ("inverse", "dynamics")),
]


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with demos.zarr, and run/ whose training was killed half way."""
    folder = tmp_path_factory.mktemp("videoworld")
    assert "6 episodes" in told(Command(folder, *COLLECT, "--out", "demos.zarr"))
    killed(Command(folder, *TRAIN), when=folder / "run/stages/tokens-*.zarr")
    return folder


def files(folder: Path) -> dict[str, int]:
    """Return when each file of the stages was written."""
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}


@pytest.mark.slow
def test_killed_between_stages_it_goes_on_and_plans(
    loop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(loop)
    before = files(loop / "run/stages")
    assert {Path(name).parent.name.split("-")[0] for name in before} == {"tokenizer", "ldm"}
    assert "is not empty; resume it" in refused(TRAIN, capsys)
    assert main([*TRAIN, "--resume"]) == 0
    assert "all stages done" in capsys.readouterr().out
    after = files(loop / "run/stages")
    assert len(after) == 15 and {name: after[name] for name in before} == before
    with ZarrStore.open(next((loop / "run/stages").glob("tokens-*.zarr"))) as tokens:
        assert len(tokens) == 6

    undisturbed = [word.replace("run", "other") if word == "run" else word for word in TRAIN]
    assert main(undisturbed) == 0
    found, wanted = (
        checkpoint.read(loop / run / "best.safetensors", format=checkpoint.FORMAT)
        for run in ("run", "other")
    )
    # Sums of convolutions may differ in their last bit from one process to another, and Adam makes
    # steps of a whole learning rate of that where a gradient is nothing but rounding.
    figures = [header.pop("metrics") for _, header in (found, wanted)]
    assert figures[0] == pytest.approx(figures[1], rel=0.02, abs=0.02)
    assert found[1] == wanted[1]
    for key, value in found[0].items():
        torch.testing.assert_close(
            value, wanted[0][key], rtol=0, atol=0.02, msg=lambda m, key=key: f"{key}: {m}"
        )

    plan = ["plan", "--run", "run", "--env", "tabletop_short"]
    plan += ["--episodes", "1", "--out", "report", "evaluation.length=2", "states=1"]
    spoken = refused([*plan, "task=open_drawer", "--goal-text", "push the button"], capsys)
    assert "task 'push the button': was not trained on; known: open_drawer" in spoken
    assert main([*plan, "task=open_drawer"]) == 0
    metrics = json.loads((loop / "report/metrics.json").read_text())
    assert (metrics["policy"], metrics["model"], metrics["episodes"]) == (
        *("generative", "videoworld"),
        1,
    )


def test_the_shipped_checkpoint_opens_a_drawer(tmp_path: Path) -> None:
    command = ["plan", "--run", "tabletop-videoworld", "--env", "tabletop", "task=open_drawer"]
    quick = ["--episodes", "1", "evaluation.states=0", "evaluation.length=40"]
    assert main([*command, *quick, "--out", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["success"] == 1 and metrics["model"] == "videoworld"
