"""Checkpoints that say what they like: one line that names the field, before anything is built."""

from __future__ import annotations

import copy
import json
import math
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy import ToyEnv

from latentplan.api.show import describe
from latentplan.errors import BudgetError, CheckpointError, LatentplanError
from latentplan.models.cfm import CFM
from latentplan.training import checkpoint, state
from latentplan.training.state import State
from latentplan.types import Spec

SMALL = CFM.Config(channels=(4, 4), strides=(2, 2), hidden=(8, 8), latent=3)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("good") / "a.safetensors"
    torch.manual_seed(0)
    model = CFM(ToyEnv().data_spec, SMALL)
    checkpoint.save(file, model, name="cfm", step=7, metrics={"loss": math.nan, "top1": 1.0})
    return file


def changed(good: Path, path: Path, change: dict[str, Any]) -> Path:
    """Write a copy of a checkpoint with values of its header replaced, `a.b.0` by place."""
    tensors, header = checkpoint.read(good, format=checkpoint.FORMAT)
    header = copy.deepcopy(header)
    for place, value in change.items():
        *outer, last = [int(key) if key.isdecimal() else key for key in place.split(".")]
        inside = header
        for key in outer:
            inside = inside[key]
        if value is None:
            del inside[last]
        else:
            inside[last] = value
    checkpoint.write(path, tensors, format=checkpoint.FORMAT, header=header)
    return path


WRONG: dict[str, dict[str, Any]] = {
    r"header.step: found 'x', need a valid integer": {"step": "x"},
    r"header.step: found -1, need 0 or more": {"step": -1},
    r"header.step: found True": {"step": True},
    r"header.step: is missing": {"step": None},
    r"header.metrics.loss: found 'low', need a valid number": {"metrics": {"loss": "low"}},
    r"header.metrics: found a list": {"metrics": []},
    r"header.more: is no key": {"more": 1},
    r"header.kind: found a list": {"kind": ["model"]},
    r"header.name: found a dict": {"name": {}},
    r"header.config: found a list": {"config": []},
    r"header.parts: found a list": {"parts": []},
    r"header.parts.x.kind: is missing": {"parts": {"x": {}}},
    r"CFM.latent: found \[": {"config.latent": [[[1]]]},
    r"header.config: found 50\d\d values, allowed are 5000": {"config.hidden": [8] * 5000},
    r"CFM.latent: 1000000000 is not within": {"config.latent": 10**9},
    r"CFM has no key 'none'": {"config.none": 1},
    r"does not fit this version of latentplan: ": {"config.channels": [4]},
    r"header.spec.dt: found 0.0, need s above 0": {"spec.dt": 0},
    r"header.spec.action.low.0: found nan, need a finite number": {"spec.action.low.0": math.nan},
    r"header.spec.action.low.1: found 3.0 above": {"spec.action.low.1": 3},
    r"header.spec.action: found 3 lower and 4 upper": {"spec.action.low": [0, 0, 0]},
    r"header.spec.observation.rgb.dtype: found 'object'": {"spec.observation.rgb.dtype": "object"},
    r"header.spec.observation.rgb.shape: found \(-1,": {"spec.observation.rgb.shape.0": -1},
    r"header.spec.observation.rgb.shape.0: found 0.5": {"spec.observation.rgb.shape.0": 0.5},
    r"header.spec.pick.image: found 'no', known: ": {
        "spec.pick": {"image": "no", "low": [0, 0, 0], "high": [1, 1, 1]}
    },
    r"header.spec.pick: found colours \(0, 0, -1\)": {
        "spec.pick": {"image": "rgb", "low": [0, 0, -1], "high": [1, 1, 1]}
    },
    r"header.spec.action.convention.control: is missing": {"spec.action.convention": {}},
}


@pytest.mark.parametrize("said", WRONG)
def test_a_header_that_is_wrong_names_the_field(good: Path, tmp_path: Path, said: str) -> None:
    file = changed(good, tmp_path / "a.safetensors", WRONG[said])
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: (.*{said})") as e:
        checkpoint.load(file)
    assert len(str(e.value).splitlines()) == 1
    if "CFM" not in said and "version" not in said:
        with pytest.raises(CheckpointError, match=rf"a\.safetensors: {said}"):
            list(describe(file, out=tmp_path / "a.png"))


