"""The transformer of LWM: blockwise layers over long sequences, and a prefix that many share.

Pre-norm blocks with rotary positions and SwiGLU, as in LLaMA, on which LWM builds (arXiv
2402.08268, section 2); attention and feed-forward go through chunks (`nn/blockwise.py`), so that
memory grows with the length and not with its square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.nn.blockwise import (
    CHUNK,
    Mask,
    Running,
    add_attention,
    attend,
    blockwise,
    blockwise_attention,
)
from latentplan.nn.transformer import Block, RMSNorm, Turns, rotary_rates, rotations, turn

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v (B, heads, L, d) -> the same


@dataclass(frozen=True)
class Prefix:
    """Keys and values of B sequences, which all that continues them shares."""

    layers: tuple[tuple[Tensor, Tensor], ...]  # keys and values (B, heads, P, d)
    hidden: Tensor  # (B, P) bool, positions that nothing attends to
    length: int  # P


class Continuation:
    """N continuations of each of B prefixes: their own keys and values, and not a copy of theirs.

    The attention to a prefix is that of the N x S queries of its continuations at once; the one to
    their own keys is added to it by the log-sum-exp, as chunks are in blockwise attention.
    """

    def __init__(self, prefix: Prefix, count: int, chunk: int) -> None:
        """Begin `count` continuations of each prefix."""
        self.prefix, self.count, self.chunk = prefix, count, chunk
        self.own: list[tuple[Tensor, Tensor] | None] = [None] * len(prefix.layers)
        self.length = prefix.length  # positions so far

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention (B N, heads, S, d) of new positions to all so far and each other."""
        before = self.own[layer]
        if before is not None:
            k, v = (torch.cat(both, dim=2) for both in zip(before, (k, v), strict=True))
        self.own[layer] = (k, v)
        if torch.is_grad_enabled() and q.requires_grad:
            return self._copied(layer, q, k, v)
        running = Running(q)
        running.add(*attend(q, k, v, None))
        if self.prefix.length:
            running.add(*self._to_prefix(layer, q))
        return running.out

    def _to_prefix(self, layer: int, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attention of q (B N, heads, S, d) to the prefixes, and its log-sum-exp."""
        keys, values = self.prefix.layers[layer]
        b, new = len(keys), q.shape[2]
        together = rearrange(q, "(b n) h s d -> b h (n s) d", b=b)
        rows = together.shape[2]
        hidden, past = self.prefix.hidden.long(), range(self.prefix.length)
        mask = Mask([range(rows)], [past], 0, hidden.new_zeros(b, rows), hidden)
        running = Running(together)
        add_attention(running, together, keys, values, mask=mask, chunk=self.chunk)
        out = rearrange(running.out, "b h (n s) d -> (b n) h s d", s=new)
        return out, rearrange(running.log_sum, "b h (n s) -> (b n) h s", s=new)

    def _copied(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the same by copies of the prefixes, which torch differentiates."""
        past = [each.repeat_interleave(self.count, dim=0) for each in self.prefix.layers[layer]]
        seen = ~self.prefix.hidden.repeat_interleave(self.count, dim=0)
        mask = F.pad(seen, (0, k.shape[2]), value=True)[:, None, None]  # (b n) 1 1 keys
        k, v = (torch.cat(both, dim=2) for both in zip(past, (k, v), strict=True))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class LongTransformer(nn.Module):
    """Block-causal self-attention over (B, L, width): a position attends to its block and before.

    Blocks are of `block` positions, counted from the first. `theta` is the base of the rotary
    frequencies: a longer context needs a larger one (LWM, table 11).
    """

    def __init__(
        self,
        width: int,
        *,
        layers: int,
        heads: int,
        block: int = 1,
        theta: float = 1e4,
        chunk: int = CHUNK,
    ) -> None:
        """Make the layers; `width` is a multiple of twice `heads`."""
        super().__init__()
        self.block, self.chunk = block, chunk
        self.layers = nn.ModuleList(_Layer(width, heads, chunk) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.rates: Tensor  # (half,) rad a position
        self.register_buffer("rates", rotary_rates(width // heads, base=theta), persistent=False)

    def forward(self, x: Tensor, segments: Tensor | None = None) -> Tensor:
        """Return (B, L, width) of x (B, L, width); with `segments` (B, L), ids are kept apart."""
        return self._run(x, 0, lambda layer: partial(self._attention, segments))

    def prefix(self, x: Tensor, hidden: Tensor) -> Prefix:
        """Return the prefix of x (B, P, width), whole blocks; `hidden` (B, P) are not attended."""
        layers: list[tuple[Tensor, Tensor]] = []
        segments = hidden.long()

        def keep(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            layers.append((k, v))
            return self._attention(segments, q, k, v)

        if x.shape[1]:
            self._run(x, 0, lambda layer: keep)
        else:
            layers = [each.nothing(x) for each in self.layers]  # type: ignore[operator]
        return Prefix(tuple(layers), hidden, x.shape[1])

    def extend(self, x: Tensor, continuation: Continuation) -> Tensor:
        """Return (B N, S, width) of one more block x of each continuation, which then has it."""
        start = continuation.length
        continuation.length += x.shape[1]
        return self._run(x, start, lambda layer: partial(continuation.attention, layer))

    def _attention(self, segments: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        chosen = {"chunk": self.chunk, "block": self.block}
        return blockwise_attention(q, k, v, segments=segments, **chosen)

    def _run(self, x: Tensor, start: int, attention: Callable[[int], Attention]) -> Tensor:
        turns = rotations(self.rates, range(start, start + x.shape[1])).unbind()
        for index, layer in enumerate(self.layers):
            x = layer(x, turns, attention(index))
        out: Tensor = self.norm(x)
        return out


class _Layer(Block):
    """A block whose attention is given, and whose MLP goes through chunks."""

    def __init__(self, width: int, heads: int, chunk: int) -> None:
        """Make the layers."""
        super().__init__(width, heads, dropout=0.0)
        self.chunk = chunk

    def forward(self, x: Tensor, turns: Turns, attention: Attention) -> Tensor:  # type: ignore[override]
        """Return (B, L, width) of x (B, L, width)."""
        qkv = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # each b heads l d
        q, k = (turn(each, turns).to(v.dtype) for each in (q, k))  # turned in float32
        x = x + self.out(attention(q, k, v).transpose(1, 2).flatten(2))
        return x + blockwise(self.mlp, x, chunk=self.chunk)

    def nothing(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, heads, 0, d) of no positions."""
        b, _, width = like.shape
        empty = like.new_zeros(b, self.heads, 0, width // self.heads)
        return empty, empty
