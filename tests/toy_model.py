"""A model with an exact answer: linear dynamics z' = A z + B a behind an identity encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from einops import reduce
from torch import Tensor, nn

from latentplan.types import ActionSpec, Array, ArraySpec, Batch, Context, Loss, Spec, Tensors


def toy_spec(states: int = 4, actions: int = 2, bound: float = 1.0) -> Spec:
    return Spec(
        observation={"state": ArraySpec((states,), "float32", "position of everything, metres")},
        action=ActionSpec((-bound,) * actions, (bound,) * actions, "push, newtons"),
        env="toy-linear",
    )


class ToyModel(nn.Module):
    window, targets, reads = 2, (), ()

    @dataclass(frozen=True)
    class Config:
        key: str = "state"  # the observation that is the latent
        cells: int = 4  # a picture (h, w, 3) is averaged to cells x cells x 3, the latent then
        context: int = 1  # T; only the last latent matters
        coupling: float = 0.1  # how far A is from the identity
        gain: float = 0.3  # size of B
        seed: int = 0  # of A and B
        dtype: str = "float32"

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        super().__init__()
        self.spec, self.config = spec, config or self.Config()
        self.context = self.config.context
        shape = spec.observation[self.config.key].shape
        self.latent_dim = shape[0] if len(shape) == 1 else self.config.cells**2 * 3
        size, dtype = self.latent_dim, getattr(torch, self.config.dtype)
        generator = torch.Generator().manual_seed(self.config.seed)
        mix = torch.randn(size, size, generator=generator, dtype=dtype) / size**0.5
        gain = torch.randn(size, spec.action.size, generator=generator, dtype=dtype)
        self.A = nn.Parameter(torch.eye(size, dtype=dtype) + self.config.coupling * mix)
        self.B = nn.Parameter(self.config.gain * gain)

    def encode(self, observations: Tensors) -> Tensor:
        seen = observations[self.config.key].to(self.A.dtype)
        if seen.ndim == 3:
            return seen
        n = self.config.cells
        cells = reduce(seen / 255, "b t (y h) (x w) c -> b t y x c", "mean", y=n, x=n)
        return cells.flatten(2)

    def prepare(self, context: Context) -> Tensor:
        return context.latents[:, -1]  # B D

    def rollout(self, prepared: Tensor, actions: Tensor) -> Tensor:
        latent = prepared[:, None].expand(-1, actions.shape[1], -1)  # B N D
        latents = []
        for action in actions.unbind(2):
            latent = latent @ self.A.T + action.to(latent) @ self.B.T
            latents.append(latent)
        return torch.stack(latents, dim=2)

    def loss(self, batch: Batch) -> Loss:
        latents = self.encode(batch.observations)
        ahead = latents[:, :-1] @ self.A.T + batch.actions.to(latents) @ self.B.T
        total = (ahead - latents[:, 1:]).square().sum(-1).mean()
        return Loss(total, {"prediction": total.detach()})


class Residuals(NamedTuple):
    """A linear-quadratic problem in terms of the actions in a row."""

    M: Array  # (H D + H A, H A)
    c: Array  # (H D + H A,)
    reached: Array  # (H D, H A): the latents in a row are reached @ a + drift
    drift: Array  # (H D,)


def lq_optimum(model: ToyModel, start: Tensor, *, horizon: int, effort: float) -> Tensor:
    """Return the least mean over the horizon of |z|^2 + effort |a|^2, (B,), by Riccati's recursion.

    The cost-to-go of z is z' P z; the state cost counts the latents reached, not the start (B, D).
    """
    A, B = model.A.detach(), model.B.detach()
    state = torch.eye(len(A), dtype=A.dtype)
    go = state  # P of the last latent
    for step in range(horizon):
        gain = torch.linalg.solve(effort * torch.eye(B.shape[1]).to(B) + B.T @ go @ B, B.T @ go @ A)
        last = step == horizon - 1
        go = A.T @ go @ (A - B @ gain) + (0 if last else state)
    return torch.einsum("bi,ij,bj->b", start, go, start) / horizon


def lq_residuals(model: ToyModel, start: Tensor, *, horizon: int, effort: float) -> Residuals:
    """Return M and c such that |M a + c|^2 is the cost that `lq_optimum` has the least of.

    `a` (H A,) are the actions in a row; `start` is one latent (D,).
    """
    A, B = model.A.detach().numpy(), model.B.detach().numpy()
    size = B.shape[1]
    power = [np.linalg.matrix_power(A, k) for k in range(horizon + 1)]
    reached = np.block(
        [[power[t - s] @ B if s <= t else 0 * B for s in range(horizon)] for t in range(horizon)]
    )
    drift = np.concatenate([power[t + 1] @ start.numpy() for t in range(horizon)])
    M = np.concatenate([reached, effort**0.5 * np.eye(horizon * size)])
    c = np.concatenate([drift, np.zeros(horizon * size)])
    return Residuals(M / horizon**0.5, c / horizon**0.5, reached, drift)
