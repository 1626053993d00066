"""Boxes of objects: found by colour, as symbols, as coverage of patches, and glimpses of images.

A box (4,) holds x, y of its centre, width and height, as shares of the image; all zeros if the
object cannot be seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, ShapeError
from latentplan.shapes import check

SYMBOLS = 5  # of a box: whether it can be seen, x, y, width, height
EDGE = 0.01  # share of the image by which a box may exceed it
NEAR = 4.0  # largest offset from a box's centre that `coverage` states, in half sides of the box


class ColourBoxes(nn.Module):
    """The boxes of objects in images, one of each colour.

    A pixel belongs to the object, or the background, with the nearest shade, if that is near
    enough.
    """

    def __init__(
        self,
        colours: Sequence[Sequence[int]],
        background: Sequence[int],
        *,
        tolerance: float,
        least: int,
    ) -> None:
        """Take the shades of each object and of the background, each red, green, blue, red, ..."""
        super().__init__()
        self.count, self.tolerance, self.least = len(colours), tolerance, least
        for each in (*colours, background):
            if len(each) % 3 or not all(0 <= level <= 255 for level in each):
                raise ConfigError(
                    f"POVT.colours: found {list(each)}, need red, green, blue of 0 to 255 for each "
                    "shade of an object"
                )
        with torch.device("cpu"):  # also if the network is built on the meta device
            shades = torch.tensor([c for each in (*colours, background) for c in each]).float()
        self.owners = [n for n, each in enumerate((*colours, background)) for _ in each[::3]]
        self.shades: Tensor  # (shades, 3)
        self.register_buffer("shades", shades.view(-1, 3), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return boxes (..., n, 4) of images (..., h, w, 3) uint8."""
        masks = self.masks(images)
        spans = [_span(masks.any(axis)) for axis in (-2, -1)]
        (left, right), (top, bottom) = spans
        boxes = torch.stack([left + right, top + bottom, 2 * (right - left), 2 * (bottom - top)])
        seen = masks.sum((-2, -1)) >= self.least
        return torch.where(seen, boxes / 2, 0.0).movedim(0, -1)

    def masks(self, images: Tensor) -> Tensor:
        """Return the pixels (..., n, h, w) bool of each object in images (..., h, w, 3) uint8."""
        pixels = images.float()
        nearest = torch.full_like(pixels[..., 0], self.tolerance**2)
        owner = torch.full_like(nearest, -1)
        for number, shade in zip(self.owners, self.shades, strict=True):
            away = (pixels - shade).square().sum(-1)
            owner = owner.masked_fill(away < nearest, number)
            nearest = torch.minimum(nearest, away)
        objects = torch.arange(self.count, device=images.device)
        found: Tensor = owner[..., None, :, :] == objects[:, None, None]
        return found


def _span(used: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first edge and the last (...) of what is True in (..., pixels), in 0 to 1."""
    size = used.shape[-1]
    at = torch.arange(size, device=used.device)
    first, last = torch.where(used, at, size).amin(-1), torch.where(used, at, -1).amax(-1)
    return first / size, (last + 1) / size


def symbols(boxes: Tensor, bins: int) -> Tensor:
    """Return symbols (..., n, 5) int64 below `bins` of boxes (..., n, 4); zeros of no box."""
    seen = (boxes[..., 2:] > 0).all(-1, keepdim=True)
    levels = (boxes * bins).round().clamp(0, bins - 1).long()
    return torch.cat([seen.long(), levels * seen], dim=-1)


def boxes_of(ids: Tensor, bins: int) -> Tensor:
    """Return the boxes (..., n, 4) of symbols (..., n, 5)."""
    return ids[..., 1:] / bins * (ids[..., :1] > 0)


def check_boxes(where: str, boxes: Tensor, *, batch: int, steps: int, slots: int) -> None:
    """Raise ShapeError unless boxes (B, steps, n, 4) are in the image, for n <= slots objects."""
    check(where, boxes, "B steps n box", B=batch, steps=steps, box=4)
    if boxes.shape[2] > slots:
        raise ShapeError(
            f"{where}: found {boxes.shape[2]} objects, need at most {slots}, one for each of "
            "model.colours"
        )
    if not bool(boxes.isfinite().all()):
        raise ShapeError(f"{where}: found NaN or infinite numbers, need finite ones")
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    outside = (low < -EDGE) | (high > 1 + EDGE) | (boxes[..., 2:] < 0)
    if bool(outside.any()):
        b, step, n = (int(i) for i in outside.any(-1).nonzero()[0])
        found = [round(float(value), 3) for value in boxes[b, step, n]]
        raise ShapeError(
            f"{where}: video {b}, step {step}, object {n}: found {found} (x, y, width, height), "
            "outside the image; need shares of it in 0 to 1"
        )


def coverage(boxes: Tensor, side: int) -> Tensor:
    """Return what each patch has of each box (..., side side, 3 n) of boxes (..., n, 4).

    The share of the patch that the box covers, and the offset of the patch from its centre, in half
    sides of the box, 0 of a patch that is not covered.
    """
    edges = torch.arange(side, device=boxes.device) / side
    shares, offsets = [], []
    for axis in (0, 1):  # x, y
        centre, half = boxes[..., axis, None], boxes[..., 2 + axis, None] / 2  # ... n 1
        low, high = (centre - half).clamp(min=edges), (centre + half).clamp(max=edges + 1 / side)
        shares.append((high - low).clamp(min=0) * side)  # ... n side
        offset = (edges + 0.5 / side - centre) / half.clamp(min=0.5 / side)
        offsets.append(offset.clamp(-NEAR, NEAR))
    share = shares[1][..., None] * shares[0][..., None, :]  # ... n y x
    x, y = offsets[0][..., None, :], offsets[1][..., None]
    covered = share > 0
    features = torch.stack([share, x * covered, y * covered], dim=-1)
    return rearrange(features, "... n y x f -> ... (y x) (n f)")


def glimpses(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return what is in the boxes (..., n, 4) of images (..., h, w, 3) uint8, scaled to a square.

    (..., n, size, size, 3) uint8, black if there is no box.
    """
    count = boxes.shape[-2]
    flat = rearrange(boxes.flatten(0, -3), "b n c -> (b n) c")
    x, y, w, h = flat.unbind(-1)
    none = torch.zeros_like(x)
    rows = [torch.stack([w, none, 2 * x - 1], -1), torch.stack([none, h, 2 * y - 1], -1)]
    grid = F.affine_grid(torch.stack(rows, -2), [len(flat), 3, size, size], align_corners=False)
    pixels = images.flatten(0, -4).movedim(-1, 1).float().repeat_interleave(count, dim=0)
    found = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    found = found * (w > 0)[:, None, None, None]
    crops = found.round().clamp(0, 255).to(torch.uint8).movedim(1, -1)
    return crops.view(*boxes.shape[:-1], size, size, 3)
