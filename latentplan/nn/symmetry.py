"""The eight turns and flips of a square (the dihedral group D4), on images and on actions.

Seen from straight above, a table has no preferred direction: if the image and the action turn
together, so does the outcome. Element g flips left to right if g >= 4, then
turns g mod 4 quarter turns to the left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

ELEMENTS = 8
# (actions (B, ..., A), elements (B,) int64) -> actions, row i turned by its element
TurnActions: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def turn_image(image: Tensor, element: int, *, axes: tuple[int, int] = (-2, -1)) -> Tensor:
    """Return images (..., h, w) with h = w, flipped and turned by one element.

    `axes` are those of height and width.
    """
    if element >= 4:
        image = image.flip(axes[1])
    return torch.rot90(image, element % 4, dims=axes)


def matrices() -> Tensor:
    """Return each element's matrix (8, 2, 2) for vectors (x to the right, y up)."""
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    flip = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    turns = [torch.linalg.matrix_power(quarter, k) for k in range(4)]
    return torch.stack(turns + [turn @ flip for turn in turns])


def turn_vectors(vectors: Tensor, matrix: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return vectors (..., A) whose `pairs` of (x, y) turn by matrices (..., 2, 2) that broadcast.

    The other numbers, such as heights, stay as they are.
    """
    shape = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
        vectors.shape[:-1], matrix.shape[:-2]
    )
    numbers = list(vectors.expand(*shape, -1).unbind(-1))
    for x, y in pairs:
        both = numbers[x], numbers[y]
        numbers[x], numbers[y] = (
            row[..., 0] * both[0] + row[..., 1] * both[1] for row in matrix.unbind(-2)
        )
    return torch.stack(numbers, dim=-1)


def turn_for_views(actions: Tensor, views: int, turn: TurnActions) -> Tensor:
    """Return actions (B v, ..., A): each of (B, ..., A) turned by the first `views` elements."""
    elements = torch.arange(views, device=actions.device).repeat(len(actions))
    return turn(actions.repeat_interleave(views, 0), elements)
