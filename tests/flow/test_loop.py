"""The loop on the real rope, as typed: collect, train, plan, show, embed; kill and go on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import zarr
from full_disk import files_of_at_most
from processes import Command, killed, refused, told

import latentplan
from latentplan.cli import main
from latentplan.data.store import ZarrStore
from latentplan.errors import ShapeError
from latentplan.sim.deformable.rope import Rope
from latentplan.training import checkpoint, state

ROOT = Path(__file__).parents[2]
COLLECT = ["collect", "rope", "--episodes", "16", "--workers", "2", "--seed", "3"]
TRAIN = [
    *("train", "cfm", "--data", "rope.zarr", "steps=30", "batch=16", "window=3", "warmup=5"),
    *("log_every=5", "eval_every=10", "save_every=5"),
]
SHORT = ["evaluation.length=12", "evaluation.states=2"]


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with rope.zarr, run/ and report/ that the three commands made."""
    folder = tmp_path_factory.mktemp("loop")
    assert "16 episodes, 320 transitions" in told(Command(folder, *COLLECT, "--out", "rope.zarr"))
    assert "held out: error" in told(Command(folder, *TRAIN, "--run", "run"))
    assert "progress" in told(
        Command(folder, "plan", "--run", "run", "--episodes", "2", "--out", "report", *SHORT)
    )
    return folder


def test_metrics_are_the_documented_ones(loop: Path) -> None:
    metrics = json.loads((loop / "report/metrics.json").read_text())
    page = (ROOT / "docs/metrics.md").read_text().partition("The evaluations `calvin")[0]
    documented = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    assert sorted(metrics) == sorted(documented)
    assert metrics["episodes"] == 2 and metrics["env"] == "rope"
    assert metrics["oracle_success"] == 1
    assert metrics["oracle_final"] < 0.06 < metrics["noop_final"] < 0.4  # metres
    assert metrics["noop_final"] == pytest.approx(metrics["start"], abs=1e-6)
    assert metrics["best"] <= metrics["final"]
    way = metrics["random_final"] - metrics["oracle_final"]
    come = metrics["random_final"] - metrics["final"]
    assert metrics["progress"] == pytest.approx(come / way)
    assert len(json.loads((loop / "report/episodes.json").read_text())) == 2


def test_report_and_video_show_the_trials(loop: Path) -> None:
    page = (loop / "report/report.html").read_text()
    assert page.count("<img") == page.count('src="data:image/png;base64,') == 2 * (7 + 1)
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(loop / "report/video.mp4"))
    assert frames == 2 * (12 + 1 + 4) and seconds == pytest.approx(frames / 4, abs=0.5)


def test_show_tells_and_draws(loop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what, words in [
        ("rope.zarr", ["16 episodes, 320 transitions", "keypoints (21, 2) float32, privileged"]),
        ("run", ["best.safetensors: cfm", "held out", "rgb (64, 64, 3) uint8"]),
    ]:
        picture = loop / f"{Path(what).stem}-shown.png"
        assert main(["show", str(loop / what), "--out", str(picture)]) == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words), shown
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_run_is_embedded_in_a_loop(loop: Path) -> None:
    env = Rope()
    goal, _ = env.reset(seed=2)
    actions = []
    for _ in range(2):
        planner = latentplan.load(loop / "run")
        planner.goal({"rgb": goal["rgb"]})
        observation, _ = env.reset(seed=1)
        picked = []
        for _ in range(3):
            actions.append(planner.act({"rgb": observation["rgb"]}))
            observation, _, _, _, info = env.step(actions[-1])
            picked.append(info["picked"])
        assert min(picked) >= 0  # it picks what it sees, and that is the rope
    np.testing.assert_array_equal(actions[:3], actions[3:])
    assert planner.latency.count == 3 and planner.latency.p50_ms > 0
    with pytest.raises(ShapeError, match=r"goal.observation\['rgb'\]: found shape \(32, 32, 3\)"):
        planner.goal({"rgb": goal["rgb"][::2, ::2]})


@pytest.mark.slow
def test_kill_9_while_collecting_then_again_gives_the_same_data(loop: Path, tmp_path: Path) -> None:
    out = tmp_path / "rope.zarr"
    nth = int(np.random.default_rng().integers(0, 12))
    killed(Command(tmp_path, *COLLECT, "--out", out.name), when=out / f".pending/*{nth}.npz")
    with ZarrStore.open(out) as store:
        kept = len(store)
    assert 0 < kept < 16
    again = told(Command(tmp_path, *COLLECT, "--out", out.name))
    assert f"new {16 - kept} episodes" in again
    found, wanted = (zarr.open_group(path, mode="r") for path in (out, loop / "rope.zarr"))
    for name in (
        *("observation/rgb", "observation/keypoints", "action", "reward"),
        *("episode/end", "episode/seed", "episode/terminated", "episode/truncated"),
    ):
        np.testing.assert_array_equal(found[name][:], wanted[name][:], strict=True, err_msg=name)


