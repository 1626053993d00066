"""Blockwise attention and feed-forward: memory linear in the length of a sequence.

Liu and Abbeel, "Blockwise Parallel Transformer" (arXiv 2305.19370), as in the Large World Model
(arXiv 2402.08268): attention goes through chunks of queries and of keys and keeps, for every query,
the running result and the logarithm of its denominator; the scores are computed again in the
backward pass. Differs: a pair of chunks is one call of torch's fused attention on the CPU, which
returns the log-sum-exp; on other devices it is written out, with the softmax in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from latentplan.errors import ShapeError, check_range

CHUNK = 512  # positions of a chunk
Positions = Sequence[range]  # of a tensor's rows in the whole sequence, in order


class Span(NamedTuple):
    """A chunk: rows of a tensor, and their positions in the whole sequence."""

    rows: slice
    at: range


def blockwise_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    chunk: int = CHUNK,
    block: int = 1,
    segments: Tensor | None = None,
) -> Tensor:
    """Return the attention (B, heads, L, d) of queries q to keys k and values v, of that shape.

    A position attends to all of its block of `block` positions and of those before it: 1 is causal
    attention, 0 attends to everything. With `segments` (B, L) it attends only to equal ids.
    """
    check_range("blockwise_attention.chunk", chunk, 1)
    check_range("blockwise_attention.block", block, 0)
    if not q.shape[-2] or q.shape != k.shape or k.shape != v.shape:
        found = ", ".join(str(tuple(each.shape)) for each in (q, k, v))
        raise ShapeError(f"blockwise_attention: found {found}, need three (B, heads, L >= 1, d)")
    check_segments("blockwise_attention", segments, q)
    return _Blockwise.apply(q, k.to(q.dtype), v.to(q.dtype), segments, chunk, block)  # type: ignore


def blockwise(
    function: Callable[..., Tensor], *inputs: Tensor, chunk: int = CHUNK, dim: int = 1
) -> Tensor:
    """Return `function` of tensors that share the axis `dim`, applied to chunks of it.

    `function` must treat positions alike, as a feed-forward layer or a loss per token does. Its
    activations are computed again in the backward pass, one chunk at a time.
    """
    parts = zip(*(torch.split(each, chunk, dim=dim) for each in inputs), strict=True)
    if inputs[0].shape[dim] <= chunk:
        return function(*inputs)
    if not torch.is_grad_enabled():
        return torch.cat([function(*part) for part in parts], dim=dim)
    return torch.cat([checkpoint(function, *part, use_reentrant=False) for part in parts], dim=dim)


def check_segments(where: str, segments: Tensor | None, q: Tensor) -> None:
    """Raise ShapeError unless segments are (B, L) for queries (B, heads, L, d)."""
    wanted = (q.shape[0], q.shape[2])
    if segments is not None and segments.shape != wanted:
        raise ShapeError(f"{where}.segments: found shape {tuple(segments.shape)}, need {wanted}")


class Running:
    """The attention of queries to the keys so far: results, and the logs of their denominators.

    (out, log_sum) stand for the paper's (numerator / denominator, max + log denominator), from
    which they follow; to add keys is to average results with the weights of their denominators.
    """

    def __init__(self, q: Tensor) -> None:
        """Begin without keys, for queries (B, heads, L, d)."""
        self.out = torch.zeros_like(q)
        nothing = torch.finfo(torch.float32).min  # and not -inf, which less itself is no number
        self.log_sum = torch.full(q.shape[:-1], nothing, device=q.device)

    def add(self, out: Tensor, log_sum: Tensor, rows: slice = slice(None)) -> None:
        """Add the attention (out, log_sum) of the queries in `rows` to other keys."""
        before = self.log_sum[:, :, rows]
        after = torch.logaddexp(before, log_sum)
        old, new = (before - after).exp()[..., None], (log_sum - after).exp()[..., None]
        self.out[:, :, rows] = (self.out[:, :, rows] * old + out * new).to(self.out.dtype)
        self.log_sum[:, :, rows] = after


class Mask(NamedTuple):
    """Which queries attend to which keys: their positions, block size and segment ids."""

    queries: Positions
    keys: Positions
    block: int
    of_queries: Tensor | None = None  # (B, Lq) segment ids
    of_keys: Tensor | None = None  # (B, Lk)

    def pairs(self, chunk: int) -> Iterator[tuple[Span, Span]]:
        """Yield the pairs of chunks that are not wholly above the causal diagonal."""
        for query in cut(self.queries, chunk):
            for key in cut(self.keys, chunk):
                if not self.block or key.at[0] // self.block <= query.at[-1] // self.block:
                    yield query, key

    def bias(self, query: Span, key: Span, like: Tensor) -> Tensor | None:
        """Return 0 or -inf (1 or B, 1, q, k) to add to the scores of a pair; None for all 0."""
        allowed = None
        if self.block and key.at[-1] // self.block > query.at[0] // self.block:
            i, j = (torch.arange(s.at[0], s.at[-1] + 1, device=like.device) for s in (query, key))
            allowed = (j // self.block <= i[:, None] // self.block)[None]  # 1 q k
        if self.of_queries is not None and self.of_keys is not None:
            same = self.of_queries[:, query.rows, None] == self.of_keys[:, None, key.rows]
            allowed = same if allowed is None else allowed & same
        if allowed is None:
            return None
        zeros = torch.zeros(allowed.shape, dtype=like.dtype, device=like.device)
        return zeros.masked_fill(~allowed, -torch.inf)[:, None]


def cut(positions: Positions, chunk: int) -> Iterator[Span]:
    """Yield chunks of at most `chunk` positions, none across the ends of a range."""
    row = 0
    for each in positions:
        for start in range(0, len(each), chunk):
            at = each[start : start + chunk]
            yield Span(slice(row, row + len(at)), at)
            row += len(at)


def add_attention(
    running: Running, q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, chunk: int
) -> None:
    """Add the attention of queries (B, heads, Lq, d) to keys and values (B, heads, Lk, d)."""
    for query, key in mask.pairs(chunk):
        rows, columns = query.rows, key.rows
        bias = mask.bias(query, key, q)
        running.add(*attend(q[:, :, rows], k[:, :, columns], v[:, :, columns], bias), rows)


def add_gradients(
    grads: Sequence[Tensor],
    inputs: Sequence[Tensor],
    result: tuple[Tensor, Tensor, Tensor],
    *,
    mask: Mask,
    chunk: int,
) -> None:
    """Add the gradients of q, k, v to `grads`, given (gradient of out, out, log_sum).

    out and log_sum are over all keys, so that each pair's softmax is a part of the whole one.
    """
    (q, k, v), (dq, dk, dv) = inputs, grads
    grad, out, log_sum = result
    for query, key in mask.pairs(chunk):
        r, c = query.rows, key.rows
        of_pair = attend_backward(
            (grad[:, :, r], out[:, :, r], log_sum[:, :, r]),
            (q[:, :, r], k[:, :, c], v[:, :, c]),
            mask.bias(query, key, q),
        )
        for total, rows, part in zip((dq, dk, dv), (r, c, c), of_pair, strict=True):
            total[:, :, rows] += part


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return attention (B, heads, q, d) and log-sum-exp (B, heads, q) of one pair of chunks.

    A query without a key has the result 0 and the log-sum-exp -inf. Only `add_gradients`
    differentiates it.
    """
    if q.device.type == "cpu":
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, log_sum = fused(q, k, v, 0.0, False, attn_mask=bias)
        if bias is not None:  # a query without a key has the log-sum-exp 0 there
            log_sum = log_sum.masked_fill((bias == -torch.inf).all(-1), -torch.inf)
        return out, log_sum
    return attend_written_out(q, k, v, bias)


