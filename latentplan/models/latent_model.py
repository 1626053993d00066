"""An encoder with a latent dynamics, trained on turned windows: what several models share.

They differ in the loss that makes the latents: see `cfm`, `autoencoder`, `joint`, `jepa` and
`planet`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentplan.errors import check_range
from latentplan.nn import symmetry
from latentplan.nn.encoder import Encoder, EncoderConfig, owner
from latentplan.nn.mlp import LatentMLP
from latentplan.nn.scaling import ActionScaling
from latentplan.shapes import check
from latentplan.types import Batch, Context, Moments, Spec, Tensors


class EncodingModel(nn.Module):
    """A model of an encoder, trained on every window turned and flipped if the data allow it.

    If `Spec.planar` states which numbers of an action are vectors in the plane of the one image
    that is encoded, image and action are turned together, and it is a
    `protocols.EquivariantEncoder`.
    """

    targets: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    views: int = 1  # that `encode` concatenates

    def __init__(self, spec: Spec, encoder: Any, *, symmetric: bool) -> None:
        """Take an encoder with the `keys` that it reads and their `spec`."""
        super().__init__()
        self.encoder, self.spec = encoder, encoder.spec
        self.scaled, self.frames = encoder.scaled, encoder.frames
        self.symmetric = symmetric and _is_planar(spec, encoder.keys)
        turned = spec.planar.pairs if spec.planar is not None and self.symmetric else ()
        self.scaling = ActionScaling(spec.action, pairs=turned)
        self.matrices: Tensor
        self.register_buffer("matrices", symmetry.matrices(), persistent=False)

    def fit_statistics(self, actions: Moments, observations: Mapping[str, Moments]) -> None:
        """Scale actions and observations by their statistics: see `protocols.Normalised`."""
        self.scaling.fit(actions)
        self.encoder.fit_statistics(observations)

    def encode(self, observations: Tensors) -> Tensor:
        """Return the latents (B, T, D) of observations, each (B, T, ...)."""
        latents: Tensor = self.encoder(observations)
        return latents

    @property
    def elements(self) -> int:
        """The number of turns and flips that the model is trained under."""
        return symmetry.ELEMENTS if self.symmetric else 1

    def encode_views(self, observations: Tensors) -> Tensor:
        """Return the latents (B, T, G, D) of observations under every turn and flip."""
        z = [self.encode(self._turned(observations, g)) for g in range(self.elements)]
        return torch.stack(z, dim=2)

    def turn_actions(self, actions: Tensor, elements: Tensor) -> Tensor:
        """Return actions (B, ..., A), row i turned by element `elements[i]`."""
        if not self.symmetric:
            return actions
        assert self.spec.planar is not None  # symmetric only then
        shape = (len(elements), *[1] * (actions.ndim - 2), 2, 2)
        matrices = self.matrices[elements].view(shape)
        return symmetry.turn_vectors(actions, matrices, self.spec.planar.pairs)

    def turned(self, batch: Batch) -> tuple[Tensors, Tensor]:
        """Return observations and scaled actions of windows, row i turned by element i mod 8."""
        if not self.symmetric:
            return batch.observations, self.scaling(batch.actions)
        (key,) = self.encoder.keys
        image = batch.observations[key].clone()
        for g in range(1, symmetry.ELEMENTS):
            part = image[g :: symmetry.ELEMENTS]
            part.copy_(symmetry.turn_image(part, g, axes=(-3, -2)))
        rows = torch.arange(len(image), device=image.device) % symmetry.ELEMENTS
        return {key: image}, self.scaling(self.turn_actions(batch.actions, rows))

    def _turned(self, observations: Tensors, element: int) -> Tensors:
        """Return the observations turned by one element; those of element 0 as they are."""
        if element == 0:
            return observations
        (key,) = self.encoder.keys
        return {key: symmetry.turn_image(observations[key], element, axes=(-3, -2))}


class LatentModel(EncodingModel):
    """A `protocols.Dynamics` of an encoder and z' = z + MLP(z, a), as in `cfm`, without a loss."""

    context = 1

    @dataclass(frozen=True)
    class Config(EncoderConfig):
        """The encoder, and these."""

        hidden: tuple[int, ...] = (512, 512)  # widths of the dynamics' layers
        ahead: int = 3  # predictions 1 to `ahead` actions later are trained, as windows are long
        symmetric: bool = True  # train turned and flipped, if the data allow it

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            super().__post_init__()
            check_range(f"{owner(self)}.ahead", self.ahead, 1, 100)
            for width in self.hidden:
                check_range(f"{owner(self)}.hidden", width, 1, 8192)

    def __init__(self, spec: Spec, config: Any) -> None:
        """Build the encoder and the dynamics for the observations and actions of `spec`."""
        super().__init__(spec, Encoder(spec, config), symmetric=config.symmetric)
        self.config: Any = config
        self.latent_dim, self.window = int(config.latent), config.frames + 1
        self.dynamics = LatentMLP(config.latent, spec.action.size, config.hidden)

    def prepare(self, context: Context) -> Tensor:
        """Return the last latent (B, D)."""
        name = type(self).__name__
        check(f"{name}.prepare.context", context.latents, "B T D", D=self.latent_dim)
        return context.latents[:, -1]

    def rollout(self, prepared: Tensor, actions: Tensor) -> Tensor:
        """Return (B, N, H, D) after each of the actions (B, N, H, A), from latents (B, D)."""
        size, name = self.spec.action.size, type(self).__name__
        check(f"{name}.rollout.actions", actions, "B N H A", B=len(prepared), A=size)
        return self.dynamics.unroll(prepared, self.scaling(actions))

    def ahead(self, z: Tensor, actions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield predicted and encoded latents (B, T - k, D), k = 1 to `ahead` actions later.

        Given latents (B, T, D) and scaled actions (B, T - 1, A).
        """
        predicted = z
        for k in range(1, min(self.config.ahead, actions.shape[1]) + 1):
            predicted = self.dynamics(predicted[:, :-1], actions[:, k - 1 :])
            yield predicted, z[:, k:]


def mean_error(pairs: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the mean squared error of predicted latents, over the steps ahead."""
    return torch.stack([(found - true).square().mean() for found, true in pairs]).mean()


def spread(z: Tensor) -> Tensor:
    """Return the standard deviation of latents (B, T, D), mean over D: 0 if all are one point."""
    return z.detach().flatten(0, 1).std(0, correction=0).mean()


def _is_planar(spec: Spec, keys: tuple[str, ...]) -> bool:
    planar = spec.planar
    if planar is None or tuple(keys) != (planar.image,):
        return False
    height, width, _ = spec.observation[planar.image].shape
    return height == width