@pytest.mark.parametrize(
    "change",
    [
        {"spec.action.low": [0] * 600_000, "spec.action.high": [1] * 600_000},
        {"spec.observation.rgb.shape": [10**6, 10**6, 3]},
    ],
    ids=["actions", "pixels"],
)
def test_sizes_of_the_spec_are_held_against_the_budget(
    good: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(BudgetError, match=r"LATENTPLAN_BUDGET"):
        checkpoint.load(changed(good, tmp_path / "a.safetensors", change))


class Wide(CFM):
    """A model whose config has no ranges."""

    @dataclass(frozen=True)
    class Config:
        width: int = 1
        layers: int = 1

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        super().__init__(spec, SMALL)
        made = config or self.Config()
        self.more = nn.ModuleList(nn.Linear(made.width, made.width) for _ in range(made.layers))
        self.places = torch.arange(made.width)
        self.config = made  # type: ignore[assignment]


@pytest.mark.parametrize("config", [{"width": 10**6}, {"layers": 10**9}, {}])
def test_a_network_is_not_built_beyond_the_budget(tmp_path: Path, config: dict[str, int]) -> None:
    file, name = tmp_path / "a.safetensors", f"{__name__}:Wide"
    checkpoint.save(file, Wide(ToyEnv().data_spec), name=name, step=0, metrics={})
    changed(file, file, {f"config.{key}": value for key, value in config.items()})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if not config:
        assert isinstance(checkpoint.load(file, build=Wide).model, Wide)
        return
    with pytest.raises(BudgetError, match=f"model '{name}': needs"):
        checkpoint.load(file, build=Wide)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool", "complex64", "float64"])
def test_weights_of_another_dtype_are_refused(good: Path, tmp_path: Path, dtype: str) -> None:
    tensors, header = checkpoint.read(good, format=checkpoint.FORMAT)
    key = sorted(tensors)[0]
    file = tmp_path / "a.safetensors"
    other = tensors | {key: tensors[key].to(getattr(torch, dtype))}
    checkpoint.write(file, other, format=checkpoint.FORMAT, header=header)
    with pytest.raises(CheckpointError, match=f"'{key}': found .*, need F32, F16 or BF16$"):
        checkpoint.load(file)


def test_weights_that_are_nan_or_not_there_are_refused(good: Path, tmp_path: Path) -> None:
    tensors, header = checkpoint.read(good, format=checkpoint.FORMAT)
    file, key = tmp_path / "a.safetensors", sorted(tensors)[0]
    bad = torch.full_like(tensors[key], math.nan)
    checkpoint.write(file, tensors | {key: bad}, format=checkpoint.FORMAT, header=header)
    with pytest.raises(CheckpointError, match=f"weight '{key}' holds a NaN"):
        checkpoint.load(file)
    # A header of tensors that are not in the file: nothing is allocated for them.
    about = {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    head = json.dumps(about).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(CheckpointError, match="corrupt"):
        checkpoint.load(file)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").symlink_to("/dev/zero")
    for read in (checkpoint.load, checkpoint.read_header):
        with pytest.raises(CheckpointError, match="is a device, need a regular file"):
            read(tmp_path / "best.safetensors")


def stopped(run: Path) -> State:
    """Return a training state after one step, saved in a run folder."""
    model = CFM(ToyEnv().data_spec, SMALL)
    made = State(model, optimizer=torch.optim.AdamW(model.parameters()), ema=None)
    sum(weight.sum() for weight in model.parameters()).backward()
    made.optimizer.step()
    made.step = 1
    made.save(run)
    return made


@pytest.mark.parametrize(
    ("header", "tensors", "said"),
    [
        ({"step": "1"}, {}, "header.step: found '1', need a valid integer"),
        ({"step": -1}, {}, "header: found step -1"),
        ({"best": []}, {}, "header.best: found a list"),
        ({"figures": {"a": "b"}}, {}, "header.figures.a: found 'b'"),
        ({"more": 1}, {}, "header.more: is no key"),
        ({}, {"model/none": torch.zeros(1)}, "'none': found .1,., need no such weight"),
        ({}, {"optimizer/none/exp_avg": torch.zeros(1)}, "optimizer/none/exp_avg: found"),
        ({}, {"optimizer/dynamics.rest.0.bias/exp_avg": torch.zeros(99)}, "found .99,."),
        ({}, {"nothing": torch.zeros(1)}, "found a tensor 'nothing'"),
        ({}, {"ema/x": torch.zeros(1)}, "holds averaged weights"),
    ],
)
def test_a_training_state_that_is_wrong_is_refused(
    tmp_path: Path, header: dict[str, Any], tensors: dict[str, Any], said: str
) -> None:
    made = stopped(tmp_path)
    file = tmp_path / state.FILE
    own, values = checkpoint.read(file, format=state.FORMAT)
    assert state.steps_done(tmp_path) == 1
    assert any(name.startswith("optimizer/dynamics.rest.0.bias/") for name in own)
    made.restore(tmp_path)
    checkpoint.write(file, own | tensors, format=state.FORMAT, header={**values, **header})
    with pytest.raises(CheckpointError, match=rf"state\.safetensors: .*{said}"):
        made.restore(tmp_path)


def test_mutated_checkpoints_are_read_or_refused(good: Path, tmp_path: Path) -> None:
    import bombs

    content, rng, file = good.read_bytes(), np.random.default_rng(0), tmp_path / "a.safetensors"
    head = 8 + int.from_bytes(content[:8], "little")  # where the weights begin
    refused = 0
    for _ in range(120):
        file.write_bytes(bombs.mutated(content[:head], rng) + content[head:])
        try:
            checkpoint.load(file)
        except LatentplanError as e:
            assert str(e).isprintable()
            refused += 1
    assert refused > 60