def attend_backward(
    result: tuple[Tensor, Tensor, Tensor], inputs: tuple[Tensor, Tensor, Tensor], bias: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v of one pair, given (gradient of out, out, log_sum)."""
    grad, out, log_sum = result
    if grad.device.type == "cpu":
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        dq, dk, dv = fused(grad, *inputs, out, log_sum, 0.0, False, attn_mask=bias)
        return dq, dk, dv
    return backward_written_out(result, inputs, bias)


def attend_written_out(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return what `attend` does, by its formula."""
    with _in_float32(q.device.type):
        scores = _scores(q, k, bias)
        log_sum = scores.logsumexp(-1)  # -inf without a key
        weights = (scores - log_sum.clamp(min=torch.finfo(torch.float32).min)[..., None]).exp()
        return (weights @ v.float()).to(q.dtype), log_sum


def backward_written_out(
    result: tuple[Tensor, Tensor, Tensor], inputs: tuple[Tensor, Tensor, Tensor], bias: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `attend_backward` does, by its formula."""
    dtype = inputs[0].dtype
    with _in_float32(inputs[0].device.type):
        (grad, out, log_sum), (q, k, v) = ([x.float() for x in some] for some in (result, inputs))
        weights = (_scores(q, k, bias) - log_sum[..., None]).exp()
        mean = (grad * out).sum(-1, keepdim=True)
        of_scores = weights * (grad @ v.mT - mean) * q.shape[-1] ** -0.5
        dq, dk, dv = of_scores @ k, of_scores.mT @ q, weights.mT @ grad
    return dq.to(dtype), dk.to(dtype), dv.to(dtype)


def _in_float32(device: str) -> AbstractContextManager[Any]:
    """Return a context without autocast, on a device that has it."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _scores(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    scores: Tensor = q.float() @ k.float().mT * q.shape[-1] ** -0.5
    return scores if bias is None else scores + bias.float()


class _Blockwise(torch.autograd.Function):
    """Attention of a sequence to itself, of which only the inputs and (out, log_sum) are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segments: Tensor | None,
        chunk: int,
        block: int,
    ) -> Tensor:
        whole = [range(q.shape[2])]
        ctx.mask, ctx.chunk = Mask(whole, whole, block, segments, segments), chunk
        running = Running(q)
        add_attention(running, q, k, v, mask=ctx.mask, chunk=chunk)
        ctx.save_for_backward(q, k, v, running.out, running.log_sum)
        return running.out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, out, log_sum = ctx.saved_tensors
        found = [torch.zeros_like(each) for each in (q, k, v)]
        result = (grads[0].to(q.dtype), out, log_sum)
        add_gradients(found, (q, k, v), result, mask=ctx.mask, chunk=ctx.chunk)
        return *found, None, None, None
