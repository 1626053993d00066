"""FakeCuda finds what waits for a GPU, what copies to it, and what was left on the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, FakeCuda, FakeGenerator, OtherDevice, Waits

from latentplan.nn.observations import device_of


def on_gpu(*shape: int) -> torch.Tensor:
    return torch.ones(shape, device="cuda")


@pytest.mark.parametrize(
    "read",
    [
        lambda x: float(x.sum()),
        lambda x: x.sum().item(),
        lambda x: 1 if x.sum() > 0 else 2,
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: torch.empty(3, 4).copy_(x),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: torch.multinomial(x, 1),
        lambda x: torch.bincount(x.long().flatten()),
        lambda x: torch.unique(x),
        lambda x: torch.equal(x, x),
        lambda x: torch.linalg.cholesky(x[:, :3]),
        lambda x: x.repeat_interleave(on_gpu(3).long(), 0),
        lambda x: torch.cuda.synchronize(),
    ],
)
def test_what_waits_for_a_gpu_is_found(read):
    with FakeCuda({})(), pytest.raises(Waits, match="waits for the GPU"):
        read(on_gpu(3, 4))


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.cat([x, torch.ones(3, 4)]),
        lambda x: x @ torch.ones(4, 2),
        lambda x: torch.where(x > 0, x, torch.zeros(3, 4)),
        lambda x: torch.nn.Linear(4, 2)(x),
    ],
)
def test_a_tensor_left_on_the_cpu_is_found(mix):
    with FakeCuda({})(), pytest.raises(OtherDevice, match="on the CPU and the GPU"):
        mix(on_gpu(3, 4))


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.as_tensor(np.ones(3), device=x.device),
        lambda x: torch.ones(3).to(x),
        lambda x: x.copy_(torch.ones(3, 4)),
        lambda x: x[[0, 2]],
    ],
)
def test_a_copy_to_the_gpu_inside_a_solve_is_found(copy, monkeypatch):
    inside = "nn/observations.py:device_of"  # any function of the package that calls another
    monkeypatch.setattr("latentplan.nn.observations.chain", lambda *parts: iter([copy(parts[0])]))
    found = SimpleNamespace(parameters=lambda: on_gpu(3, 4), buffers=lambda: ())
    with FakeCuda({}, inside=(inside,))(), pytest.raises(Waits, match="copies to the GPU"):
        device_of(found)
    with FakeCuda({})():
        assert device_of(found) == CUDA


def test_a_fake_tensor_is_on_the_gpu_whatever_made_it():
    with FakeCuda({})():
        x = on_gpu(3, 4)
        drawn = torch.rand(3, device=x.device, generator=torch.Generator("cuda"))
        for each in (x, drawn, x.new_zeros(2), torch.randn_like(x), x.sum(), x.to(torch.int64)):
            assert each.device == CUDA and each.is_cuda and not each.is_meta
        assert not torch.ones(2).is_cuda and torch.device("cuda:0") == CUDA
        assert isinstance(torch.Generator("cuda"), FakeGenerator)
    assert x.is_meta and not isinstance(torch.Generator(), FakeGenerator)
