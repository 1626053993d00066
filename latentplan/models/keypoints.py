"""Keypoints: the simulator's points in place of latents, as a bound for encoders of images.

It reads privileged observations, which it declares (`protocols.PrivilegedModel`): its spec lists
them, and so do its checkpoint and all results, so that it is never taken for a model of images.
What it does not reach is not the encoder's fault.

The dynamics is regressed on the points, as `calibrated` regresses on latents. The distance of
latents is then that of the points, the nearest of all orders in which the same object may be
numbered. (An env's own distance is the mean over the points; here it is the root of the sum of
squares, which `objectives/goal.py` computes.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.nn.mlp import LatentMLP
from latentplan.nn.scaling import ActionScaling
from latentplan.shapes import check
from latentplan.types import Batch, Context, Loss, Moments, Spec, Tensors

KEY = "keypoints"


class Keypoints(nn.Module):
    """Dynamics of an object's keypoints, which are the simulator's: a bound, not a method."""

    privileged = (KEY,)
    context = 1
    window = 2
    views = 1  # as a `protocols.EquivariantEncoder`, whose elements are the orders
    scaled: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    @dataclass(frozen=True)
    class Config:
        """The points, and the dynamics."""

        orders: str = "fixed"  # numberings of one object: fixed; line: from either end, as a rope;
        # grid: turns and flips of a square grid, as a cloth
        scale: float = 0.1  # m that are 1 in a latent
        hidden: tuple[int, ...] = (512, 512)  # widths of the dynamics' layers
        ahead: int = 3  # predictions 1 to `ahead` actions later are trained, as windows are long

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("Keypoints.scale", self.scale, 1e-6)
            check_range("Keypoints.ahead", self.ahead, 1, 100)
            for width in self.hidden:
                check_range("Keypoints.hidden", width, 1, 8192)
            if self.orders not in ("fixed", "line", "grid"):
                raise ConfigError(
                    f"Keypoints.orders: {self.orders!r} is not one of fixed, line, grid"
                )

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the dynamics; ConfigError if the data have no keypoints (K, 2 or 3)."""
        super().__init__()
        c = self.config = config or self.Config()
        if KEY not in spec.observation:
            known = ", ".join(spec.observation) or "none"
            raise ConfigError(
                f"Keypoints: the data have no {KEY!r}, only {known}; take another model"
            )
        array = spec.observation[KEY]
        if len(array.shape) != 2 or array.dtype not in ("float32", "float64"):
            raise ConfigError(
                f"Keypoints: {KEY!r} is {array.dtype} {array.shape}, need float32 (points, 2 or 3)"
            )
        read = {KEY} | ({spec.pick.image} if spec.pick else set())  # picks are planned in it
        seen = {key: each for key, each in spec.observation.items() if key in read}
        hidden = tuple(key for key in spec.privileged if key in read)
        self.spec = replace(spec, observation=seen, privileged=hidden, planar=None)
        self.orders: Tensor
        self.register_buffer("orders", _orders(c.orders, array.shape[0]), persistent=False)
        self.points = array.shape
        self.scaling = ActionScaling(spec.action)
        self.latent_dim = array.shape[0] * array.shape[1]
        self.dynamics = LatentMLP(self.latent_dim, spec.action.size, c.hidden)

    def fit_statistics(self, actions: Moments, observations: Mapping[str, Moments]) -> None:
        """Scale actions by their statistics: see `protocols.Normalised`."""
        self.scaling.fit(actions)

    @property
    def elements(self) -> int:
        """The number of orders."""
        return len(self.orders)

    def encode(self, observations: Tensors) -> Tensor:
        """Return the points (B, T, K d) of keypoints (B, T, K, d)."""
        points = observations[KEY]
        check("Keypoints.encode", points, "B T K d", K=self.points[0], d=self.points[1])
        return (points / self.config.scale).float().flatten(2)

    def equivalents(self, latents: Tensor) -> Tensor:
        """Return latents (S, ..., D) of the same objects, their points in every order."""
        points = latents.view(*latents.shape[:-1], *self.points)[..., self.orders, :]  # ... s k d
        return points.flatten(-2).movedim(-2, 0)

    def encode_views(self, observations: Tensors) -> Tensor:
        """Return the points (B, T, S, K d) in every order."""
        return self.equivalents(self.encode(observations)).movedim(0, 2)

    def turn_actions(self, actions: Tensor, elements: Tensor) -> Tensor:
        """Return the actions: they do not depend on the points' numbers."""
        return actions

    def prepare(self, context: Context) -> Tensor:
        """Return the last points (B, D)."""
        check("Keypoints.prepare.context", context.latents, "B T D", D=self.latent_dim)
        return context.latents[:, -1]

    def rollout(self, prepared: Tensor, actions: Tensor) -> Tensor:
        """Return points (B, N, H, D) after each of the actions (B, N, H, A)."""
        size = self.spec.action.size
        check("Keypoints.rollout.actions", actions, "B N H A", B=len(prepared), A=size)
        return self.dynamics.unroll(prepared, self.scaling(actions))

    def loss(self, batch: Batch) -> Loss:
        """Return the mean distance of predicted to true points, 1 to `ahead` actions later."""
        z = self.encode(batch.observations)
        every = self.equivalents(z)  # s b t d
        rows = torch.arange(len(z), device=z.device)
        z = every[rows % len(every), rows]  # row i in order i mod s
        errors = [(found - true).norm(dim=-1).mean() for found, true in self._ahead(z, batch)]
        moved = (z[:, 1:] - z[:, :-1]).norm(dim=-1).mean().clamp_min(1e-6)
        return Loss(torch.stack(errors).mean(), {"error_1": errors[0].detach() / moved})

    def _ahead(self, z: Tensor, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        predicted, actions = z, self.scaling(batch.actions)
        for k in range(1, min(self.config.ahead, actions.shape[1]) + 1):
            predicted = self.dynamics(predicted[:, :-1], actions[:, k - 1 :])
            yield predicted, z[:, k:]


def _orders(name: str, count: int) -> Tensor:
    """Return the permutations (S, K) under which an object of `count` points is the same."""
    index = torch.arange(count)
    if name == "fixed":
        return index[None]
    if name == "line":
        return torch.stack([index, index.flip(0)])
    side = isqrt(count)
    if side * side != count:
        raise ConfigError(
            f"Keypoints.orders: found grid and {count} points, need a square grid; take fixed"
        )
    grid = index.view(side, side)
    turned = [torch.rot90(each, k) for each in (grid, grid.flip(1)) for k in range(4)]
    return torch.stack(turned).flatten(1)
