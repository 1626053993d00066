"""Attention on two paths: tokens of two frames, and tokens of objects with a longer memory.

Yan et al., arXiv 2206.04003, section 3. In every layer

    object tokens   (a) the same object in the frames so far   (b) all objects of their frame
    frame tokens    (a) the frames given, and tokens before    (b) the object tokens of their frame

and the two results are averaged. Object tokens do not depend on frame tokens, so that those of a
frame are computed once, before its first token. Differs: the frames given attend to each other in
both directions, and to the objects of the frame to predict.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.nn.transformer import RMSNorm


class Memory(NamedTuple):
    """Keys and values (n, heads, tokens, d) that frame tokens of one layer attend to."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Multi-head attention of x to y; both are normalised before."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the projections."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def memory(self, y: Tensor) -> Memory:
        """Return keys and values of y (n, tokens, width)."""
        return Memory(*rearrange(self.key_value(y), "n l (s h d) -> s n h l d", s=2, h=self.heads))

    def forward(self, x: Tensor, memory: Memory, *, mask: Tensor | None = None) -> Tensor:
        """Return (n, L, width) of x (n, L, width); `mask` (L, tokens) is True where it attends."""
        query = rearrange(self.query(x), "n l (h d) -> n h l d", h=self.heads)
        found = F.scaled_dot_product_attention(query, *memory, attn_mask=mask)
        out: Tensor = self.out(rearrange(found, "n h l d -> n l (h d)"))
        return out


class Feedforward(nn.Module):
    """An MLP, added to its input."""

    def __init__(self, width: int, dropout: float) -> None:
        """Make the layers."""
        super().__init__()
        self.dropout = dropout
        self.layers = nn.Sequential(
            RMSNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., width)."""
        return x + F.dropout(self.layers(x), self.dropout, self.training)


class ObjectLayer(nn.Module):
    """A layer of object tokens (b, t, n, c, width): t frames, n objects of c tokens."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Make the two paths."""
        super().__init__()
        self.dropout = dropout
        self.norm = RMSNorm(width)
        self.over_time, self.over_objects = Attention(width, heads), Attention(width, heads)
        self.mlp = Feedforward(width, dropout)

    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        """Return (b, t, n, c, width); `mask` (t c, t c) is causal over frames."""
        b, t, n, c, _ = x.shape
        normed = self.norm(x)
        past = rearrange(normed, "b t n c w -> (b n) (t c) w")
        past = self.over_time(past, self.over_time.memory(past), mask=mask)
        frame = rearrange(normed, "b t n c w -> (b t) (n c) w")
        frame = self.over_objects(frame, self.over_objects.memory(frame))
        found = rearrange(past, "(b n) (t c) w -> b t n c w", b=b, t=t)
        found = (found + rearrange(frame, "(b t) (n c) w -> b t n c w", b=b, n=n)) / 2
        out: Tensor = self.mlp(x + F.dropout(found, self.dropout, self.training))
        return out


class FrameLayer(nn.Module):
    """A layer of frame tokens (n, L, width), with a path to objects unless there are none."""

    def __init__(self, width: int, heads: int, dropout: float, *, objects: bool) -> None:
        """Make the two paths."""
        super().__init__()
        self.dropout = dropout
        self.norm = RMSNorm(width)
        self.frames = Attention(width, heads)
        self.objects = Attention(width, heads) if objects else None
        self.object_norm = RMSNorm(width) if objects else None
        self.mlp = Feedforward(width, dropout)

    def recall(self, objects: Tensor | None) -> Memory | None:
        """Return the keys and values of object tokens (n, tokens, width)."""
        if self.objects is None or self.object_norm is None or objects is None:
            return None
        return self.objects.memory(self.object_norm(objects))

    def forward(
        self,
        x: Tensor,
        objects: Memory | None,
        *,
        before: Memory | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        """Return (n, L, width), and the keys and values of the tokens `before` and x."""
        normed = self.norm(x)
        memory = self.frames.memory(normed)
        if before is not None:
            pairs = zip(before, memory, strict=True)
            memory = Memory(*(torch.cat(pair, dim=2) for pair in pairs))
        found = self.frames(normed, memory, mask=mask)
        if self.objects is not None and objects is not None:
            found = (found + self.objects(normed, objects)) / 2
        return self.mlp(x + F.dropout(found, self.dropout, self.training)), memory


class ObjectCentricTransformer(nn.Module):
    """Both stacks of layers, of as many layers each."""

    def __init__(
        self, width: int, *, layers: int, heads: int, dropout: float, objects: bool
    ) -> None:
        """Make the layers; those of objects only if there are any."""
        super().__init__()
        sizes = (width, heads, dropout)
        self.object_layers = nn.ModuleList(ObjectLayer(*sizes) for _ in range(layers * objects))
        self.frame_layers = nn.ModuleList(
            FrameLayer(*sizes, objects=objects) for _ in range(layers)
        )
        self.norm = RMSNorm(width)

    def remember(self, x: Tensor) -> list[Tensor]:
        """Return the object tokens (b, t, n c, width) of each layer, of embedded (b, t, n, c, w).

        Those of a frame depend on the frames up to it.
        """
        t, c = x.shape[1], x.shape[3]
        frame = torch.arange(t, device=x.device).repeat_interleave(c, output_size=t * c)
        mask, found = frame[:, None] >= frame, []
        for layer in self.object_layers:
            x = layer(x, mask=mask)
            found.append(x.flatten(2, 3))
        return found

    def recall(self, objects: list[Tensor]) -> list[Memory | None]:
        """Return what frame tokens attend to in each layer, of object tokens (n, tokens, width)."""
        if not objects:
            return [None for _ in self.frame_layers]
        pairs = zip(self.frame_layers, objects, strict=True)
        return [layer.recall(each) for layer, each in pairs]  # type: ignore[operator]

    def forward(
        self,
        x: Tensor,
        objects: list[Memory | None],
        *,
        before: list[Memory] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[Memory]]:
        """Return (n, L, width) of frame tokens, and what those that follow attend to.

        `before` are the tokens before x; without it, `mask` (L, L) is True where one attends.
        """
        after = []
        for number, layer in enumerate(self.frame_layers):
            past = None if before is None else before[number]
            x, memory = layer(x, objects[number], before=past, mask=mask)
            after.append(memory)
        return self.norm(x), after