@pytest.mark.slow
def test_kill_9_while_training_then_resume_gives_the_same_run(loop: Path, tmp_path: Path) -> None:
    (tmp_path / "rope.zarr").symlink_to(loop / "rope.zarr")
    run = tmp_path / "run"
    killed(Command(tmp_path, *TRAIN, "--run", "run"), when=run / "last.safetensors")
    assert state.steps_done(run) < 30  # 0 if it was killed between the two files
    assert "step 30" in told(Command(tmp_path, *TRAIN, "--run", "run", "--resume"))
    assert (run / "log.jsonl").read_text() == (loop / "run/log.jsonl").read_text()
    for name, form in [
        *((name, checkpoint.FORMAT) for name in ("best", "last")),
        ("state", state.FORMAT),
    ]:
        file = f"{name}.safetensors"
        found, wanted = (checkpoint.read(at / file, format=form) for at in (run, loop / "run"))
        assert found[1] == wanted[1]
        assert found[0].keys() == wanted[0].keys()
        for key, value in found[0].items():
            assert value.numpy().tobytes() == wanted[0][key].numpy().tobytes(), (name, key)


# --- bad input: one line, exit 2, nothing half-written ---------------------------------------


@pytest.fixture
def here(loop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder we are in now: a data set and a run, and damaged ones."""
    for name in ("rope.zarr", "damaged.zarr"):
        shutil.copytree(loop / "rope.zarr", tmp_path / name)
    for shard in (tmp_path / "damaged.zarr/observation/rgb/c").rglob("*"):
        if shard.is_file():
            data = bytearray(shard.read_bytes())
            data[100:110] = bytes(10)
            shard.write_bytes(data)
    shutil.copytree(loop / "run", tmp_path / "run")
    best = (loop / "run/best.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(best[: len(best) // 2])
    (tmp_path / "nothing").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, but for locks and TensorBoard's events."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in files
        if p.name != ".lock" and p.parent.name != "tensorboard"
    }


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["plan", "--run", "run", "--env", "rpoe"], ["no env named 'rpoe'", "did you mean 'rope'"]),
        (["plan", "--run", "run", "elites=9999"], ["CEM.elites: 9999 is not within [1, 256]"]),
        (["plan", "--run", "run", "env.image=32"], ["does not fit", "(32, 32, 3)", "(64, 64, 3)"]),
        (["plan", "--run", "nothing"], ["no checkpoint in this folder", "latentplan train"]),
        (["plan", "--run", "cut.safetensors"], ["cut.safetensors: corrupt"]),
        (["plan", "--run", "rope.zarr"], ["rope.zarr", "no checkpoint"]),
        (["train", "cfm_papr", "--data", "rope.zarr", "--run", "a"], ["did you mean 'cfm_paper'"]),
        (["train", "cfm", "--data", "damaged.zarr", "--run", "a"], ["cannot be read", "damaged"]),
        (["train", "cfm", "--data", "run", "--run", "a"], ["run: is not an episode store"]),
        (["train", "cfm", "--data", "rope.zarr", "--run", "run"], ["run: is not empty"]),
        (["collect", "rope", "--episodes", "17", "--out", "rope.zarr"], ["seed: the store has 3"]),
        (["collect", "rope", "--episodes", "17", "--out", "damaged.zarr", "links=9"], ["links"]),
        (["show", "damaged.zarr"], ["damaged.zarr", "cannot be read"]),
        (["show", "cut.safetensors"], ["cut.safetensors: corrupt"]),
    ],
)
def test_a_mistake_changes_nothing(
    argv: list[str], words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(here)
    line = refused(argv, capsys)
    assert all(word in line for word in words), line
    assert contents(here) == before


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_done(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(here)
    more = [*COLLECT[:3], "18", *COLLECT[4:], "--out", "rope.zarr"]
    for argv, size in [
        (more, 100_000),  # an episode that waits for its shard is larger
        ([*TRAIN, "--run", "fresh"], 100_000),
        (["plan", "--run", "run", "--episodes", "1", "--out", "report"], 300),
        (["show", "rope.zarr", "--out", "sheet.png"], 300),
    ]:
        with files_of_at_most(size):
            line = refused(argv, capsys)
        assert "the disk is full" in line or "free some disk space" in line
    after = contents(here)
    assert {name: after[name] for name in before} == before
    new = after.keys() - before.keys()
    assert new <= {f"fresh/{name}" for name in ("config.yaml", "spec.json", "log.jsonl")}
    assert main(more) == 0
    with ZarrStore.open("rope.zarr") as store:
        assert len(store) == 18


@pytest.mark.slow
def test_no_opengl_is_told_before_anything_is_made(here: Path) -> None:
    before = contents(here)
    for argv in (
        ["collect", "rope", "--episodes", "2", "--out", "a.zarr"],
        ["plan", "--run", "run", "--out", "report"],
    ):
        code, _, err = Command(here, *argv, MUJOCO_GL="glfw").end()
        assert (code, err.count("\n")) == (2, 1)
        assert "MUJOCO_GL: found 'glfw', which needs a screen; set egl or osmesa" in err
    assert contents(here) == before


def test_a_broken_camera_stops_the_planner(loop: Path) -> None:
    planner = latentplan.load(loop / "run")
    seen, _ = Rope().reset(seed=1)
    planner.goal(seen)
    broken = np.full(seen["rgb"].shape, np.nan, np.float32)
    with pytest.raises(ShapeError, match=r"MPC.act\['rgb'\]: found float32, need uint8"):
        planner.act({"rgb": broken})
