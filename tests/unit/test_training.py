"""Training: resumes bit for bit after a kill at any moment, and stops clean where it must."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import files_of_at_most
from killed import driven
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import ToyEnv
from toy_model import ToyModel, toy_spec

import latentplan
from latentplan import config
from latentplan.cli import main
from latentplan.data.store import ZarrStore
from latentplan.errors import (
    CheckpointError,
    ConfigError,
    MissingDependency,
    StoreError,
    TrainingError,
    UnknownName,
)
from latentplan.training import checkpoint, curves, run_folder, state
from latentplan.training.heldout import HeldOut
from latentplan.training.loop import learning_rate, train
from latentplan.types import Batch, Episode, Loss, Progress, Training

SMALL = [
    *("model.channels=[4,4]", "model.strides=[2,2]", "model.hidden=[8,8]", "model.latent=4"),
    *("model.symmetric=false", "window=2", "batch=8", "warmup=5", "held_out=0.2"),
    *("log_every=2", "eval_every=3", "save_every=2"),
]


def stored(path: Path, *, episodes: int = 12, length: int = 6, first: int = 0) -> Path:
    """Collect random drags of the toy's discs."""
    env = ToyEnv()
    with ZarrStore.create(path, env.data_spec) as store:
        for seed in range(first, first + episodes):
            rng = np.random.default_rng(seed)
            seen, actions = [env.reset(seed=seed)[0]], []
            for _ in range(length):
                pick = seen[-1]["keypoints"][rng.integers(3)] / 0.3
                actions.append(np.concatenate([pick, rng.uniform(-1, 1, 2)]).astype(np.float32))
                seen.append(env.step(actions[-1]).observation)
            observations = {key: np.stack([o[key] for o in seen]) for key in seen[0]}
            rewards = np.zeros(length, np.float32)
            store.append(Episode(observations, np.stack(actions), rewards, truncated=True))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("data") / "toy.zarr")


def trained(data: Path, run: Path, *overrides: str, **options: Any) -> dict[str, Any]:
    """Train and return everything that the run folder holds, but for times."""
    latentplan.train("cfm", data=data, run=run, overrides=[*SMALL, *overrides], **options)
    return contents(run)


def contents(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"log": (run / "log.jsonl").read_text()}
    for name, form in [
        ("best", checkpoint.FORMAT),
        ("last", checkpoint.FORMAT),
        ("state", state.FORMAT),
    ]:
        tensors, header = checkpoint.read(run / f"{name}.safetensors", format=form)
        found[name] = {k: v.numpy().tobytes() for k, v in tensors.items()}, header
    return found


