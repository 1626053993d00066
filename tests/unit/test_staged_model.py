"""A model of two networks and a derived store, defined here: trained, stopped, killed, loaded."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import latentplan
from latentplan.data.derived import derive
from latentplan.data.store import ZarrStore
from latentplan.errors import CheckpointError, Interrupted, StoreError
from latentplan.training import checkpoint
from latentplan.types import (
    ActionSpec,
    ArraySpec,
    Batch,
    Derived,
    Episode,
    Loss,
    Parts,
    Spec,
    Stage,
    Training,
)

SPEC = Spec({"state": ArraySpec((3,))}, ActionSpec((-1.0,), (1.0,)), env="toy")
FEW = Training(steps=6, batch=4, eval_every=3, save_every=1, warmup=1, held_out=0.3)


class Compressor(nn.Module):
    """A linear autoencoder of states."""

    window, targets, reads = 1, (), ()

    @dataclass(frozen=True)
    class Config:
        size: int = 2

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        super().__init__()
        self.spec, self.config = spec, config or self.Config()
        self.down, self.up = nn.Linear(3, self.config.size), nn.Linear(self.config.size, 3)

    def loss(self, batch: Batch) -> Loss:
        state = batch.observations["state"]
        return Loss((self.up(self.down(state)) - state).square().mean(), {})


class Step(nn.Module):
    """The next code of a code."""

    window, targets, reads = 2, (), ()

    @dataclass(frozen=True)
    class Config:
        width: int = 4

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        super().__init__()
        self.spec, self.config = spec, config or self.Config()
        size = spec.observation["code"].shape[0]
        self.net = nn.Sequential(
            nn.Linear(size, self.config.width), nn.ReLU(), nn.Linear(self.config.width, size)
        )

    def loss(self, batch: Batch) -> Loss:
        code = batch.observations["code"]
        return Loss((self.net(code[:, :-1]) - code[:, 1:]).square().mean(), {})


def encoded(episodes: Sequence[Episode], parts: Parts) -> list[Episode]:
    with torch.no_grad():
        return [
            replace(e, observations={"code": parts["compressor"].down(
                torch.from_numpy(e.observations["state"])).numpy()})
            for e in episodes
        ]  # fmt: skip


class Toy(nn.Module):
    """A compressor, and a step of what it makes."""

    @dataclass(frozen=True)
    class Config:
        compressor: Compressor.Config = Compressor.Config()
        step: Step.Config = Step.Config()

    @dataclass(frozen=True)
    class Training:
        compressor: Training = field(default_factory=lambda: FEW)
        step: Training = field(default_factory=lambda: FEW)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        super().__init__()
        c = self.config = config or self.Config()
        self.spec = spec
        self.compressor = Compressor(spec, c.compressor)
        codes = replace(spec, observation={"code": ArraySpec((c.compressor.size,))})
        self.step = Step(codes, c.step)

    @classmethod
    def stages(cls, config: Config, *, training: Any, spec: Spec, labels: Any) -> list[Any]:
        codes = {"code": ArraySpec((config.compressor.size,))}
        return [
            Stage(
                "compressor",
                lambda spec, parts: Compressor(spec, config.compressor),
                config.compressor,
                training.compressor,
            ),
            Derived(
                "codes",
                lambda spec, parts: replace(spec, observation=codes),
                encoded,
                parts=("compressor",),
                rows=20,
            ),
            Stage(
                "step",
                lambda spec, parts: Step(spec, config.step),
                config.step,
                training.step,
                data="codes",
                window=2,
            ),
        ]

    @classmethod
    def assemble(cls, config: Config, *, spec: Spec, labels: Any, parts: Parts) -> Toy:
        model = cls(spec, config)
        model.compressor, model.step = parts["compressor"], parts["step"]
        return model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "states.zarr"
    rng = np.random.default_rng(0)
    with ZarrStore.create(path, SPEC) as store:
        for length in (7, 5, 9, 6, 8, 7, 5, 9):
            states = rng.normal(size=(length + 1, 3)).astype(np.float32)
            actions = rng.uniform(-1, 1, (length, 1)).astype(np.float32)
            store.append(Episode({"state": states}, actions, np.zeros(length, np.float32)))
    return path


def weights(run: Path) -> dict[str, bytes]:
    tensors, _ = checkpoint.read(run / "best.safetensors", format=checkpoint.FORMAT)
    return {key: value.numpy().tobytes() for key, value in tensors.items()}


def test_it_is_trained_and_loaded_as_a_whole_and_in_parts(data: Path, tmp_path: Path) -> None:
    found = latentplan.train(Toy, data=data, run=tmp_path / "run", overrides=["model.step.width=5"])
    assert {"compressor.loss", "step.loss"} <= found.figures.keys() and found.steps == 12
    whole = checkpoint.load(found.checkpoint, build=Toy)
    assert whole.name.endswith("test_staged_model:Toy") and whole.config.step.width == 5
    with pytest.raises(CheckpointError, match="Toy', which is not registered; pass its class"):
        checkpoint.load(found.checkpoint)
    part = checkpoint.load(found.checkpoint, kind="part", name="step", build=Step)
    for key, value in whole.model.step.state_dict().items():
        assert torch.equal(part.model.state_dict()[key], value)
    again = latentplan.train(
        Toy, data=data, run=tmp_path / "run", overrides=["model.step.width=5"], resume=True
    )
    assert again.steps == 0 and again.figures == found.figures


def test_runs_that_share_a_folder_train_only_what_differs(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "stages"
    first = latentplan.train(Toy, data=data, run=tmp_path / "first", cache=cache)
    overrides = ["model.step.width=6"]
    second = latentplan.train(
        Toy, data=data, run=tmp_path / "second", cache=cache, overrides=overrides
    )
    assert (first.steps, second.steps) == (12, 6)
    names = sorted(each.name.split("-")[0] for each in cache.iterdir())
    assert names == ["codes", "compressor", "step", "step"]


@pytest.mark.parametrize(("task", "done"), [("train compressor", 3), ("train step", 2)])
def test_stopped_it_ends_as_if_undisturbed(
    data: Path, tmp_path: Path, task: str, done: int
) -> None:
    def stop(progress: Any) -> None:
        if (progress.task, progress.done) == (task, done):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        latentplan.train(Toy, data=data, run=tmp_path / "cut", on_progress=stop)
    latentplan.train(Toy, data=data, run=tmp_path / "cut", resume=True)
    latentplan.train(Toy, data=data, run=tmp_path / "whole")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def doubled(episodes: Sequence[Episode]) -> list[Episode]:
    return [replace(e, observations={"state": 2 * e.observations["state"]}) for e in episodes]


def _derive_and_die(data: Path, out: Path, after: int) -> None:
    """Derive a store in a process that is gone after so many episodes, as by kill -9."""
    append, count = ZarrStore.append, 0

    def dying(store: ZarrStore, episode: Episode) -> None:
        nonlocal count
        append(store, episode)
        count += 1
        if count == after:
            os._exit(9)

    ZarrStore.append = dying  # type: ignore[method-assign]
    derive(ZarrStore.open(data), out, spec=SPEC, make=doubled, rows=20)


def test_a_derived_store_continues_after_a_kill_in_the_same_groups(
    data: Path, tmp_path: Path
) -> None:
    out, groups = tmp_path / "doubled.zarr", []
    context = multiprocessing.get_context("fork")
    for after in (1, 3):
        process = context.Process(target=_derive_and_die, args=(data, out, after))
        process.start()
        process.join(60)
        assert process.exitcode == 9

    def make(episodes: Sequence[Episode]) -> list[Episode]:
        groups.append([len(e) for e in episodes])
        return doubled(episodes)

    with ZarrStore.open(data) as store:
        with derive(store, out, spec=SPEC, make=make, rows=20) as made:
            assert groups == [[6, 8, 7], [5, 9]]  # the group that a kill cut is made as a whole
            assert len(made) == len(store)
            for index in range(len(store)):
                expected = 2 * store.episode(index).observations["state"]
                np.testing.assert_array_equal(made.episode(index).observations["state"], expected)
        with pytest.raises(StoreError, match="found 0 episodes made of"):
            derive(store, tmp_path / "x.zarr", spec=SPEC, make=lambda episodes: [])
        other = replace(SPEC, observation={"state": ArraySpec((4,))})
        with pytest.raises(StoreError, match="spec.observation.state"):
            derive(store, out, spec=other, make=doubled)
