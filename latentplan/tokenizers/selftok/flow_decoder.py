"""A rectified flow from noise to images, conditioned on token vectors.

Rectified flow (Liu et al., arXiv 2209.03003): x_t = (1 - t) x + t eps, whose velocity eps - x a
network predicts. It works in pixels, so that the network is preconditioned as by Karras et al.
(arXiv 2206.00364, section 5), for x of unit variance: with s^2 = 1 / ((1 - t)^2 + t^2), its
input is s x_t, and its target f = s (t x - (1 - t) eps) has unit variance at every t. That is the
image itself at t = 1, and the negative noise at t = 0.
"""

from __future__ import annotations

from math import log

import torch
from einops import rearrange
from torch import Tensor, nn

from latentplan.nn import images
from latentplan.nn.transformer import Transformer

WAVES = 64  # numbers that a time is embedded in


class FlowDecoder(nn.Module):
    """The network: convolutions around a transformer over the cells of the image and the tokens.

    A cell covers 2 `patch` pixels a side. The maps of twice that resolution skip the transformer.
    """

    def __init__(
        self,
        *,
        side: int,
        tokens: int,
        patch: int,
        channels: int,
        width: int,
        layers: int,
        heads: int,
    ) -> None:
        """Make the layers for images of `side` pixels and `tokens` vectors of `width`."""
        super().__init__()
        self.grid = side // (2 * patch)
        self.fine = images.down(3, (channels,), patch=patch)
        self.coarse = images.down(channels, (width,), patch=2)
        self.places = nn.Parameter(0.02 * torch.randn(self.grid**2, width))
        self.mix = nn.Parameter(nn.init.orthogonal_(torch.empty(self.grid**2, tokens)))
        self.time = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.body = Transformer(width, layers=layers, heads=heads, causal=False)
        self.up = images.up((width,), channels, patch=2)
        self.out = images.up((channels,), 3, patch=patch)

    def forward(self, noised: Tensor, t: Tensor, vectors: Tensor) -> Tensor:
        """Return f (n, 3, h, w) of x_t (n, 3, h, w) at times t (n,), with vectors (n, K, width)."""
        fine = self.fine(_scale(t) * noised)
        cells = rearrange(self.coarse(fine), "n c y x -> n (y x) c") + self.places
        cells = cells + self.time(_waves(t))[:, None] + self.mix @ vectors
        cells = self.body(torch.cat([cells, vectors], dim=1))[:, : self.grid**2]
        coarse = rearrange(cells, "n (y x) c -> n c y x", y=self.grid)
        out: Tensor = self.out(fine + self.up(coarse))
        return out

    def velocity(self, noised: Tensor, t: Tensor, vectors: Tensor) -> Tensor:
        """Return the velocity (n, 3, h, w) from images to noise, of `forward`'s arguments."""
        scale, at = _scale(t), t.view(-1, 1, 1, 1)
        out: Tensor = (2 * at - 1) * scale**2 * noised - scale * self(noised, t, vectors)
        return out


def noised(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return x_t and the network's target f, of images x and noise (n, 3, h, w) at times t (n,)."""
    at = t.view(-1, 1, 1, 1)
    return (1 - at) * x + at * noise, _scale(t) * (at * x - (1 - at) * noise)


def _scale(t: Tensor) -> Tensor:
    """Return s (n, 1, 1, 1), one over the standard deviation of x_t, at times t (n,)."""
    return ((1 - t).square() + t.square()).rsqrt().view(-1, 1, 1, 1)


def _waves(t: Tensor) -> Tensor:
    """Return sines and cosines (n, WAVES) of times t (n,)."""
    rates = torch.exp(-log(1e3) * torch.arange(WAVES // 2, device=t.device) / (WAVES // 2))
    angles = 1e3 * t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
