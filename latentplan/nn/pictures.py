"""Convolutions between pictures and feature maps, and pictures of several cameras as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError
from latentplan.shapes import check
from latentplan.types import Spec, Tensors


def square(where: str, keys: Sequence[str], spec: Spec) -> int:
    """Return the side of the pictures `keys`; ConfigError unless all are squares of one size."""
    sizes = set()
    for key in keys:
        if key not in spec.observation:
            known = ", ".join(spec.observation)
            raise ConfigError(f"{where}: no observation {key!r}; the data have: {known}")
        array = spec.observation[key]
        if array.dtype != "uint8" or array.shape[2:] != (3,) or array.shape[0] != array.shape[1]:
            raise ConfigError(
                f"{where}: {key!r} is {array.dtype} {array.shape}, need square uint8 pictures; "
                "import or collect them so (--image-size)"
            )
        sizes.add(array.shape[0])
    if len(sizes) != 1:
        raise ConfigError(
            f"{where}: the pictures of {', '.join(keys)} have {sorted(sizes)} pixels a side, need "
            "one size for all; import or collect them so (--image-size)"
        )
    return int(sizes.pop())


def stack(observations: Tensors, keys: Sequence[str]) -> Tensor:
    """Return the cameras' pictures (B, T, V, 3, h, w) in [-1, 1], of uint8 (B, T, h, w, 3) each."""
    for key in keys:
        check(f"pictures[{key!r}]", observations[key], "B T h w c")
    views = torch.stack([observations[key] for key in keys], dim=2)
    return rearrange(views, "b t v h w c -> b t v c h w").float() / 127.5 - 1


def to_uint8(pictures: Tensor) -> Tensor:
    """Return (..., h, w, 3) uint8 of pictures (..., 3, h, w) in [-1, 1]."""
    levels = ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(-3, -1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of pictures in [-1, 1]: mean over pictures."""
    error = (a - b).square().flatten(-3).mean(-1)
    return (10 * torch.log10(4 / error.clamp(min=1e-8))).mean()


class Residual(nn.Module):
    """Two convolutions added to what came in."""

    def __init__(self, channels: int) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, channels, h, w)."""
        out: Tensor = x + self.second(F.silu(self.first(F.silu(self.norm(x)))))
        return out


def down(colours: int, channels: Sequence[int], *, blocks: int = 1) -> nn.Sequential:
    """Return what halves pictures (n, colours, h, w) once for every number of `channels`."""
    layers: list[nn.Module] = []
    before = colours
    for after in channels:
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.SiLU()]
        before = after
    return nn.Sequential(*layers, *[Residual(before) for _ in range(blocks)])


def up(channels: Sequence[int], colours: int, *, blocks: int = 1) -> nn.Sequential:
    """Return what doubles maps (n, channels[-1], h, w) once for every number: `down` backwards."""
    layers: list[nn.Module] = [Residual(channels[-1]) for _ in range(blocks)]
    for before, after in zip(channels[::-1], [*channels[-2::-1], channels[0]], strict=True):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels[0], colours, 3, padding=1))
