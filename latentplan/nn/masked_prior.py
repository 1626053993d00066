"""A masked-token prior: the distribution of a grid of tokens, filled in a few at a time.

MaskGIT (Chang et al., arXiv 2202.04200): a bidirectional transformer predicts the masked tokens of
a grid from the others and a conditioning grid. Training masks a share cos(pi/2 r), r uniform, of
the tokens (section 3.1). Differs: decoding is that of TECO (arXiv 2210.02396, section 3.3): `draft`
fills the grid part by part, by a random partition; each of the `rounds` then masks and draws every
part of another partition again, given all others. Tokens that are drawn in one step are
independent, those of different steps are not, so that the grid is consistent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.nn import sampling
from latentplan.nn.transformer import Transformer
from latentplan.shapes import check


class Masked(NamedTuple):
    """The loss of a masked prior."""

    nats: Tensor  # (), cross-entropy a masked token
    hits: Tensor  # (), share of masked tokens that are the likeliest


class MaskedPrior(nn.Module):
    """p(ids | conditions) of K tokens, ids (n, K) and conditions (n, K, C)."""

    @dataclass(frozen=True)
    class Config:
        """The transformer and how it decodes."""

        width: int = 64  # of the transformer
        layers: int = 2  # of the transformer
        heads: int = 4  # of its attention
        dropout: float = 0.0  # share of activations that training drops
        draft: int = 4  # steps that fill a masked grid
        revise: int = 4  # steps of a round that draws every token again
        rounds: int = 1  # of revision

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            for name in ("width", "layers", "heads", "draft", "revise"):
                check_range(f"MaskedPrior.{name}", getattr(self, name), 1)
            check_range("MaskedPrior.rounds", self.rounds, 0)
            check_range("MaskedPrior.dropout", self.dropout, 0.0, 0.9)
            if self.width % (2 * self.heads):
                raise ConfigError(
                    f"MaskedPrior.width: found {self.width}, need a multiple of 2 "
                    f"heads={2 * self.heads}"
                )

    def __init__(
        self, tokens: int, *, vocabulary: int, condition: int, config: Config | None = None
    ) -> None:
        """Build it for grids of `tokens` ids below `vocabulary`, conditioned on as many vectors."""
        super().__init__()
        c = config or self.Config()
        # a step without a token would do nothing
        self.config = replace(c, draft=min(c.draft, tokens), revise=min(c.revise, tokens))
        self.tokens, self.vocabulary = tokens, vocabulary
        self.embed = nn.Embedding(vocabulary + 1, c.width)  # the last is the mask
        self.condition = nn.Linear(condition, c.width)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, c.width))
        self.body = Transformer(
            c.width, layers=c.layers, heads=c.heads, dropout=c.dropout, causal=False
        )
        self.head = nn.Linear(c.width, vocabulary)
        for layer in (self.embed, self.head):
            nn.init.normal_(layer.weight, std=0.02)
        with torch.device("cpu"):
            orders = [torch.randperm(tokens, generator=_seeded(i)) for i in range(c.rounds + 1)]
        self.orders: Tensor  # partitions of decoding without a generator
        self.register_buffer("orders", torch.stack(orders), persistent=False)

    def forward(self, ids: Tensor, masked: Tensor, conditions: Tensor) -> Tensor:
        """Return logits (n, K, vocabulary) of all tokens, given those that are not `masked`.

        `masked` (n, K) bool; conditions (n, K, C). Raises ShapeError for other shapes.
        """
        check("MaskedPrior.ids", ids, "n K", K=self.tokens)
        check("MaskedPrior.conditions", conditions, "n K C", n=len(ids), K=self.tokens)
        known = self.embed(ids.masked_fill(masked, self.vocabulary))
        logits: Tensor = self.head(self.body(known + self.condition(conditions) + self.place))
        return logits

    def loss(self, ids: Tensor, conditions: Tensor) -> Masked:
        """Return the cross-entropy of tokens masked at random, by the cosine schedule."""
        share = torch.cos(pi / 2 * torch.rand(len(ids), 1, device=ids.device))
        count = (share * self.tokens).ceil().clamp(min=1)
        rank = torch.rand(ids.shape, device=ids.device).argsort(-1).argsort(-1)
        masked = rank < count  # as many as `count`, anywhere
        logits = self(ids, masked, conditions)
        nats = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
        nats = nats.view_as(masked)
        hits = (logits.detach().argmax(-1) == ids) & masked
        total = masked.sum()
        return Masked((nats * masked).sum() / total, hits.sum() / total)

    def log_prob(self, ids: Tensor, conditions: Tensor) -> Tensor:
        """Return log-probabilities (n,) in nats of ids, as `draft` without a generator draws them.

        Revision, which has no likelihood, is left out.
        """
        masked = torch.ones_like(ids, dtype=torch.bool)
        found = torch.zeros_like(conditions[:, 0, 0])
        for part in self.orders[0].tensor_split(self.config.draft):
            logits = self(ids, masked, conditions)[:, part]
            wanted = ids[:, part]
            nats = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
            found = found - nats.view_as(wanted).sum(-1)
            masked = masked.index_fill(1, part, False)
        return found

    @torch.no_grad()
    def sample(
        self,
        conditions: Tensor,
        *,
        temperature: float = 1.0,
        generator: Generator | None = None,
        draft: int | None = None,
    ) -> Tensor:
        """Return ids (n, K) drawn for conditions (n, K, C); at temperature 0 the likeliest.

        With `draft` the grid is filled in so many steps, and not revised. Partitions are drawn from
        the generator, one for all n; without it they are the same each time, so that temperature 0
        has no chance.
        """
        c, device = self.config, conditions.device
        ids = torch.zeros(conditions.shape[:2], dtype=torch.long, device=device)
        masked = torch.ones_like(ids, dtype=torch.bool)
        steps = [c.draft, *[c.revise] * c.rounds] if draft is None else [draft]
        for number, count in enumerate(steps):
            order = self.orders[number]
            if generator is not None:
                order = torch.rand(self.tokens, generator=generator, device=device).argsort()
            for part in order.tensor_split(count):
                hidden = masked.index_fill(1, part, True)
                logits = self(ids, hidden, conditions)[:, part]
                drawn = sampling.choose(logits, temperature, generator=generator)
                ids = ids.index_copy(1, part, drawn)
                masked = hidden.index_fill(1, part, False)
        return ids


def _seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)
