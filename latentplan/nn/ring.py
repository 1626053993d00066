"""Ring attention: a sequence that is distributed over the processes of a group.

Liu, Zaharia and Abbeel, "Ring Attention with Blockwise Transformers" (arXiv 2310.01889): each rank
keeps its queries; keys and values travel around the ring, and the backward pass sends the gradients
of keys and values around with them. The attention of two shards is blockwise. With the `zigzag`
layout, rank r of R has the pieces r and 2 R - 1 - r of 2 R, so that causal attention is as much
work for every rank; with `plain` it has one piece, and the last rank has the most work. Differs:
pieces need not have one size, so that any length fits any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from latentplan.errors import ConfigError, ShapeError, check_range
from latentplan.nn.blockwise import (
    CHUNK,
    Mask,
    Positions,
    Running,
    add_attention,
    add_gradients,
    check_segments,
)

Layout = Literal["zigzag", "plain"]


def shard(length: int, rank: int, world: int, *, layout: Layout = "zigzag") -> list[range]:
    """Return the positions of a sequence of `length` that a rank of `world` has, in its order.

    Raises ConfigError if there are fewer positions than pieces, or no such layout.
    """
    if layout not in ("zigzag", "plain"):
        raise ConfigError(f"ring.layout: found {layout!r}, need zigzag or plain")
    check_range("ring.rank", rank, 0, world - 1)
    pieces = 2 * world if layout == "zigzag" else world
    if length < pieces:
        raise ConfigError(
            f"ring.world: {world} ranks cut a sequence into {pieces} pieces ({layout}), found "
            f"{length} positions; use fewer ranks or longer sequences"
        )
    edges = [length * index // pieces for index in range(pieces + 1)]
    mine = [rank, pieces - 1 - rank] if layout == "zigzag" else [rank]
    return [range(edges[index], edges[index + 1]) for index in mine]


def take(x: Tensor, positions: Positions, *, dim: int) -> Tensor:
    """Return the rows of a whole sequence, along `dim`, that are at `positions`."""
    return torch.cat([x.narrow(dim, each.start, len(each)) for each in positions], dim=dim)


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    length: int,
    group: dist.ProcessGroup | None = None,
    layout: Layout = "zigzag",
    chunk: int = CHUNK,
    block: int = 1,
    segments: Tensor | None = None,
) -> Tensor:
    """Return this rank's part (B, heads, L, d) of the attention of a sequence of `length`.

    q, k and v are its shard of the sequence (see `shard`), and `segments` (B, L) its ids. All ranks
    of `group` (default: all processes) call it together, with the same B, heads, d, `block` and
    settings. Raises ShapeError if the shard is not the one of this rank.
    """
    check_range("ring_attention.chunk", chunk, 1)
    check_range("ring_attention.block", block, 0)
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    shards = [shard(length, each, world, layout=layout) for each in range(world)]
    mine = sum(map(len, shards[rank]))
    if not q.shape == k.shape == v.shape or q.shape[2] != mine:
        found = ", ".join(str(tuple(each.shape)) for each in (q, k, v))
        raise ShapeError(
            f"ring_attention: found {found} on rank {rank} of {world}, need (B, heads, {mine}, d): "
            f"the {layout} shard of {length} positions"
        )
    check_segments("ring_attention", segments, q)
    ring = _Ring(shards, group, block, chunk)
    attended: Tensor = _RingAttention.apply(  # type: ignore[no-untyped-call]
        q, k.to(q.dtype), v.to(q.dtype), segments, ring
    )
    return attended


class _Ring:
    """The ranks of a group, and the shard of each."""

    def __init__(
        self, shards: Sequence[list[range]], group: Any, block: int, chunk: int
    ) -> None:
        self.shards, self.group, self.block, self.chunk = shards, group, block, chunk
        self.world, self.rank = len(shards), dist.get_rank(group)

    def owner(self, step: int) -> int:
        """Return the rank whose keys are here after `step` moves."""
        return (self.rank - step) % self.world

    def mask(self, step: int, queries: Tensor | None, keys: Tensor | None) -> Mask:
        """Return the mask of this rank's queries and the keys of `owner(step)`."""
        theirs = self.shards[self.owner(step)]
        return Mask(self.shards[self.rank], theirs, self.block, queries, keys)

    def move(self, tensors: Sequence[Tensor | None], step: int) -> list[Tensor | None]:
        """Send tensors (B, ..., L, d) or (B, L) on, and return those of the rank before.

        They then belong to `owner(step + 1)`.
        """
        if self.world == 1:
            return list(tensors)
        theirs = sum(map(len, self.shards[self.owner(step + 1)]))
        received: list[Tensor | None] = []
        work = []
        after, before = ((self.rank + each) % self.world for each in (1, -1))
        if self.group is not None:
            after, before = (dist.get_global_rank(self.group, each) for each in (after, before))
        for tensor in tensors:
            if tensor is None:
                received.append(None)
                continue
            axis = 1 if tensor.ndim == 2 else 2
            shape = (*tensor.shape[:axis], theirs, *tensor.shape[axis + 1 :])
            empty = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
            received.append(empty)
            work += [
                dist.P2POp(dist.isend, tensor.contiguous(), after, self.group),
                dist.P2POp(dist.irecv, empty, before, self.group),
            ]
        for each in dist.batch_isend_irecv(work):
            each.wait()
        return received


class _RingAttention(torch.autograd.Function):
    """Attention of a distributed sequence to itself."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: Tensor | None, ring: _Ring
    ) -> Tensor:
        ctx.ring, ctx.segments = ring, segments
        running = Running(q)
        visiting: Any = [k, v, segments]
        for step in range(ring.world):
            mask = ring.mask(step, segments, visiting[2])
            add_attention(running, q, *visiting[:2], mask=mask, chunk=ring.chunk)
            if step < ring.world - 1:
                visiting = ring.move(visiting, step)
        ctx.save_for_backward(q, k, v, running.out, running.log_sum)
        return running.out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, out, log_sum = ctx.saved_tensors
        ring, result = ctx.ring, (grads[0].to(q.dtype), out, log_sum)
        of_queries = torch.zeros_like(q)
        visiting: Any = [k, v, ctx.segments, torch.zeros_like(k), torch.zeros_like(v)]
        for step in range(ring.world):
            keys, values, segments, *of_keys = visiting
            mask = ring.mask(step, ctx.segments, segments)
            found = [of_queries, *of_keys]
            add_gradients(found, (q, keys, values), result, mask=mask, chunk=ring.chunk)
            visiting = ring.move(visiting, step)  # the last time home
        return of_queries, *visiting[3:], None, None
