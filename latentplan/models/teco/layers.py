"""The code book and the decoder of TECO, and what its dynamics keeps of a video."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from math import isqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError
from latentplan.nn import images
from latentplan.nn.quantizer import Quantized
from latentplan.nn.transformer import Cache


class Grid(NamedTuple):
    """How the tokens of a frame lie: ids of the first camera, row by row, then of the next."""

    cameras: int
    side: int  # tokens a side of a camera

    @classmethod
    def of(cls, tokens: int, cameras: int) -> Grid:
        """Return the grid of `tokens`; ConfigError unless it is a square for each camera."""
        side = isqrt(tokens // cameras)
        if cameras * side**2 != tokens:
            raise ConfigError(
                f"TECO.tokenizer: {tokens} tokens of {cameras} cameras are not one square grid a "
                "camera; take another tokenizer"
            )
        return cls(cameras, side)


@dataclass
class History:
    """The frames so far of n videos, of which the transformer keeps keys and values."""

    tokens: Tensor  # (n, T, K)
    actions: Tensor | None  # (n, T - 1, A), between them; None for any
    newest: Tensor  # (n, c, y, x), code vectors of the last frame, not yet in the cache
    cache: Cache  # of the frames before

    def repeat(self, count: int) -> History:
        """Return `count` adjacent copies of each video; they share nothing with this one."""
        cache = copy(self.cache)
        cache.repeat(count)
        tokens, newest, actions = (
            None if each is None else each.repeat_interleave(count, dim=0)
            for each in (self.tokens, self.newest, self.actions)
        )
        assert tokens is not None and newest is not None
        return History(tokens, actions, newest, cache)


class CodeBook(nn.Module):
    """The second code book: the nearest by cosine in few dimensions (Yu et al., arXiv 2110.04627).

    Batch normalisation without weights before it, so that all codes are in use from the start. The
    last id, `codes`, is of cells in which nothing changes.
    """

    def __init__(self, channels: int, *, codes: int, width: int, decay: float) -> None:
        """Make the projections, and a book of `codes` vectors of `width` numbers."""
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.codes = codes
        self.scale = width**0.5  # of unit vectors, so that their numbers have variance 1
        self.before = nn.Linear(channels, width)
        self.after = nn.Linear(width, channels)
        self.spread = nn.BatchNorm1d(width, affine=False)
        self.book: Any = VectorQuantize(
            dim=width, codebook_size=codes, use_cosine_sim=True, commitment_weight=0.25, decay=decay
        )

    def forward(self, x: Tensor, changed: Tensor) -> Quantized:
        """Return the quantization of x (..., channels); `changed` (...) bool."""
        flat, shape = self.spread(self.before(x).flatten(0, -2)), x.shape[:-1]
        if not self.training:  # the book's own search would wait for the GPU
            ids = (F.normalize(flat, dim=-1) @ self.book.codebook.T).argmax(-1).view(shape)
            ids = ids.masked_fill(~changed, self.codes)
            return Quantized(self.vectors(ids), ids, x.new_zeros(()))
        vectors, ids, loss = self.book(flat[None])
        ids = ids.view(shape).masked_fill(~changed, self.codes)
        vectors = vectors.view(*shape, -1) * changed[..., None]
        return Quantized(self.after(self.scale * vectors), ids, loss.sum())

    def vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., channels) of ids (...)."""
        book = F.pad(self.book.codebook, (0, 0, 0, 1))  # zeros for what does not change
        found: Tensor = self.after(self.scale * book[ids])
        return found


class Decoder(nn.Module):
    """Convolutions from memory and code vectors to logits of all tokens."""

    def __init__(
        self,
        channels: int,
        *,
        cameras: int,
        vocabulary: int,
        stride: int,
        blocks: int,
        previous: int,
    ) -> None:
        """Make the layers; `previous` are the channels of the tokens before, 0 without them."""
        super().__init__()
        self.cameras = cameras
        half = max(8, channels // 2)
        self.cells = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            *(images.Residual(channels) for _ in range(blocks)),
            nn.Conv2d(channels, half * stride**2, 1),
            nn.PixelShuffle(stride),
        )
        self.join = nn.Conv2d(half + previous, channels, 3, padding=1)
        self.head = nn.Conv2d(channels, cameras * (vocabulary + (previous > 0)), 1)

    def forward(
        self, memory: Tensor, vectors: Tensor, previous: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits (n, K, vocabulary), and of the token before (n, K, 1) what to add.

        Of memory and code vectors (n, channels, y, x), and maps of the tokens before.
        """
        x = self.cells(torch.cat([memory, vectors], dim=1))
        if previous is not None:
            x = torch.cat([x, previous], dim=1)
        out = self.head(F.silu(self.join(x)))
        out = rearrange(out, "n (v k) y x -> n (v y x) k", v=self.cameras)
        if previous is None:
            return out, None
        return out[..., :-1], out[..., -1:]
