"""A causal transformer with rotary positions, and a key-value cache to go on from.

Pre-norm blocks (RMSNorm), rotary position embedding (Su et al., arXiv 2104.09864) and SwiGLU
(Shazeer, arXiv 2002.05202): the usual decoder, as VideoWorld's backbone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Turns = tuple[Tensor, ...]  # cosines and signed sines (L, d) of the positions
LEAST = 1e-6  # length of a vector that is divided by


class Cache:
    """Keys and values of every layer for the positions so far, with room for more."""

    def __init__(self, model: Transformer, batch: int, room: int) -> None:
        """Make room for `room` positions of `batch` sequences."""
        weight = model.norm.weight
        shape = (2, batch, model.heads, room, model.width // model.heads)  # keys, values
        self.layers = [
            torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in model.blocks
        ]
        self.turns = model.turns(room)
        self.length = 0  # positions filled

    def repeat(self, count: int) -> None:
        """Repeat every sequence `count` times, copies adjacent."""
        self.layers = [each.repeat_interleave(count, dim=1) for each in self.layers]


class Growing:
    """Sequences that grow: each `read` appends to the positions before it.

    Without the cache every step runs the whole sequence again: slower, with the same result.
    """

    def __init__(self, model: Transformer, batch: int, room: int, *, cached: bool = True) -> None:
        """Begin `batch` empty sequences, of `room` positions at most."""
        self.model = model
        self.cache = Cache(model, batch, room) if cached else None
        self.seen: Tensor | None = None  # (B, L, width), without the cache

    def read(self, x: Tensor) -> Tensor:
        """Return (B, L, width) of x (B, L, width)."""
        if self.cache is None:
            self.seen = x if self.seen is None else torch.cat([self.seen, x], dim=1)
        out: Tensor = self.model(x, self.cache) if self.seen is None else self.model(self.seen)
        return out[:, -x.shape[1] :]

    def repeat(self, count: int) -> None:
        """Repeat every sequence `count` times, copies adjacent."""
        if self.cache is not None:
            self.cache.repeat(count)
        elif self.seen is not None:
            self.seen = self.seen.repeat_interleave(count, dim=0)


class Transformer(nn.Module):
    """Self-attention blocks over (B, L, width), causal by default, whatever the positions mean.

    With `span` above 1 attention is block-causal: `span` positions in a row, such as the tokens of
    a frame, attend to each other and to all before them.
    """

    def __init__(
        self,
        width: int,
        *,
        layers: int,
        heads: int,
        dropout: float = 0.0,
        causal: bool = True,
        span: int = 1,
        base: float = 1e4,
    ) -> None:
        """Make the blocks; `width` is a multiple of twice `heads`, `base` that of the rotations."""
        super().__init__()
        self.width, self.heads = width, heads
        self.blocks: nn.ModuleList = nn.ModuleList(
            Block(width, heads, dropout, causal=causal, span=span) for _ in range(layers)
        )
        self.norm = RMSNorm(width)
        self.rates: Tensor  # (half,) rad a position
        self.register_buffer("rates", rotary_rates(width // heads, base=base), persistent=False)

    def forward(
        self, x: Tensor, cache: Cache | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Return (B, L, width) of x (B, L, width), which follows the positions in `cache`.

        The cache then holds x as well. Without a cache, `mask` (L, L) or (B, 1, L, L) bool is True
        where a position (row) attends to another (column), in place of the causal mask.
        """
        if cache is None:
            turns = self.turns(x.shape[1]).unbind()
            for block in self.blocks:
                x = block(x, turns, mask=mask)
        else:
            start, end = cache.length, cache.length + x.shape[1]
            turns = cache.turns[:, start:end].unbind()
            for block, layer in zip(self.blocks, cache.layers, strict=True):
                x = block(x, turns, layer[..., :end, :], start)
            cache.length = end
        out: Tensor = self.norm(x)
        return out

    def turns(self, length: int) -> Tensor:
        """Return the rotations of the first positions (2, L, d): cosines and signed sines."""
        return rotations(self.rates, range(length))


class Block(nn.Module):
    """Attention, then a gated MLP, each added to its input."""

    def __init__(
        self, width: int, heads: int, dropout: float, *, causal: bool = True, span: int = 1
    ) -> None:
        """Make the layers."""
        super().__init__()
        self.heads, self.dropout, self.causal, self.span = heads, dropout, causal, span
        self.before_attention, self.before_mlp = RMSNorm(width), RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        hidden = -(-8 * width // 3 // 16) * 16  # as many weights as an MLP of 4 width
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(
        self,
        x: Tensor,
        turns: Turns,
        known: Tensor | None = None,
        past: int = 0,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return (B, L, width).

        `known` (2, B, heads, past + L, d) holds the keys and values of `past` positions, and then
        those of x as well.
        """
        heads = (3, self.heads, x.shape[-1] // self.heads)
        qkv = self.qkv(self.before_attention(x)).unflatten(-1, heads).permute(2, 0, 3, 1, 4)
        q, k = turn(qkv[:2], turns).unbind()
        v = qkv[2]
        causal = self.causal and mask is None and x.shape[1] > 1
        if known is not None:
            known[0, :, :, past:], known[1, :, :, past:] = k, v
            k, v = known.unbind()
        if self.span > 1 and mask is None:
            mask, causal = _block_mask(x.shape[1], past, self.span, device=x.device), False
        elif past and causal:  # row i attends to the past and to new rows up to i
            mask = torch.ones(*q.shape[2:3], k.shape[2], dtype=torch.bool, device=x.device)
            mask, causal = mask.tril(past), False
        # Without dropout here: with it the attention would not be fused, and take twice the time.
        values = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        x = x + self._drop(self.out(values.transpose(1, 2).flatten(2)))
        return x + self._drop(self.mlp(x))

    def mlp(self, x: Tensor) -> Tensor:
        """Return what the gated MLP adds to x (..., width)."""
        gate, up = self.up(self.before_mlp(x)).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.training else x


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, with a weight for each number.

    As torch's, which takes twice as long for one position on a CPU: there it is eight calls.
    """

    def __init__(self, width: int) -> None:
        """Make the weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.scale = width**0.5

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., width)."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=LEAST)
        out: Tensor = x * (self.scale / length) * self.weight
        return out


def _block_mask(length: int, past: int, span: int, *, device: torch.device) -> Tensor | None:
    """Return which of past + length positions each of the last `length` attends to; None for all.

    `past` is a multiple of the span.
    """
    if length <= span:
        return None
    block = torch.arange(past + length, device=device) // span
    return block <= block[past:, None]


def rotary_rates(size: int, *, base: float) -> Tensor:
    """Return how fast each pair of a head's `size` numbers turns (size / 2,), rad a position."""
    half = size // 2
    return base ** (-torch.arange(half) / half)


def rotations(rates: Tensor, positions: range) -> Tensor:
    """Return the rotations of positions in a row (2, L, d): cosines and signed sines."""
    at = torch.arange(positions.start, positions.stop, device=rates.device, dtype=rates.dtype)
    angles = torch.outer(at, rates)  # l half
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)])


def turn(x: Tensor, turns: Turns) -> Tensor:
    """Rotate the pairs (x_i, x_{i + half}) of (..., L, d) by their position's angles."""
    cos, sin = turns
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin
