"""A causal transformer with rotary positions, and a key-value cache to go on from.

Pre-norm blocks (RMSNorm), rotary position embedding (Su et al., arXiv 2104.09864) and SwiGLU
(Shazeer, arXiv 2002.05202): the usual decoder, as VideoWorld's backbone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Cache:
    """Keys and values of every layer for the positions seen so far, with room for more."""

    def __init__(self, model: Transformer, batch: int, room: int) -> None:
        """Make room for `room` positions of `batch` sequences."""
        weight = model.norm.weight
        shape = (batch, model.heads, room, model.width // model.heads)
        make = [torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in model.blocks]
        self.keys, self.values = make, [torch.empty_like(each) for each in make]
        self.length = 0  # positions filled

    def repeat(self, count: int) -> None:
        """Make of every sequence `count`, one behind the other."""
        self.keys = [each.repeat_interleave(count, dim=0) for each in self.keys]
        self.values = [each.repeat_interleave(count, dim=0) for each in self.values]


class Growing:
    """Sequences that grow: what is read comes behind all that was read before.

    Without the cache every step runs over the whole sequence again: the same, only slower.
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
        """Make of every sequence `count`, one behind the other."""
        if self.cache is not None:
            self.cache.repeat(count)
        elif self.seen is not None:
            self.seen = self.seen.repeat_interleave(count, dim=0)


class Transformer(nn.Module):
    """Causal self-attention blocks over (B, L, width); nothing about what the positions mean."""

    def __init__(self, width: int, *, layers: int, heads: int, dropout: float = 0.0) -> None:
        """Make the blocks; `width` is a multiple of twice `heads`."""
        super().__init__()
        self.width, self.heads = width, heads
        self.blocks: nn.ModuleList = nn.ModuleList(
            Block(width, heads, dropout) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(width)
        half = width // heads // 2
        self.rates: Tensor  # (half,) rad a position
        self.register_buffer("rates", 1e4 ** (-torch.arange(half) / half), persistent=False)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Return (B, L, width) of x (B, L, width), which follows what `cache` has seen.

        The cache then has seen x as well.
        """
        start = 0 if cache is None else cache.length
        turns = self._turns(start, x.shape[1])
        for layer, block in enumerate(self.blocks):
            x = block(x, turns, None if cache is None else (cache, layer))
        if cache is not None:
            cache.length = start + x.shape[1]
        out: Tensor = self.norm(x)
        return out

    def _turns(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        places = torch.arange(start, start + length, device=self.rates.device)
        angles = torch.outer(places.to(self.rates.dtype), self.rates)  # l half
        return angles.cos(), angles.sin()


class Block(nn.Module):
    """Attention, then a gated MLP, each added to what came in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Make the layers."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention, self.before_mlp = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        hidden = -(-8 * width // 3 // 16) * 16  # as many weights as an MLP of 4 width
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(
        self, x: Tensor, turns: tuple[Tensor, Tensor], cached: tuple[Cache, int] | None
    ) -> Tensor:
        """Return (B, L, width)."""
        q, k, v = rearrange(
            self.qkv(self.before_attention(x)), "b l (n h d) -> n b h l d", n=3, h=self.heads
        )
        q, k = _turn(q, turns), _turn(k, turns)
        mask = None
        causal = q.shape[2] > 1
        if cached is not None:
            cache, layer = cached
            past, new = cache.length, k.shape[2]
            cache.keys[layer][:, :, past : past + new] = k
            cache.values[layer][:, :, past : past + new] = v
            k = cache.keys[layer][:, :, : past + new]
            v = cache.values[layer][:, :, : past + new]
            if past and causal:  # row i sees the past and the new ones up to itself
                mask = torch.ones(new, past + new, dtype=torch.bool, device=x.device).tril(past)
                causal = False
        # Without dropout here: with it the attention would not be fused, and take twice the time.
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        x = x + self._drop(self.out(rearrange(seen, "b h l d -> b l (h d)")))
        gate, up = self.up(self.before_mlp(x)).chunk(2, dim=-1)
        return x + self._drop(self.down(F.silu(gate) * up))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _turn(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (x_i, x_{i + half}) of (..., L, d) by their position's angles."""
    cos, sin = turns
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
