"""Images of a latent, by transposed convolutions: the mirror of `nn/encoder.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from einops import rearrange
from torch import Tensor, nn

from latentplan.nn import images
from latentplan.types import Spec, Tensors

COLOURS = (1, 3, 4)  # numbers a pixel


class ImageDecoder(nn.Module):
    """One stack of transposed convolutions for each camera; pixels are in [-1, 1]."""

    def __init__(
        self, where: str, spec: Spec, keys: Sequence[str], *, latent: int, channels: Sequence[int]
    ) -> None:
        """Build the layers for those of `keys` that are images; ConfigError if none is."""
        super().__init__()
        spec = replace(spec, observation={key: spec.observation[key] for key in keys})
        self.keys = images.keys(where, (), spec, colours=COLOURS)
        stacks = {}
        for key in self.keys:
            height, width, colours = images.size(where, key, spec, colours=COLOURS)
            stacks[key] = _Stack(latent, (height, width), colours, channels)
        # By number: a key may hold a dot, which a module's name may not.
        self.stacks = nn.ModuleList(stacks.values())

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """Return images (B, T, c, h, w) in [-1, 1] by key, of latents (B, T, D)."""
        flat = z.flatten(0, 1)
        return {
            key: rearrange(stack(flat), "(b t) c h w -> b t c h w", b=len(z))
            for key, stack in zip(self.keys, self.stacks, strict=True)
        }

    def to_uint8(self, z: Tensor) -> dict[str, Tensor]:
        """Return images (B, T, h, w, c) uint8 by key, of latents (B, T, D)."""
        return {key: images.to_uint8(image) for key, image in self(z).items()}

    def error(self, z: Tensor, observations: Tensors) -> Tensor:
        """Return the mean squared error of the images of latents (B, T, D), over the cameras."""
        errors = []
        for key, found in self(z).items():
            true = rearrange(observations[key], "b t h w c -> b t c h w").float() / 127.5 - 1
            errors.append((found - true).square().mean())
        return torch.stack(errors).mean()


class _Stack(nn.Module):
    """The layers of one camera: a map of the last channels, then each layer doubles its sides."""

    def __init__(
        self, latent: int, size: tuple[int, int], colours: int, channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.size = size
        self.map = (channels[-1], *(-(-side // 2 ** len(channels)) for side in size))
        self.first = nn.Linear(latent, prod(self.map))
        layers: list[nn.Module] = []
        for before, after in zip(channels[::-1], [*channels[-2::-1], colours], strict=True):
            layers += [nn.LeakyReLU(0.2), nn.ConvTranspose2d(before, after, 4, 2, 1)]
        self.rest = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """Return images (n, c, h, w) in [-1, 1] of latents (n, D)."""
        height, width = self.size
        made: Tensor = self.rest(self.first(z).unflatten(1, self.map))
        return made[..., :height, :width]
