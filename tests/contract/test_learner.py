"""What everything that is trained keeps: every registered learner, and every stage of a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import every_name, settings, small, stored, tensors

from latentplan import registry
from latentplan.api.train import train
from latentplan.data.store import ZarrStore
from latentplan.errors import CheckpointError, ConfigError, Interrupted
from latentplan.protocols import Learner, PrivilegedModel, Staged
from latentplan.training import run_folder, state
from latentplan.training.fit import _windows
from latentplan.training.heldout import for_model
from latentplan.types import (
    Batch,
    Loss,
    Spec,
    Stage,
    Training,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("data") / "squares.zarr")


def run(kind: str, name: str, data: Path, folder: Path, **options: object) -> None:
    overrides = [*settings(kind, name), *small(name)]
    train(name, kind=kind, data=data, run=folder, overrides=overrides, **options)


class StopAt:
    """An `on_progress` that is Ctrl-C after a step of one stage."""

    def __init__(self, task: str, step: int) -> None:
        self.task, self.step, self.tasks = task, step, []

    def __call__(self, progress) -> None:
        if progress.unit == "steps" and progress.task not in self.tasks:
            self.tasks.append(progress.task)
        if (progress.task, progress.unit, progress.done) == (self.task, "steps", self.step):
            raise KeyboardInterrupt


@pytest.mark.slow_with("videoworld", "videogpt", "lwm", "teco", "povt", "elastic")
@every_name
def test_stopped_and_resumed_it_has_every_bit_of_an_undisturbed_run(
    kind: str, name: str, data: Path, tmp_path: Path
) -> None:
    listen = StopAt("", 0)
    run(kind, name, data, tmp_path / "whole", on_progress=listen)
    for task in listen.tasks:  # one stage after the other
        with pytest.raises(Interrupted):
            run(kind, name, data, tmp_path / "cut", resume=True, on_progress=StopAt(task, 2))
    run(kind, name, data, tmp_path / "cut", resume=True)
    whole, cut = tensors(tmp_path / "whole"), tensors(tmp_path / "cut")
    assert whole.keys() == cut.keys() and len(listen.tasks) >= 1
    assert any(b"held_out/loss" in cut[key] for key in cut if key.endswith("log.jsonl"))
    differ = [key for key in whole if whole[key] != cut[key]]
    assert differ == [], [(whole[key], cut[key]) for key in differ if key.endswith("header")]


@pytest.mark.slow_with("videoworld", "videogpt", "lwm", "teco", "povt", "elastic")
@every_name
def test_what_a_resume_needs_is_never_made_again_in_silence(
    kind: str, name: str, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    listen = StopAt("", 0)
    run(kind, name, data, folder, on_progress=listen)
    before = tensors(folder)
    networks = sorted(file.parent for file in folder.rglob(state.FILE))
    assert len(networks) == len(listen.tasks)
    for network in networks:
        for missing in (state.FILE, "best.safetensors"):
            (network / missing).rename(tmp_path / "aside")
            with pytest.raises(CheckpointError, match=f"but no {missing} to resume from; put it b"):
                run(kind, name, data, folder, resume=True)
            (tmp_path / "aside").rename(network / missing)
        whole = (network / state.FILE).read_bytes()
        other = whole.replace(b'"step', b'"stop')
        for damaged in (b"", whole[: len(whole) // 2], other, b"{" * 99):
            (network / state.FILE).write_bytes(damaged)
            with pytest.raises(CheckpointError) as caught:
                run(kind, name, data, folder, resume=True)
            assert state.FILE in str(caught.value) and "\n" not in str(caught.value)
        (network / state.FILE).write_bytes(whole)
    assert tensors(folder) == before
    run(kind, name, data, folder, resume=True)
    assert tensors(folder) == before


def learners(kind: str, name: str, data: Path, folder: Path):
    """Yield (stage, learner, store) for every network that is trained, of its default size."""
    build = registry.get(kind, name)
    store = ZarrStore.open(data)
    if not issubclass(build, Staged):
        spec = run_folder.public(store, privileged=getattr(build, "privileged", ()))
        yield Stage(name, lambda spec, parts: build(spec)), build(spec), store
        return
    train(name, kind=kind, data=data, run=folder, overrides=settings(kind, name))
    spec = run_folder.public(store)
    labels = [label for _, label in store.labels()]
    chosen = {"training": build.Training(), "spec": spec, "labels": labels}
    steps = build.stages(build.Config(), **chosen)
    stores, parts = {"": store}, {}
    for step in steps:
        if isinstance(step, Stage):
            of = stores[step.data]
            parts[step.name] = step.build(run_folder.public(of), parts)
            yield step, parts[step.name], of
        else:
            stores[step.name] = ZarrStore.open(next((folder / "stages").glob(f"{step.name}-*")))


@pytest.mark.slow_with("videoworld", "videogpt", "lwm", "teco", "povt", "elastic")
@every_name
def test_each_network_is_a_learner_whose_loss_trains_every_weight_and_falls(
    kind: str, name: str, data: Path, tmp_path: Path
) -> None:
    for stage, learner, store in learners(kind, name, data, tmp_path / "run"):
        where = f"{name}, {stage.name}"
        assert isinstance(learner, Learner), where
        read = set(learner.spec.observation) & set(store.spec.privileged)
        declared = set(learner.privileged) if isinstance(learner, PrivilegedModel) else set()
        assert read == declared == set(learner.spec.privileged), where
        learner.train()
        length = max(learner.window, stage.training.window, 5 if not stage.data else 2)
        chosen = Training(batch=8, window=length)
        batch = for_model(_windows(store, learner, chosen, learner.spec.tasks)[0], learner)
        torch.manual_seed(0)
        trained = [(n, p) for n, p in learner.named_parameters() if p.requires_grad]
        optimiser = torch.optim.Adam([p for _, p in trained], 1e-3)
        losses = []
        for _ in range(10):
            loss = learner.loss(batch)
            optimiser.zero_grad()
            loss.total.backward()
            if not losses:
                dead = [n for n, p in trained if p.grad is None or not p.grad.any()]
                assert dead == [], where
                parts = loss.parts.values()
                assert all(p.isfinite() and not p.requires_grad for p in parts), where
            optimiser.step()
            losses.append(loss.total.item())
        assert loss.total.shape == () and np.isfinite(losses).all(), where
        assert min(losses[5:]) < losses[0], where


class Reader(torch.nn.Module):
    """A learner that records what its loss is given."""

    window = 3

    def __init__(self, spec: Spec, *, targets: tuple[str, ...], reads: tuple[str, ...]) -> None:
        super().__init__()
        self.spec, self.config = spec, None
        self.targets, self.reads = targets, reads
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def loss(self, batch: Batch) -> Loss:
        self.seen = batch
        return Loss(self.weight.square(), {})


@pytest.mark.parametrize("reads", [(), ("rewards",), ("task", "segments")])
@pytest.mark.parametrize("targets", [(), ("keypoints",)])
def test_a_learner_gets_what_it_declares_and_nothing_else(
    data: Path, targets: tuple[str, ...], reads: tuple[str, ...]
) -> None:
    with ZarrStore.open(data) as store:
        learner = Reader(run_folder.public(store), targets=targets, reads=reads)
        batch = _windows(store, learner, Training(batch=6, window=4), learner.spec.tasks)[0]
        extra = replace(
            batch,
            observations={**batch.observations, "keypoints": torch.zeros(6, 4, 3, 2)},
            targets={**batch.targets, "velocity": torch.zeros(6, 4)},
        )
    learner.loss(for_model(extra, learner))
    seen = learner.seen
    assert set(seen.observations) == {"rgb"} and set(seen.targets) == set(targets)
    filled = {n for n in ("rewards", "task", "segments") if getattr(seen, n) is not None}
    assert filled == set(reads)
    if "rewards" in reads:
        assert seen.rewards.shape == (6, 3) and seen.rewards.dtype == torch.float32
    if "task" in reads:  # episode i is of task i mod 2, ids begin at 1
        assert seen.task.dtype == torch.int64 and seen.task.shape == (6, 4)
        assert torch.equal(seen.task, seen.segments % 2 + 1)
        assert learner.spec.tasks == ("task_0", "task_1")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"targets": ("rgb",)}, "Windows.targets: 'rgb' is not privileged"),
        ({"targets": ("speed",)}, "Windows.targets: no observation 'speed'"),
        ({"reads": ("language",)}, "Windows.reads: 'language' is not one of rewards, task"),
    ],
)
def test_what_a_learner_cannot_declare(data: Path, wrong: dict, said: str) -> None:
    with ZarrStore.open(data) as store:
        learner = Reader(run_folder.public(store), **{"targets": (), "reads": (), **wrong})
        with pytest.raises(ConfigError, match=said):
            _windows(store, learner, Training(batch=2, window=3), ())
