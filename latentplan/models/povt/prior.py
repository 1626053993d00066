"""The prior of POVT: p(boxes, tokens | past) of a frame, one symbol after the other.

Yan et al., arXiv 2206.04003, section 3. A frame is 5 symbols for each object (seen or not, x, y,
width, height), then its tokens in raster order. They depend on the tokens of the last `previous`
frames, and on the boxes and glimpses of objects in the last `memory` frames. Differs: the input of
a token also has the token in its place in the frame before, and how the boxes, which are known by
then, cover its patch; an object's past boxes are read as numbers, too; all frames of a clip share
their object tokens, so that the length of the memory is drawn with the frame; box symbols, which
are few, weigh more in the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.models.frame_tokens import TOKENS
from latentplan.models.povt.boxes import SYMBOLS, boxes_of, coverage
from latentplan.models.povt.transformer import ObjectCentricTransformer
from latentplan.nn import images, sampling
from latentplan.nn.transformer import RMSNorm
from latentplan.types import Batch, Loss, Spec

BOXES, GLIMPSES = "boxes", "glimpses"  # observations (n, 5) and (n, g, g, 3) beside the tokens
CORNERS = 4  # tokens of a glimpse, 2 x 2


class Video(NamedTuple):
    """Frames of b videos as the prior reads them."""

    tokens: Tensor  # (b, t, K)
    boxes: Tensor  # (b, t, n, 5) symbols
    glimpses: Tensor  # (b, t, n, g, g, 3) uint8


class ObjectPrior(nn.Module):
    """A Learner over clips of tokens, boxes and glimpses; of tokens alone without objects."""

    targets: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    @dataclass(frozen=True)
    class Config:
        """The network, for two cores; the preset `povt_gpu` has the published sizes."""

        vocabulary: int = 0  # of the tokenizer, which sets it
        memory: int = 8  # frames of an object that are attended to
        previous: int = 1  # frames of tokens that are attended to, beside the one to predict
        bins: int = 64  # values of x, y, width and height of a box
        glimpse: int = 16  # pixels a side of a glimpse
        frames: int = 3  # frames of a training clip that are predicted, drawn at random
        box_weight: float = 5.0  # of the loss of a box's symbols, that of a token is 1
        channels: int = 32  # of the convolutions over glimpses
        width: int = 96  # of the transformer
        layers: int = 3  # of it
        heads: int = 4  # of its attention
        dropout: float = 0.0  # share of its activations that training drops

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            for name in ("memory", "previous", "frames", "width", "layers", "heads"):
                check_range(f"POVT.prior.{name}", getattr(self, name), 1)
            check_range("POVT.prior.vocabulary", self.vocabulary, 0)
            check_range("POVT.prior.bins", self.bins, 2, 256)
            check_range("POVT.prior.dropout", self.dropout, 0.0, 0.9)
            check_range("POVT.prior.box_weight", self.box_weight, 0.0)
            check_range("POVT.prior.glimpse", self.glimpse, 8, 256)
            if self.previous > self.memory:
                raise ConfigError(
                    f"POVT.prior.previous: found {self.previous} frames, need at most memory="
                    f"{self.memory}"
                )
            if self.width % self.heads or self.width % 8 or self.channels % 8 or self.glimpse % 8:
                raise ConfigError(
                    f"POVT.prior.width: found {self.width}, {self.channels} channels and glimpses "
                    f"of {self.glimpse}, need multiples of 8, and a width of heads={self.heads}"
                )

        @property
        def clip(self) -> int:
            """The number of frames of a training clip."""
            return self.memory + 1

    def __init__(self, spec: Spec, config: Config) -> None:
        """Build the network for a store of tokens, and of boxes and glimpses if there are any."""
        super().__init__()
        c = self.config = config
        self.spec, self.window = spec, c.clip
        (self.tokens,) = spec.observation[TOKENS].shape  # K
        self.slots = spec.observation[BOXES].shape[0] if BOXES in spec.observation else 0  # n
        self.side = isqrt(self.tokens)
        if self.side**2 != self.tokens:
            raise ConfigError(
                f"POVT.tokenizer: {self.tokens} tokens a frame are no square grid; take another "
                "tokenizer"
            )
        self.embed = nn.Embedding(c.vocabulary + 1, c.width)  # the last: before the first frame
        self.place = nn.Parameter(0.02 * torch.randn(self.tokens, c.width))
        self.recency = nn.Parameter(0.02 * torch.randn(c.previous, 1, c.width))
        self.same_place = nn.Embedding(c.vocabulary + 1, c.width)  # of the token there before
        self.start = nn.Parameter(0.02 * torch.randn(c.width))
        self.head = nn.Linear(c.width, c.vocabulary)
        small: list[nn.Embedding | nn.Linear] = [self.embed, self.same_place, self.head]
        if self.slots:
            self.symbol = nn.Embedding(SYMBOLS * c.bins, c.width)
            self.symbol_place = nn.Parameter(0.02 * torch.randn(self.slots * SYMBOLS, c.width))
            self.symbol_head = nn.Linear(c.width, c.bins)
            self.cover = nn.Linear(3 * self.slots, c.width)
            self.slot = nn.Parameter(0.02 * torch.randn(self.slots, 1, c.width))
            self.time = nn.Parameter(0.02 * torch.randn(c.clip, 1, 1, c.width))
            self.no_past = nn.Parameter(0.02 * torch.randn(CORNERS, c.width))
            self.corner = nn.Parameter(0.02 * torch.randn(CORNERS, c.width))
            self.glimpse = nn.Sequential(
                *images.down(3, (c.channels, c.width), patch=c.glimpse // 4), nn.Flatten(2)
            )
            self.glimpse_norm = RMSNorm(c.width)
            self.past_box = nn.Sequential(
                nn.Linear(SYMBOLS, c.width), nn.SiLU(), nn.Linear(c.width, c.width)
            )
            small += [self.symbol, self.symbol_head]
        self.body = ObjectCentricTransformer(
            c.width, layers=c.layers, heads=c.heads, dropout=c.dropout, objects=self.slots > 0
        )
        for layer in small:
            nn.init.normal_(layer.weight, std=0.02)

    def loss(self, batch: Batch) -> Loss:
        """Return the cross-entropy of a few frames of each clip, over the symbols of a frame."""
        video = self._video(batch)
        b, t = video.tokens.shape[:2]
        at = torch.rand(b, t, device=video.tokens.device).argsort(-1)[:, : self.config.frames]
        boxes, tokens = self._nats(video, at)
        nats = tokens.sum(-1) + self.config.box_weight * boxes.flatten(1).sum(-1)
        total = nats.mean() / (boxes[0].numel() + self.tokens)
        parts = {"tokens": tokens.detach().mean()}
        if self.slots:
            parts["boxes"] = boxes.detach().mean()
        return Loss(total, parts)

    def log_prob(self, video: Video) -> tuple[Tensor, Tensor]:
        """Return log-probabilities (b, t) in nats: of the boxes, and of the tokens given them."""
        b, t = video.tokens.shape[:2]
        at = torch.arange(t, device=video.tokens.device).expand(b, -1)
        boxes, tokens = self._nats(video, at)
        return -boxes.flatten(1).sum(-1).view(b, t), -tokens.sum(-1).view(b, t)

    def _nats(self, video: Video, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of frames `at` (b, k): of symbols (b k, n, 5), tokens (b k, K).

        Each frame is given the symbols before it.
        """
        b, t = video.tokens.shape[:2]
        rows = torch.arange(b, device=at.device)[:, None]

        def chosen(of: Tensor) -> Tensor:
            return of[rows, at].flatten(0, 1)

        ids, boxes = chosen(video.tokens), chosen(video.boxes)
        objects = [chosen(each) for each in self.remember(video.boxes, video.glimpses)]
        before = F.pad(video.tokens, (0, 0, self.config.previous, 0), value=self.config.vocabulary)
        before = before.unfold(1, self.config.previous, 1)[:, :t].movedim(-1, 2)  # b t p k
        before = chosen(before)
        known = self._known(boxes, before)
        x = torch.cat([self._previous(before), self._shifted(boxes, ids) + known], dim=1)
        given = before[0].numel()
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        mask[:given, :given] = True
        hidden, _ = self.body(x, self.body.recall(objects), mask=mask)
        symbols, tokens = hidden[:, given:].split([boxes[0].numel(), self.tokens], dim=1)
        nats = F.cross_entropy(self.head(tokens).flatten(0, 1), ids.flatten(), reduction="none")
        if not self.slots:
            return nats.new_zeros(boxes.shape), nats.view_as(ids)
        logits = self.symbol_head(symbols).flatten(0, 1)
        box_nats = F.cross_entropy(logits, boxes.flatten(), reduction="none")
        return box_nats.view(boxes.shape), nats.view_as(ids)

    def remember(self, boxes: Tensor, glimpses: Tensor) -> list[Tensor]:
        """Return the object tokens (b, t + 1, 4 n, width) of each layer; none without objects.

        Of boxes (b, t, n, 5) and glimpses. Those at place i are of the first i frames, for the
        frame after them; there are none after more than `memory` frames.
        """
        if not self.slots:
            return []
        b, t = boxes.shape[:2]
        pixels = rearrange(glimpses, "b t n h w c -> (b t n) c h w").float() / 127.5 - 1
        seen = self.glimpse(pixels).transpose(1, 2)  # (b t n) corners width
        seen = self.glimpse_norm(seen).view(b, t, self.slots, CORNERS, -1) + self.corner
        numbers = torch.cat([boxes_of(boxes, self.config.bins), boxes[..., :1]], dim=-1)
        past = self.past_box(4 * numbers.to(seen.dtype) - 2) + self._symbols(boxes).sum(-2)
        seen = seen + past[..., None, :]
        first = self.no_past.expand(b, 1, self.slots, -1, -1)
        seen = torch.cat([first, seen], dim=1)[:, : self.config.clip]
        return self.body.remember(seen + self.slot + self.time[: seen.shape[1]])

    @torch.no_grad()
    def draw(
        self,
        video: Video,
        *,
        boxes: Tensor | None = None,
        commanded: Tensor | None = None,
        temperature: float = 1.0,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the boxes (b, n, 5) and tokens (b, K) of the frame after a video.

        `boxes` (b, n, 5) replace those that would be drawn, if they are `commanded` (b, n).
        """
        c, last = self.config, video.tokens[:, -self.config.previous :]
        before = F.pad(last, (0, 0, c.previous - last.shape[1], 0), value=c.vocabulary)
        past = slice(-c.memory, None)
        layers = self.remember(video.boxes[:, past], video.glimpses[:, past])
        objects = self.body.recall([layer[:, -1] for layer in layers])
        _, memory = self.body(self._previous(before), objects)

        def read(x: Tensor) -> Tensor:
            nonlocal memory
            out: Tensor
            out, memory = self.body(x[:, None], objects, before=memory)
            return out[:, 0]

        def chosen(logits: Tensor) -> Tensor:
            return sampling.choose(logits, temperature, generator=generator)

        x, drawn = self.start.expand(len(before), -1), list[Tensor]()
        for number in range(self.slots * SYMBOLS):
            n, kind = divmod(number, SYMBOLS)
            symbol = chosen(self.symbol_head(read(x + self.symbol_place[number])))
            symbol = symbol.clamp(max=1) if kind == 0 else symbol * drawn[n * SYMBOLS]
            if boxes is not None and commanded is not None:
                symbol = torch.where(commanded[:, n], boxes[:, n, kind], symbol)
            drawn.append(symbol)
            x = self.symbol(symbol + kind * c.bins)
        found = torch.stack(drawn, dim=1) if drawn else before.new_zeros(len(before), 0)
        found = found.view(len(before), self.slots, SYMBOLS)
        known, ids = self._known(found, before)[:, len(drawn) :], list[Tensor]()
        for place in range(self.tokens):
            ids.append(chosen(self.head(read(x + known[:, place]))))
            x = self.embed(ids[-1])
        return found, torch.stack(ids, dim=1)

    def _known(self, boxes: Tensor, before: Tensor) -> Tensor:
        """Return what is known of each symbol and token (n, 5 slots + K, width).

        Of boxes (n, slots, 5) and the tokens of frames `before` (n, previous, K).
        """
        tokens: Tensor = self.place + self.same_place(before[:, -1])
        if not self.slots:
            return tokens
        covered = coverage(boxes_of(boxes, self.config.bins), self.side)
        tokens = tokens + self.cover(covered.to(tokens.dtype))
        return torch.cat([self.symbol_place.expand(len(boxes), -1, -1), tokens], dim=1)

    def _shifted(self, boxes: Tensor, ids: Tensor) -> Tensor:
        """Return the embedded symbol before each symbol and token (n, 5 slots + K, width)."""
        parts = [self.start.expand(len(ids), 1, -1)]
        if self.slots:
            parts.append(self._symbols(boxes).flatten(1, 2))
        return torch.cat([*parts, self.embed(ids[:, :-1])], dim=1)

    def _symbols(self, boxes: Tensor) -> Tensor:
        """Return the embedded symbols (..., 5, width) of boxes (..., 5)."""
        kinds = torch.arange(SYMBOLS, device=boxes.device) * self.config.bins
        embedded: Tensor = self.symbol(boxes + kinds)
        return embedded

    def _previous(self, before: Tensor) -> Tensor:
        """Return the embedded tokens (n, previous K, width) of frames (n, previous, K)."""
        embedded: Tensor = self.embed(before) + self.place + self.recency
        return embedded.flatten(1, 2)

    def _video(self, batch: Batch) -> Video:
        """Return the frames of a batch."""
        seen, ids = batch.observations, batch.observations[TOKENS].long()
        if not self.slots:
            return nothing(ids)
        return Video(ids, seen[BOXES].long(), seen[GLIMPSES])


def nothing(ids: Tensor) -> Video:
    """Return frames of tokens (b, t, K) without objects."""
    b, t = ids.shape[:2]
    empty = ids.new_zeros(b, t, 0, 8, 8, 3, dtype=torch.uint8)
    return Video(ids, ids.new_zeros(b, t, 0, SYMBOLS), empty)
