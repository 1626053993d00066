"""Optical flow between two images, and warping by a flow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from latentplan.errors import ShapeError
from latentplan.shapes import check

FAINT = 0.04  # added to the squared slopes: flat regions get no flow


def optical_flow(before: Tensor, after: Tensor, *, sizes: int = 3, rounds: int = 2) -> Tensor:
    """Return the flow (n, 2, h, w), pixels to the right and down, between images (n, c, h, w).

    Solves the least squares of Lucas and Kanade (IJCAI 1981) over all colours of the 5 x 5 pixels
    around each, coarse to fine over a pyramid of `sizes` images, `rounds` times at each size.
    Images are in [-1, 1]; it finds flows of up to about 2^sizes pixels. Raises ShapeError
    unless the sides are multiples of 2^(sizes - 1).
    """
    check("optical_flow.before", before, "n c h w")
    check("optical_flow.after", after, "n c h w", n=len(before))
    n, _, h, w = before.shape
    coarse = 2 ** (sizes - 1)
    if h % coarse or w % coarse:
        raise ShapeError(f"optical_flow: {h} x {w} pixels are no multiples of {coarse}")
    flow = before.new_zeros(n, 2, h // coarse, w // coarse)
    for size in (coarse // 2**k for k in range(sizes)):
        first, second = (F.avg_pool2d(each, size) for each in (before, after))
        if flow.shape[2:] != first.shape[2:]:
            flow = 2 * F.interpolate(flow, size=first.shape[2:], mode="bilinear")
        for _ in range(rounds):
            flow = _mean(flow + _step(first, warped(second, flow)), 1)
    return flow


def warped(images: Tensor, flow: Tensor) -> Tensor:
    """Return images (n, c, h, w) sampled at each pixel's position plus its flow (n, 2, h, w)."""
    h, w = flow.shape[2:]
    down, right = (torch.arange(side, device=flow.device) + 0.5 for side in (h, w))
    at = torch.stack([(right + flow[:, 0]) / w, (down[:, None] + flow[:, 1]) / h], dim=-1)
    return F.grid_sample(images, 2 * at - 1, padding_mode="border", align_corners=False)


def _step(first: Tensor, second: Tensor) -> Tensor:
    """Return the remaining flow from one image to the other, at most 2 pixels."""
    both = F.pad(0.5 * (first + second), (1, 1, 1, 1), mode="replicate")
    right = 0.5 * (both[:, :, 1:-1, 2:] - both[:, :, 1:-1, :-2])
    down = 0.5 * (both[:, :, 2:, 1:-1] - both[:, :, :-2, 1:-1])
    change = first - second
    products = [right * right, right * down, down * down, right * change, down * change]
    sums = _mean(torch.stack([each.sum(1) for each in products], dim=1), 2)
    rr, rd, dd, rc, dc = sums.unbind(1)
    rr, dd = rr + FAINT, dd + FAINT
    step = torch.stack([dd * rc - rd * dc, rr * dc - rd * rc], dim=1)
    return (step / (rr * dd - rd * rd)[:, None]).clamp(-2, 2)


def _mean(x: Tensor, reach: int) -> Tensor:
    """Return the means of x (n, c, h, w) over squares that extend `reach` pixels each way."""
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    return F.avg_pool2d(padded, 2 * reach + 1, 1)
