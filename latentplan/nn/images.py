"""Convolutions between images and feature maps, and images of several cameras as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError
from latentplan.shapes import check
from latentplan.types import Spec, Tensors


def keys(where: str, chosen: Sequence[str], spec: Spec) -> tuple[str, ...]:
    """Return `chosen`, or the images of `spec` if that is empty; ConfigError if there are none."""
    found = tuple(chosen) or tuple(
        key
        for key, a in spec.observation.items()
        if a.dtype == "uint8" and a.shape[2:] == (3,) and key not in spec.privileged
    )
    if not found:
        raise ConfigError(
            f"{where}: the data have no images, only: {', '.join(spec.observation)}; collect or "
            "import some with a camera"
        )
    return found


def square(where: str, keys: Sequence[str], spec: Spec) -> int:
    """Return the side of the images `keys`; ConfigError unless all are squares of one size."""
    sizes = set()
    for key in keys:
        if key not in spec.observation:
            known = ", ".join(spec.observation)
            raise ConfigError(f"{where}: no observation {key!r}; the data have: {known}")
        array = spec.observation[key]
        if array.dtype != "uint8" or array.shape[2:] != (3,) or array.shape[0] != array.shape[1]:
            raise ConfigError(
                f"{where}: {key!r} is {array.dtype} {array.shape}, need square uint8 images; "
                "import or collect them so (image_size)"
            )
        sizes.add(array.shape[0])
    if len(sizes) != 1:
        raise ConfigError(
            f"{where}: the images of {', '.join(keys)} have {sorted(sizes)} pixels a side, need "
            "one size for all; import or collect them so (image_size)"
        )
    return int(sizes.pop())


def stack(observations: Tensors, keys: Sequence[str]) -> Tensor:
    """Return the cameras' images (B, T, V, 3, h, w) in [-1, 1], of uint8 (B, T, h, w, 3) each."""
    for key in keys:
        check(f"images[{key!r}]", observations[key], "B T h w c")
    views = torch.stack([observations[key] for key in keys], dim=2)
    return rearrange(views, "b t v h w c -> b t v c h w").float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Return (..., h, w, 3) uint8 of images (..., 3, h, w) in [-1, 1]."""
    levels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(-3, -1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of images in [-1, 1]: mean over images."""
    error = (a - b).square().flatten(-3).mean(-1)
    return (10 * torch.log10(4 / error.clamp(min=1e-8))).mean()


class Residual(nn.Module):
    """Two convolutions, added to their input."""

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


def down(
    colours: int, channels: Sequence[int], *, patch: int = 4, blocks: int = 1
) -> nn.Sequential:
    """Return layers from images to maps (n, channels[-1], h / factor, w / factor) of images.

    Patches of `patch` pixels a side first become one cell of the map, so that convolutions are
    cheap; then every further number of `channels` halves it: `factor` is the total.
    """
    layers: list[nn.Module] = [
        nn.PixelUnshuffle(patch), nn.Conv2d(colours * patch**2, channels[0], 3, padding=1)
    ]
    layers += [Residual(channels[0]) for _ in range(blocks)]
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 4, 2, 1), *[Residual(after) for _ in range(blocks)]]
    return _channels_last(layers)


def up(
    channels: Sequence[int], colours: int, *, patch: int = 4, blocks: int = 1
) -> nn.Sequential:
    """Return what makes images of maps (n, channels[-1], y, x): `down` backwards."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels[::-1]):
        layers += [Residual(before) for _ in range(blocks)]
        layers += [nn.Conv2d(before, 4 * after, 1), nn.PixelShuffle(2)]
    layers += [Residual(channels[0]) for _ in range(blocks)]
    layers += [nn.Conv2d(channels[0], colours * patch**2, 3, padding=1), nn.PixelShuffle(patch)]
    return _channels_last(layers)


def _channels_last(layers: Sequence[nn.Module]) -> nn.Sequential:
    made = nn.Sequential(*layers)
    cast(Any, made).to(memory_format=torch.channels_last)  # torch's type hints do not know it
    return made


def factor(channels: Sequence[int], *, patch: int) -> int:
    """Return how many pixels a side one cell of the maps of `down` covers."""
    return int(patch * 2 ** (len(channels) - 1))
