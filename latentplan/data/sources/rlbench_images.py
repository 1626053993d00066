"""RLBench's images: PNG files as arrays, depth in metres, masks as handles, clouds.

Depth and masks are 24-bit numbers in the three bytes of a colour image, in opposite orders. A
single byte has no meaning, so that a depth image that was resized with interpolation is wrong
wherever the higher bytes change.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentplan.data import image_files
from latentplan.errors import SourceError
from latentplan.types import Array

if TYPE_CHECKING:
    from PIL.Image import Image

DEPTH_STEPS = 2**24 - 1


def size(file: Path) -> tuple[int, int]:
    """Return (height, width) of a PNG, from its header; SourceError if it is not one."""
    with _opened(file) as image:
        return image.height, image.width


def check_size(file: Path, wanted: tuple[int, int], owner: str) -> None:
    """Raise SourceError unless a PNG is (height, width), the size that the phrase `owner` names."""
    found = size(file)
    if found != wanted:
        raise _other_size(file, found, wanted, owner)


def read(folder: Path, frames: Sequence[int], *, size: tuple[int, int]) -> Array:
    """Return images (n, h, w, 3) uint8 of the files `K.png` of a folder, K from `frames`.

    Raises SourceError naming the file that is missing, damaged, of another size or not RGB.
    """
    images = np.empty((len(frames), *size, 3), np.uint8)
    for pixels, frame in zip(images, frames, strict=True):
        file = folder / f"{frame}.png"
        with _opened(file) as image:
            found = image.height, image.width
            if found != size:
                raise _other_size(file, found, size, "the set's first demo has")
            if image.mode != "RGB":
                raise SourceError(
                    f"{file}: is a PNG of mode {image.mode}, need RGB with 8 bits a colour"
                )
            pixels[:] = np.asarray(image)
    return images


def metres(coded: Array, near: Array, *, far: Array) -> Array:
    """Return depth (T, h, w) float32 in m of images (T, h, w, 3); near and far are (T,) in m.

    The first byte is the highest; 0 is near, 2**24 - 1 far, linear along the line of sight.
    """
    near, far = near[:, None, None], far[:, None, None]
    high, middle, low = np.moveaxis(coded.astype(np.uint32), -1, 0)
    depth = (high << 16 | middle << 8 | low).astype(np.float64)
    depth /= DEPTH_STEPS
    depth *= far - near
    depth += near
    return np.asarray(depth, np.float32)


def handles(coded: Array) -> Array:
    """Return handles (..., h, w) int32 of masks (..., h, w, 3); the first byte is the lowest."""
    low, middle, high = np.moveaxis(coded.astype(np.int32), -1, 0)
    return np.asarray(low | middle << 8 | high << 16)


def cloud(depth: Array, *, extrinsics: Array, intrinsics: Array, stride: int) -> Array:
    """Return the points (T, rows, columns, 3) float32 of the world, m, of depth (T, h, w).

    `extrinsics` (T, 4, 4) are camera -> world, `intrinsics` (T, 3, 3) RLBench's. A point every
    `stride` pixels, from the first row and column.
    """
    thin = depth[:, ::stride, ::stride].astype(np.float64)
    v, u = np.indices(depth.shape[1:])[:, ::stride, ::stride]
    pixels = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3)  # (P, 3)
    here = pixels @ np.linalg.inv(intrinsics).transpose(0, 2, 1)  # (T, P, 3), at depth 1
    here = here * thin.reshape(len(thin), -1, 1)
    world = here @ extrinsics[:, :3, :3].transpose(0, 2, 1) + extrinsics[:, None, :3, 3]
    return np.asarray(world.reshape(*thin.shape, 3), np.float32)


def _opened(file: Path) -> AbstractContextManager[Image]:
    return image_files.opened(file, where=str(file), error=SourceError, formats=("PNG",))


def _other_size(
    file: Path, found: tuple[int, int], wanted: tuple[int, int], owner: str
) -> SourceError:
    return SourceError(
        f"{file}: is {found[1]} x {found[0]} pixels, {owner} {wanted[1]} x {wanted[0]}; all need "
        "the same, and a depth image or a mask that was resized has lost its numbers: take the "
        "original"
    )
