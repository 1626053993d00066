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
from latentplan.types import ArraySpec, Spec, Tensors

COLOURS = (3,)  # numbers a pixel that a model of colour images takes


def size(
    where: str, key: str, spec: Spec, *, colours: Sequence[int] = COLOURS
) -> tuple[int, int, int]:
    """Return height, width and numbers a pixel of the images `key`.

    Raises ConfigError, with what to do, unless the spec has them, public, as uint8 (h, w, c).
    """
    public = [name for name in spec.observation if name not in spec.privileged]
    if key not in public:
        known = ", ".join(public) or "none"
        raise ConfigError(f"{where}: no observation {key!r}; the data have: {known}")
    array = spec.observation[key]
    if not _is_image(array, colours):
        depths = " or ".join(map(str, colours))
        raise ConfigError(
            f"{where}: {key!r} is {array.dtype} {array.shape}, need uint8 (height, width, "
            f"{depths}), 0 to 255; {advice(array, colours)}"
        )
    height, width, depth = array.shape
    return height, width, depth


def keys(
    where: str, chosen: Sequence[str], spec: Spec, *, colours: Sequence[int] = COLOURS
) -> tuple[str, ...]:
    """Return `chosen`, or the images of `spec` if that is empty; ConfigError if there are none."""
    found = tuple(chosen) or tuple(
        key
        for key, array in spec.observation.items()
        if key not in spec.privileged and _is_image(array, colours)
    )
    if not found:
        seen = ", ".join(
            f"{key} {array.dtype} {array.shape}"
            for key, array in spec.observation.items()
            if key not in spec.privileged
        )
        raise ConfigError(
            f"{where}: the data have no images, uint8 (height, width, "
            f"{' or '.join(map(str, colours))}), only: {seen or 'nothing'}; collect or import some "
            "with a camera"
        )
    return found


def square(where: str, keys: Sequence[str], spec: Spec) -> int:
    """Return the side of the images `keys`; ConfigError unless all are squares of one size."""
    sides = set()
    for key in keys:
        height, width, _ = size(where, key, spec)
        if height != width:
            raise ConfigError(
                f"{where}: {key!r} is {height} x {width} pixels, need square images; import or "
                "collect them so (image_size)"
            )
        sides.add(height)
    if len(sides) != 1:
        raise ConfigError(
            f"{where}: the images of {', '.join(keys)} have {sorted(sides)} pixels a side, need "
            "one size for all; import or collect them so (image_size)"
        )
    return int(sides.pop())


def _is_image(array: ArraySpec, colours: Sequence[int]) -> bool:
    return array.dtype == "uint8" and len(array.shape) == 3 and array.shape[2] in colours


def advice(array: ArraySpec, colours: Sequence[int]) -> str:
    """Return what to do about observations that are not images."""
    shape = array.shape
    if len(shape) == 3 and shape[2] not in colours and shape[0] in (1, 3, 4):
        return "channels come last: move the first axis to the end, and collect or import again"
    if len(shape) == 3 and shape[2] in colours and array.dtype.startswith("float"):
        return "multiply images of 0 to 1 by 255 and round them, and collect or import again"
    if len(shape) == 2 and array.dtype == "uint8":
        return "give grey images a channel axis or three equal ones, and collect or import again"
    return "name the observation of a camera"


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
