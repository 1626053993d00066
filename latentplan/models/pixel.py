"""Pixel: the next image predicted from an image and an action, and plans compared by pixels.

Visual foresight without a latent (Ebert et al., arXiv 1812.00568; Finn and Levine 2017), the
baseline `visual_forward` of CFM (Yan et al., arXiv 2003.05436, section 4.2): a U-Net whose layers
are gated by the action predicts the change of the image. The latents are the pixels themselves,
at `size` a side, so that the distance to the goal is that of the images.

Differs: images are reduced to `size`; each position also sees the action and its own place, so that
"pick here" need not pass the narrowest layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.models.latent_model import EncodingModel, mean_error
from latentplan.nn import images
from latentplan.nn.decoder import COLOURS
from latentplan.shapes import check
from latentplan.types import Batch, Context, Loss, Moments, Spec, Tensors


class Pixels(nn.Module):
    """Images of all cameras, reduced to one size and in a row: an encoder without weights."""

    scaled: tuple[str, ...] = ()
    frames = 1

    def __init__(self, spec: Spec, observe: tuple[str, ...], size: int) -> None:
        """Take the cameras' keys, () for all; ConfigError if there are none."""
        super().__init__()
        self.keys, self.size = images.keys(
            "Pixel.observe", observe, spec, colours=COLOURS
        ), size
        depths = [images.size("Pixel.observe", key, spec, colours=COLOURS)[2] for key in self.keys]
        self.shape = (sum(depths), size, size)
        read = {*self.keys} | ({spec.pick.image} if spec.pick else set())  # picks are planned in it
        seen = {key: array for key, array in spec.observation.items() if key in read}
        self.spec = replace(spec, observation=seen, privileged=())

    def forward(self, observations: Tensors) -> Tensor:
        """Return the pixels (B, T, c size size) in [-1, 1] of images (B, T, h, w, c)."""
        reduced = []
        for key in self.keys:
            check(f"Pixels[{key!r}]", observations[key], "B T h w c")
            image = rearrange(observations[key], "b t h w c -> (b t) c h w").float() / 127.5 - 1
            reduced.append(F.adaptive_avg_pool2d(image, self.size))
        batch = len(observations[self.keys[0]])
        pixels: Tensor = rearrange(torch.cat(reduced, dim=1), "(b t) c h w -> b t (c h w)", b=batch)
        return pixels

    def fit_statistics(self, observations: Mapping[str, Moments]) -> None:
        """Leave the pixels as they are."""


