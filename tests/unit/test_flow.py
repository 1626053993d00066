"""Optical flow: known motions are found, and what does not move stands still."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from latentplan.errors import ShapeError
from latentplan.nn.flow import optical_flow, warped


def texture(n: int, side: int = 32) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, side // 4, side // 4, generator=drawn) * 2 - 1
    return F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("motion", [(0.0, 0.0), (0.4, -0.7), (2.0, -1.5), (-4.0, 3.0)])
def test_a_picture_that_moves_as_a_whole(motion: tuple[float, float]) -> None:
    after = texture(4)
    flow = torch.tensor(motion)[None, :, None, None].expand(4, -1, 32, 32)
    before = warped(after, flow)  # what is at a place now is later at this place plus the flow
    found = optical_flow(before, after)
    inside = (found - flow)[:, :, 8:-8, 8:-8]
    assert inside.abs().mean() < 0.05 * (1 + abs(torch.tensor(motion)).max())


def test_only_the_part_that_moves() -> None:
    before = texture(2, 64)
    after = before.clone()
    after[:, :, 16:32, 19:35] = before[:, :, 16:32, 16:32]  # a square, 3 pixels to the right
    found = optical_flow(before, after)
    assert (found[:, 0, 20:28, 20:28] - 3).abs().mean() < 0.5
    assert found[:, :, 44:].abs().max() < 0.01


def test_where_nothing_is_to_be_seen_nothing_moves() -> None:
    grey = torch.full((1, 3, 16, 16), 0.3)
    noise = 0.01 * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert optical_flow(grey, grey + noise).abs().max() < 0.1


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match="18 x 16 pixels are no multiples of 4"):
        optical_flow(torch.zeros(1, 3, 18, 16), torch.zeros(1, 3, 18, 16))
    with pytest.raises(ShapeError, match=r"optical_flow\.after"):
        optical_flow(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))
