"""Networks from one observation to features: one class for each kind of observation.

Each takes (n, f, ...), the last f observations of n moments, the newest last, and returns (n,
`features`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError
from latentplan.nn import images
from latentplan.nn.scaling import Scaling
from latentplan.types import ArraySpec

COLOURS = (1, 3, 4)  # numbers of a pixel
POINT = (3, 6)  # numbers of a point: its position, perhaps its normal or colour


def sensor(
    where: str,
    key: str,
    array: ArraySpec,
    *,
    frames: int,
    channels: Sequence[int],
    strides: Sequence[int],
    widths: Sequence[int],
) -> Sensor:
    """Return the network for an observation, by its shape and dtype.

    Raises ConfigError, which begins with `where`, if there is none.
    """
    shape, real = array.shape, array.dtype.startswith("float")
    if len(shape) == 3 and array.dtype == "uint8" and shape[2] in COLOURS:
        return Image(where, key, shape, frames=frames, channels=channels, strides=strides)
    if len(shape) == 2 and real and shape[1] in POINT:
        return Cloud(shape[1], frames=frames, widths=widths)
    if len(shape) in (2, 3) and real and shape[2:] in ((), (1,)):
        return Depth(where, key, shape[:2], frames=frames, channels=channels, strides=strides)
    if len(shape) <= 1 and 0 not in shape:
        return Vector(*shape, frames=frames, widths=widths)
    raise ConfigError(
        f"{where}.observe: {key!r} is {array.dtype} {shape}, need an image uint8 (height, width, "
        "1, 3 or 4), depth float32 (height, width), a point cloud float32 (points, 3 or 6) or a "
        f"vector; {images.advice(array, COLOURS)}, or observe others"
    )


class Image(nn.Module):
    """Features of an image (h, w, 1, 3 or 4) uint8, by convolutions."""

    scaling = None  # its range is known

    def __init__(self, where: str, key: str, shape: Sequence[int], **layers: Any) -> None:
        """Make the layers; ConfigError if they leave nothing of the image."""
        super().__init__()
        height, width, colours = shape
        self.layers, self.features = _convolutions(where, key, (height, width), colours, **layers)

    def forward(self, image: Tensor) -> Tensor:
        """Return the features of images (n, f, h, w, c)."""
        # Channels last, as it is stored: convolutions of it are a fifth faster than of planes.
        x = rearrange(image, "n f h w c -> n (f c) h w")
        x = x.contiguous(memory_format=torch.channels_last).float() / 127.5 - 1
        features: Tensor = self.layers(x).flatten(1)
        return features


class Depth(nn.Module):
    """Features of a depth image (h, w) or (h, w, 1), by convolutions."""

    def __init__(self, where: str, key: str, shape: Sequence[int], **layers: Any) -> None:
        """Make the layers; ConfigError if they leave nothing of the image."""
        super().__init__()
        height, width = shape
        self.scaling = Scaling(1)
        self.layers, self.features = _convolutions(where, key, (height, width), 1, **layers)

    def forward(self, depth: Tensor) -> Tensor:
        """Return the features of depth images (n, f, h, w) or (n, f, h, w, 1)."""
        x = self.scaling(depth[..., None].float() if depth.ndim == 4 else depth.float())
        x = rearrange(x, "n f h w c -> n (f c) h w").contiguous(memory_format=torch.channels_last)
        features: Tensor = self.layers(x).flatten(1)
        return features


class Vector(nn.Module):
    """Features of a vector such as proprioception, or of one number, by linear layers."""

    def __init__(self, size: int = 1, *, frames: int, widths: Sequence[int]) -> None:
        """Make the layers."""
        super().__init__()
        self.scaling, self.features = Scaling(size), widths[-1]
        self.layers = _linear(frames * size, widths)

    def forward(self, vector: Tensor) -> Tensor:
        """Return the features of vectors (n, f, d) or numbers (n, f)."""
        x = self.scaling(vector.float()[..., None] if vector.ndim == 2 else vector.float())
        features: Tensor = self.layers(x.flatten(1))
        return features


class Cloud(nn.Module):
    """Features of a point cloud, whatever the order of its points.

    The same layers for every point, then the largest of each feature (PointNet, Qi et al., CVPR
    2017, without its transformations of the input).
    """

    def __init__(self, size: int, *, frames: int, widths: Sequence[int]) -> None:
        """Make the layers for points of `size` numbers."""
        super().__init__()
        self.scaling, self.features = Scaling(size), frames * widths[-1]
        self.layers = _linear(size, widths)

    def forward(self, cloud: Tensor) -> Tensor:
        """Return the features of clouds (n, f, points, 3 or 6)."""
        of_points: Tensor = self.layers(self.scaling(cloud.float()))
        return of_points.amax(dim=2).flatten(1)


Sensor: TypeAlias = Image | Depth | Vector | Cloud


def _convolutions(
    where: str,
    key: str,
    size: tuple[int, int],
    colours: int,
    *,
    frames: int,
    channels: Sequence[int],
    strides: Sequence[int],
) -> tuple[nn.Sequential, int]:
    """Return convolutions, and how many features they leave of an image."""
    layers: list[nn.Module] = []
    before, (height, width) = frames * colours, size
    for after, stride in zip(channels, strides, strict=True):
        layers += [nn.Conv2d(before, after, 2 + stride, stride, 1), nn.LeakyReLU(0.2)]
        before = after
        size = (size[0] // stride, size[1] // stride)
    if min(size) < 1:
        raise ConfigError(
            f"{where}.strides: {tuple(strides)} leave nothing of {key!r}, {height} x {width} "
            "pixels; give fewer channels and strides, or import or collect larger images "
            "(image_size)"
        )
    return nn.Sequential(*layers), before * size[0] * size[1]


def _linear(size: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip([size, *widths], widths, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)