class Pixel(EncodingModel):
    """U-Net that predicts the next image; its latents are pixels."""

    context = 1
    window = 2
    @dataclass(frozen=True)
    class Config:
        """The images, and the network."""

        observe: tuple[str, ...] = ()  # cameras; () for all
        size: int = 32  # pixels a side that are predicted; a rollout's cost grows as its square
        channels: tuple[int, ...] = (16, 32, 64)  # of the U-Net, each at half the size of the last
        ahead: int = 1  # predictions 1 to `ahead` actions later are trained, as windows are long
        symmetric: bool = True  # train turned and flipped, if the data allow it

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("Pixel.size", self.size, 4, 512)
            check_range("Pixel.ahead", self.ahead, 1, 100)
            for each in self.channels:
                check_range("Pixel.channels", each, 1, 4096)
            if not self.channels or self.size % 2 ** (len(self.channels) - 1):
                raise ConfigError(
                    f"Pixel.size: {self.size} cannot be halved {len(self.channels) - 1} times; "
                    "give a multiple, or fewer channels"
                )

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the network; ConfigError if the data have no images."""
        c = config or self.Config()
        pixels = Pixels(spec, c.observe, c.size)
        super().__init__(spec, pixels, symmetric=c.symmetric)
        self.config, self.latent_dim = c, prod(pixels.shape)
        self.network = UNet(pixels.shape[0], spec.action.size, c.channels)

    @property
    def elements(self) -> int:
        """One view, as a `protocols.EquivariantEncoder`: all turns would be too many numbers."""
        return 1

    def prepare(self, context: Context) -> Tensor:
        """Return the last pixels (B, D)."""
        check("Pixel.prepare.context", context.latents, "B T D", D=self.latent_dim)
        return context.latents[:, -1]

    def rollout(self, prepared: Tensor, actions: Tensor) -> Tensor:
        """Return pixels (B, N, H, D) after each of the actions (B, N, H, A)."""
        size = self.spec.action.size
        check("Pixel.rollout.actions", actions, "B N H A", B=len(prepared), A=size)
        now, seen = prepared[:, None].expand(-1, actions.shape[1], -1), []
        for action in self.scaling(actions).unbind(2):
            now = self._next(now, action)
            seen.append(now)
        return torch.stack(seen, dim=2)

    def decode(self, latents: Tensor) -> Tensors:
        """Return the images (B, T, size, size, c) uint8 of pixels (B, T, D), by camera."""
        x, found = latents.view(*latents.shape[:2], *self.encoder.shape), {}
        for key in self.encoder.keys:
            depth = self.spec.observation[key].shape[2]
            found[key], x = images.to_uint8(x[:, :, :depth]), x[:, :, depth:]
        return found

    def loss(self, batch: Batch) -> Loss:
        """Return the mean squared error of predicted pixels."""
        observations, actions = self.turned(batch)
        z = self.encode(observations)
        pairs, now = [], z
        for k in range(1, min(self.config.ahead, actions.shape[1]) + 1):
            now = self._next(now[:, :-1], actions[:, k - 1 :])
            pairs.append((now, z[:, k:]))
        error = mean_error(iter(pairs))
        change = (z[:, 1:] - z[:, :-1]).square().mean()
        return Loss(error, {"image": error.detach(), "unchanged": change.detach()})

    def _next(self, pixels: Tensor, action: Tensor) -> Tensor:
        """Return pixels (B, N, D) after actions (B, N, A)."""
        image = pixels.reshape(-1, *self.encoder.shape)
        change: Tensor = self.network(image, action.to(image.dtype).flatten(0, 1))
        return (image + change).view(pixels.shape)


class UNet(nn.Module):
    """A U-Net (Ronneberger et al., arXiv 1505.04597) with gates of the action at every layer."""

    def __init__(self, colours: int, action: int, channels: tuple[int, ...]) -> None:
        """Make the layers."""
        super().__init__()
        self.first = nn.Conv2d(colours + action + 2, channels[0], 3, 1, 1)
        pairs = list(zip(channels, channels[1:], strict=False))
        self.down = nn.ModuleList(_Gated(a, b, action, stride=2) for a, b in pairs)
        self.middle = _Gated(channels[-1], channels[-1], action)
        self.up = nn.ModuleList(_Gated(a + b, a, action) for a, b in reversed(pairs))
        self.last = nn.Conv2d(channels[0], colours, 3, 1, 1)

    def forward(self, image: Tensor, action: Tensor) -> Tensor:
        """Return the change (n, c, h, w) of images (n, c, h, w) by actions (n, A)."""
        height, width = image.shape[2:]
        y = torch.linspace(1, -1, height, device=image.device)[:, None].expand(height, width)
        x = torch.linspace(-1, 1, width, device=image.device).expand(height, width)
        place = torch.stack([x, y]).to(image).expand(len(image), -1, -1, -1)
        wide = action[..., None, None].expand(-1, -1, height, width)
        h = F.relu(self.first(torch.cat([image, place, wide], dim=1)))
        passed = []
        for layer in self.down:
            passed.append(h)
            h = layer(h, action)
        h = self.middle(h, action)
        for layer in self.up:
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = layer(torch.cat([passed.pop(), h], dim=1), action)
        return cast(Tensor, self.last(h))


class _Gated(nn.Module):
    """A convolution whose channels are scaled and shifted by an action."""

    def __init__(self, before: int, after: int, action: int, *, stride: int = 1) -> None:
        super().__init__()
        self.layer = nn.Conv2d(before, after, 2 + stride, stride, 1)
        self.gate = nn.Linear(action, 2 * after)

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        """Return (n, after, h, w) of maps (n, before, h, w) and actions (n, A)."""
        scale, shift = self.gate(action)[..., None, None].chunk(2, dim=1)
        return F.relu(self.layer(x) * (1 + scale) + shift)