@pytest.mark.slow
def test_kill_9_at_any_moment_then_resume_gives_the_same_run(data: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, "steps=60", "training.ema=0.9"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ended = driven("cfm", data, whole, moments=["end"], overrides=overrides)
    assert ended == [(0, 60)]
    files = [f"replace:{n}" for n in (1, 3, 4, 5, 6, 7, 9)]
    times = ["kill:20+0.001", "kill:28+0.013", "kill:36+0.007", "interrupt:44+0.004"]
    moments = [*files, *times, "end"]
    found = driven("cfm", data, cut, moments=moments, overrides=overrides)
    steps = [done for _, done in found]
    assert [code for code, _ in found] == [-9] * (len(files) + 3) + [130, 0]
    assert steps == sorted(steps)
    assert 0 < steps[len(files) - 1] < 20 and steps[-1] == 60
    assert contents(cut) == contents(whole)
    assert "held_out/spearman" in contents(whole)["log"]
    left = {p.name for p in cut.iterdir()} - {p.name for p in whole.iterdir()}
    assert all(".partial" in name for name in left)
    assert events(cut) == events(whole)


def test_event_files_of_one_second_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start, process in ((0, 9), (1, 10)):  # "10" sorts before "9"
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        with curves.Curves(tmp_path, start=start) as written:
            for step in range(start + 1, 4):
                written.scalars({"loss": float(process)}, step)
    assert events(tmp_path) == {"loss": [(1, 9.0), (2, 10.0), (3, 10.0)]}


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    read = EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    return {
        tag: sorted({(e.step, e.value) for e in read.Scalars(tag)})
        for tag in read.Tags()["scalars"]
    }


@pytest.mark.parametrize("limit", [1, 2000, 20_000])
def test_a_full_disk_keeps_what_was_saved(
    data: Path, tmp_path: Path, limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    first = trained(data, run, "steps=6")
    argv = ["train", "cfm", "--data", str(data), "--run", str(run), *SMALL, "steps=12", "--resume"]
    with files_of_at_most(limit):
        assert main(argv) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert str(run) in said and "intact" in said and "free some disk space" in said
    now = contents(run)
    assert all(now[name] == first[name] for name in ("last", "state"))
    assert not list(run.glob(".*safetensors*"))
    assert trained(data, run, "steps=12", resume=True)["state"][1]["step"] == 12


def test_a_run_depends_on_its_seed(data: Path, tmp_path: Path) -> None:
    a, b, c = (
        trained(data, tmp_path / name, "steps=4", seed=seed)
        for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    )
    assert a == b
    assert a["log"] != c["log"]


def test_bfloat16_trains_float32_weights(data: Path, tmp_path: Path) -> None:
    full = trained(data, tmp_path / "full", "steps=4")
    half = trained(data, tmp_path / "half", "steps=4", "precision=bfloat16")
    found = checkpoint.load(tmp_path / "half/last.safetensors").model
    assert all(w.dtype == torch.float32 for w in found.parameters())
    assert half["log"] != full["log"]


def test_what_a_run_folder_holds(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "deep/run"
    seen: list[Progress] = []
    options = {"overrides": [*SMALL, "steps=6"], "on_progress": seen.append}
    found = latentplan.train("cfm", data=data, run=run, **options)
    assert capsys.readouterr() == ("", "")  # nothing is printed
    assert (found.folder, found.checkpoint) == (run, run / "best.safetensors")
    assert [(each.done, each.total) for each in seen] == [(done, 6) for done in range(7)]
    assert "loss" in seen[2].figures and found.steps == 6
    best = checkpoint.load(checkpoint.find(run))
    assert (best.step, dict(best.metrics)) == (found.step, dict(found.figures))
    assert {"loss", "spearman", "top1"} <= found.figures.keys()
    assert set(best.spec.observation) == {"rgb"} and best.spec.privileged == ()
    assert json.loads((run / "spec.json").read_text()) == best.spec.to_json()
    settings = config.read_yaml(run / "config.yaml")
    assert settings["training"]["batch"] == 8
    assert settings["model"] == {"name": "cfm", **config.to_values(best.config)}
    assert settings["data"]["episodes"] == 12 and settings["data"]["transitions"] == 72
    points = curves.read(run / "log.jsonl")
    judged = {p["step"]: p["held_out/loss"] for p in points if "held_out/loss" in p}
    assert list(judged) == [3, 6]
    assert best.metrics["loss"] == min(judged.values()) == judged[best.step]
    assert [p["step"] for p in points if "learning_rate" in p] == [2, 4, 6]


def test_going_on_needs_the_same_settings_and_data(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    before = trained(data, run, "steps=4")
    other = stored(tmp_path / "other.zarr", first=100)
    for options, words in [
        ({}, "is not empty; resume it"),
        ({"overrides": ["steps=4", "batch=9"]}, "training.batch: 8 in the run, 9 now"),
        ({"overrides": ["steps=3"]}, "training.steps: 4 in the run, 3 now"),
        ({"overrides": ["steps=4", "latent=5"]}, "model.latent: 4 in the run, 5 now"),
        ({"overrides": ["steps=4"], "seed": 1}, "seed: 0 in the run, 1 now"),
        ({"overrides": ["steps=4"], "data": other}, "data.digest: "),
    ]:
        changed = [*SMALL, *options.pop("overrides", ())]
        given = {"data": data, "resume": bool(changed[len(SMALL) :]), "overrides": changed}
        with pytest.raises(CheckpointError) as caught:
            latentplan.train("cfm", run=run, **{**given, **options})
        assert words in str(caught.value)
        assert contents(run) == before
    assert trained(data, run, "steps=4", resume=True) == before
    argv = ["train", "cfm", "--data", str(data), "--run", str(run), *SMALL, "steps=4"]
    assert main([*argv, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "has done its 4 steps" in said and f"{run}/best.safetensors: step " in said
    (run / "state.safetensors").rename(tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="best.safetensors but no state.safetensors"):
        trained(data, run, "steps=5", resume=True)
    (tmp_path / "state.safetensors").rename(run / "state.safetensors")
    moved = data.rename(tmp_path / "moved.zarr")
    try:
        assert trained(moved, run, "steps=5", resume=True)["state"][1]["step"] == 5
    finally:
        moved.rename(data)


def test_one_training_at_a_time_in_a_run_folder(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    holder = "import sys; from latentplan.files import lock; from pathlib import Path\n"
    holder += "held = lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", holder, str(run / run_folder.LOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(CheckpointError, match="run: another process is training there; wait"):
        latentplan.train("cfm", data=data, run=run, overrides=[*SMALL, "steps=4"])
    assert [file.name for file in run.iterdir()] == [run_folder.LOCK]
    other.kill()  # the kernel drops the lock
    other.wait()
    latentplan.train("cfm", data=data, run=run, overrides=[*SMALL, "steps=4"])
    assert (run / "best.safetensors").exists()


def test_wrong_data_and_settings_are_told(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    empty = ZarrStore.create(tmp_path / "empty.zarr", ToyEnv().data_spec)
    empty.close()
    short = stored(tmp_path / "short.zarr", length=1)
    broken = stored(tmp_path / "broken.zarr", episodes=2)
    (broken / "zarr.json").write_text("{}")
    for path, overrides, error, words in [
        (tmp_path / "absent.zarr", [], StoreError, "no such episode store"),
        (empty.path, [], StoreError, "is empty"),
        (short, ["window=4"], StoreError, "has 4 observations in a row"),
        (broken, [], StoreError, "is not an episode store"),
        (data, ["window=1"], ConfigError, "training.window: 1 is fewer than the 2 observ"),
        (data, ["steps=x"], ConfigError, "Training.steps: found 'x'"),
        (data, ["step=3"], ConfigError, "did you mean 'steps'"),
        (data, ["precision=float16"], ConfigError, "need float32 or bfloat16"),
        (data, ["model.observe=[keypoints]"], ConfigError, "no observation 'keypoints'"),
    ]:
        with pytest.raises(error) as caught:
            latentplan.train("cfm", data=path, run=run, overrides=[*SMALL, *overrides])
        assert words in str(caught.value)
    with pytest.raises(UnknownName, match="did you mean 'cfm'"):
        latentplan.train("cfmm", data=data, run=run)
    with pytest.raises(MissingDependency, match="cuda:9"):
        latentplan.train("cfm", data=data, run=run, device="cuda:9")
    assert not run.exists()


def test_the_command_line_trains(data: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    argv = ["train", "cfm", "--data", str(data), "--run", run, *SMALL, "steps=2"]
    assert main(argv) == 0
    assert main(argv) == 2
    assert main([*argv, "--resume"]) == 0


class Points:
    """Windows of transitions that a ToyModel can learn exactly."""

    def __init__(self, seed: int = 0) -> None:
        self.truth, self.seed = ToyModel(toy_spec(), ToyModel.Config(seed=9)), seed

    def batches(self, start: int = 0) -> Iterator[Batch]:
        while True:
            rng = torch.Generator().manual_seed(1000 * self.seed + start)
            state, action = torch.randn(32, 4, generator=rng), torch.randn(32, 2, generator=rng)
            after = (state @ self.truth.A.T + action @ self.truth.B.T).detach()
            yield Batch({"state": torch.stack([state, after], 1)}, action[:, None])
            start += 1


def taught(
    model: ToyModel, run: Path, *, resume: bool = False, **settings: Any
) -> dict[str, float]:
    unseen = [next(Points(1).batches())]
    chosen = Training(**{"steps": 400, "learning_rate": 0.03, "warmup": 10, **settings})
    return train(
        model,
        Points(),
        held_out=HeldOut(unseen, unseen),
        run=run,
        config=chosen,
        name="cfm",
        resume=resume,
    )


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_linear_model_learns_the_truth(tmp_path: Path, ema: float) -> None:
    model = ToyModel(toy_spec())
    figures = taught(model, tmp_path, ema=ema)
    assert figures["loss"] < 1e-4 and figures["top1"] == 1.0
    torch.testing.assert_close(model.A, Points().truth.A, atol=0.01, rtol=0)
    judged, header = checkpoint.read(tmp_path / "last.safetensors", format=checkpoint.FORMAT)
    assert header["metrics"] == figures and header["step"] == 400
    assert torch.equal(judged["A"], model.A) is (ema == 0)
    torch.testing.assert_close(judged["A"], Points().truth.A.detach(), atol=0.01, rtol=0)


class Noisy(ToyModel):
    def loss(self, batch: Batch) -> Loss:
        return super().loss(Batch(batch.observations, batch.actions + torch.rand(1)))


def test_chance_in_a_loss_resumes_exactly(tmp_path: Path) -> None:
    same = {"final_rate": 1.0, "warmup": 0, "save_every": 1}
    whole = Noisy(toy_spec())
    taught(whole, tmp_path / "a", steps=6, **same)
    taught(Noisy(toy_spec()), tmp_path / "b", steps=3, **same)
    torch.rand(5)
    halves = Noisy(toy_spec())
    taught(halves, tmp_path / "b", steps=6, resume=True, **same)
    assert torch.equal(whole.A, halves.A)
    assert not torch.equal(whole.A, Noisy(toy_spec()).A)


class Diverging(ToyModel):
    """Its loss, or the gradient of it alone, becomes NaN at the 8th call while training."""

    def __init__(self, what: str) -> None:
        super().__init__(toy_spec())
        self.what, self.calls = what, 0

    def loss(self, batch: Batch) -> Loss:
        loss = super().loss(batch)
        self.calls += self.training
        if self.what == "held-out" and not self.training and self.calls >= 8:
            return Loss(loss.total * math.nan, {})
        if self.calls != 8 or not self.training or self.what == "held-out":
            return loss
        if self.what == "loss":
            return Loss(loss.total * math.nan, loss.parts)
        return Loss(loss.total + (self.A.sum() * 0).sqrt(), loss.parts)  # d sqrt(0) is infinite


@pytest.mark.parametrize("what", ["loss", "gradient", "held-out"])
def test_divergence_stops_and_keeps_the_last_good(tmp_path: Path, what: str) -> None:
    with pytest.raises(TrainingError, match="is not finite at or shortly before step 10;"):
        taught(Diverging(what), tmp_path, save_every=5, eval_every=5, log_every=5)
    assert state.steps_done(tmp_path) == 5
    for name in ("last", "best"):
        weights, header = checkpoint.read(
            tmp_path / f"{name}.safetensors", format=checkpoint.FORMAT
        )
        assert header["step"] == 5
        assert all(w.isfinite().all() for w in weights.values())


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    taught(ToyModel(toy_spec()), tmp_path, steps=2)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        train(
            ToyModel(toy_spec(states=5)),
            Points(),
            held_out=HeldOut([], []),
            run=tmp_path,
            config=Training(),
            name="cfm",
            resume=True,
        )


def test_the_rate_warms_up_and_decays() -> None:
    c = Training(steps=100, warmup=10, learning_rate=0.5, final_rate=0.1)
    rates = [learning_rate(step, c) for step in range(100)]
    assert rates[0] == pytest.approx(0.05) and max(rates) == rates[9] == rates[10] == 0.5
    assert rates[55] == pytest.approx((0.5 + 0.05) / 2)
    assert rates[99] == pytest.approx(0.05, rel=0.02)
    assert np.all(np.diff(rates[10:]) < 0) and np.all(np.diff(rates[:10]) > 0)
    assert learning_rate(0, Training(steps=1, warmup=0)) == Training.learning_rate


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("batch", 1), ("ema", 1.0), ("clip", -1.0), ("learning_rate", math.nan)],
)
def test_settings_out_of_range_are_told(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^Training\.{field}: "):
        Training(**{field: value})
