"""The eight turns and flips of a square (the dihedral group D4), on images and on actions.

Seen from straight above, a table has no preferred direction: if the image and the action turn
together, so does the outcome. Element g flips left to right if g >= 4, then
turns g mod 4 quarter turns to the left.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

ELEMENTS = 8


def turn_image(image: Tensor, element: int) -> Tensor:
    """Return images (..., h, w) with h = w, flipped and turned by one element."""
    if element >= 4:
        image = image.flip(-1)
    return torch.rot90(image, element % 4, dims=(-2, -1))


def matrices() -> Tensor:
    """Return each element's matrix (8, 2, 2) for vectors (x to the right, y up)."""
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    flip = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    turns = [torch.linalg.matrix_power(quarter, k) for k in range(4)]
    return torch.stack(turns + [turn @ flip for turn in turns])


def turn_vectors(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Return vectors (..., A), pairs of (x, y), under matrices (..., 2, 2) that broadcast.

    If A is odd, the last number, such as a height, stays as it is.
    """
    paired = vectors.shape[-1] // 2 * 2
    pairs = rearrange(vectors[..., :paired], "... (k xy) -> ... k xy", xy=2)
    turned = rearrange(pairs @ matrix.mT, "... k xy -> ... (k xy)")
    if paired == vectors.shape[-1]:
        return turned
    last = vectors[..., paired:].expand(*turned.shape[:-1], 1)
    return torch.cat([turned, last], dim=-1)
