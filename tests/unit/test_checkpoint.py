"""Checkpoints: what is saved comes back, and what does not fit is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from full_disk import files_of_at_most
from safetensors.torch import load_file, save_file
from toy import ToyEnv
from toy_model import ToyModel, toy_spec

from latentplan import registry
from latentplan.errors import CheckpointError, ConfigError, MissingDependency
from latentplan.models.cfm import CFM
from latentplan.tokenizers.vqvae import VQVAE
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, ArraySpec, Spec

FIGURES = {"loss": 0.1 + 0.2, "top1": 0.75}


def cfm() -> CFM:
    torch.manual_seed(3)
    settings = CFM.Config(channels=(4, 4), strides=(2, 2), hidden=(8, 8), latent=3)
    return CFM(ToyEnv().data_spec, settings)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "a.safetensors", cfm(), name="cfm", step=7, metrics=FIGURES)
    return tmp_path / "a.safetensors"


def test_everything_comes_back(file: Path) -> None:
    model, found = cfm(), checkpoint.load(file)
    assert (found.name, found.step, found.metrics) == ("cfm", 7, FIGURES)
    assert found.config == found.model.config == model.config
    assert found.spec == found.model.spec == model.spec
    assert not found.model.training
    for key, weight in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[key], weight)
    assert [p.name for p in file.parent.iterdir()] == ["a.safetensors"]


def test_half_precision_halves_the_file_and_comes_back_in_full(file: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    checkpoint.save(half, cfm(), name="cfm", step=7, metrics={}, dtype=torch.bfloat16)
    weights, found = load_file(half), checkpoint.load(half).model.state_dict()
    full = load_file(file)
    assert sum(w.nbytes for w in weights.values()) * 2 == sum(w.nbytes for w in full.values())
    for key, weight in full.items():
        assert found[key].dtype == torch.float32
        assert torch.equal(found[key], weight.bfloat16().float())


def test_a_weight_beyond_half_precision_is_refused(tmp_path: Path) -> None:
    model = ToyModel(toy_spec())
    model.A.data[0, 0] = 1e6
    file = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match=r"'A' is not finite in torch\.float16"):
        checkpoint.save(file, model, name="toy", step=0, metrics={}, dtype=torch.float16)
    assert not file.exists()


def test_tied_weights_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tied(ToyModel):
        def __init__(self, spec, config=None):
            super().__init__(spec, config)
            self.C = self.A

    monkeypatch.setattr(registry, "get", lambda kind, name: Tied)
    model = Tied(toy_spec())
    model.A.data += 1
    checkpoint.save(tmp_path / "a.safetensors", model, name="cfm", step=0, metrics={})
    found = checkpoint.load(tmp_path / "a.safetensors").model
    assert found.C is found.A and torch.equal(found.A, model.A)


def test_find(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint in this folder"):
        checkpoint.find(run)
    for name in ("last", "best"):
        checkpoint.save(run / f"{name}.safetensors", cfm(), name="cfm", step=0, metrics={})
        assert checkpoint.find(str(run)) == run / f"{name}.safetensors"
    assert checkpoint.find(file) == file
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "shipped")
    with pytest.raises(CheckpointError, match="shipped: none"):
        checkpoint.find("rope-cfm")
    there = tmp_path / "shipped/rope-cfm/best.safetensors"
    checkpoint.save(there, cfm(), name="cfm", step=0, metrics={})
    assert checkpoint.find("rope-cfm") == there
    with pytest.raises(CheckpointError, match=r"'rope-cmf': no such .* did you mean 'rope-cfm'\?"):
        checkpoint.find("rope-cmf")


def test_files_that_are_none(file: Path) -> None:
    whole = file.read_bytes()
    for content in (b"", b"hello", whole[:100], whole[:-10], b"\xff" * 1000):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.safetensors: corrupt"):
            checkpoint.load(file)
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load(file.with_name("absent"))


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "boom"),))

    torch.save({"a": Bomb()}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "a.safetensors")
    assert not (tmp_path / "boom").exists()


def test_other_formats_are_told(file: Path) -> None:
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="format is 'none', .* reads 'latentplan-checkpoint"):
        checkpoint.load(file)
    save_file({"a": torch.zeros(1)}, file, {"format": "latentplan-checkpoint-9", "header": "{}"})
    with pytest.raises(CheckpointError, match="format is 'latentplan-checkpoint-9'"):
        checkpoint.load(file)


def rewritten(file: Path, *, weights: dict | None = None, **header: object) -> Path:
    tensors, old = checkpoint.read(file, format=checkpoint.FORMAT)
    checkpoint.write(
        file, tensors | (weights or {}), format=checkpoint.FORMAT, header={**old, **header}
    )
    return file


def test_headers_that_do_not_fit_are_told(file: Path) -> None:
    settings = checkpoint.read_header(file).config
    for header, text in [
        ({"name": "cmf"}, r"model 'cmf', which is not registered; .*installed here; known: .*cfm"),
        ({"name": "os:system"}, r"'os:system', which is not registered; pass its class to load"),
        ({"kind": "tokenizer"}, r"holds the tokenizer 'cfm', need a model"),
        ({"config": {**settings, "width": 3}}, "CFM has no key 'width'"),
        ({"config": {**settings, "latent": "x"}}, "CFM.latent: found 'x'"),
    ]:
        with pytest.raises(CheckpointError, match=text):
            checkpoint.load(rewritten(file, **header))
        rewritten(file, kind="model", name="cfm", config=settings)
    with pytest.raises(CheckpointError, match=r"header\.spec\.observation: is missing"):
        checkpoint.load(rewritten(file, spec={}))


def test_weights_that_do_not_fit_are_told(file: Path) -> None:
    weights, header = checkpoint.read(file, format=checkpoint.FORMAT)
    key = sorted(weights)[0]
    for wrong, text in [
        (weights | {key: torch.zeros(99)}, rf"'{key}': found \(99,\), need \("),
        (weights | {"extra": torch.zeros(1)}, r"'extra': found \(1,\), need no such weight"),
        ({k: w for k, w in weights.items() if k != key}, f"'{key}': found nothing"),
    ]:
        checkpoint.write(file, wrong, format=checkpoint.FORMAT, header=header)
        with pytest.raises(CheckpointError, match=text):
            checkpoint.load(file)


def test_devices_are_never_replaced() -> None:
    assert checkpoint.find_device("cpu").type == "cpu"
    for name in ("gpu", "", "mps:0", "cuda:x"):
        with pytest.raises(ConfigError, match="need cpu, cuda or cuda:INDEX"):
            checkpoint.find_device(name)
    with pytest.raises(MissingDependency, match=r"'cuda:77' is not there"):
        checkpoint.find_device("cuda:77")


def test_a_full_disk_leaves_the_earlier_file(file: Path) -> None:
    before = file.read_bytes()
    refused = pytest.raises(CheckpointError, match="not written .* free some disk space")
    with files_of_at_most(1000), refused:
        checkpoint.save(file, cfm(), name="cfm", step=8, metrics={})
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == ["a.safetensors"]


def test_cameras_keep_their_order(tmp_path: Path) -> None:
    image = ArraySpec((16, 16, 3), "uint8")
    spec = Spec({"wide": image, "near": image}, ActionSpec((-1.0,), (1.0,)))
    model = VQVAE(spec, VQVAE.Config(channels=(8,), patch=8, levels=(4, 3))).eval()
    with torch.no_grad():
        for weight in model.parameters():  # what cameras have of their own begins as equal
            weight.add_(torch.randn_like(weight))
    checkpoint.save(
        tmp_path / "a.safetensors", model, name="vqvae", step=1, metrics={}, kind="tokenizer"
    )
    found = checkpoint.load(tmp_path / "a.safetensors", kind="tokenizer").model
    assert [*found.spec.observation] == ["wide", "near"]
    pixels = torch.randint(0, 256, (2, 2, 1, 16, 16, 3), dtype=torch.uint8)
    seen = dict(zip(("near", "wide"), pixels, strict=True))
    assert torch.equal(found.encode(seen).ids, model.encode(seen).ids)


def test_a_part_of_a_file_of_before_has_the_cameras_in_the_order_of_the_whole() -> None:
    file = checkpoint.find("tabletop-videoworld")
    whole = checkpoint.load(file).model
    part = checkpoint.load(file, kind="tokenizer").model
    assert whole.config.images == part.images == ("rgb_static", "rgb_gripper")
    images = {
        key: torch.randint(0, 256, (1, 2, 64, 64, 3), dtype=torch.uint8) for key in part.images
    }
    assert torch.equal(part.encode(images).ids, whole.tokenizer.encode(images).ids)


def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "b.safetensors"
    checkpoint.save(other, cfm(), name="cfm", step=8, metrics=FIGURES)
    opening = checkpoint.safe_open

    def late(path: str, **options: str) -> object:
        os.replace(other, file)
        return opening(path, **options)

    monkeypatch.setattr(checkpoint, "safe_open", late)
    assert checkpoint.read_header(file).step == 7
    monkeypatch.undo()
    assert checkpoint.read_header(file).step == 8
