"""A masked-token prior: the distribution of a grid of tokens, filled in a few at a time.

MaskGIT (Chang et al., arXiv 2202.04200): a bidirectional transformer predicts the masked tokens of
a grid from the others and a conditioning grid. Training masks a share cos(pi/2 r), r uniform, of
the tokens (section 3.1). Differs: decoding is that of TECO (arXiv 2210.02396, section 3.3): `draft`
fills the grid part by part, by a random partition; each of the `rounds` then masks and draws every
part of another partition again, given all others. Tokens that are drawn in one step are
independent, those of different steps are not, so that the grid is consistent. Also differs: a group
of adjacent tokens may share a position, and tokens may be copied from a grid before by a gate (a
pointer network, arXiv 1506.03134).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.nn import sampling
from latentplan.nn.transformer import Transformer
from latentplan.shapes import check


class Masked(NamedTuple):
    """The loss of a masked prior."""

    nats: Tensor  # (), cross-entropy a masked token
    masked: Tensor  # (n, K) bool
    right: Tensor  # (n, K) bool, masked tokens that are the likeliest

    @property
    def hits(self) -> Tensor:
        """Return the share of masked tokens that are the likeliest ()."""
        return self.right.sum() / self.masked.sum()


class MaskedPrior(nn.Module):
    """p(ids | conditions) of K tokens at P positions, ids (n, K) and conditions (n, P, C).

    P is K, unless `group` adjacent tokens share a position: they are masked and drawn together.
    """

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
        self,
        tokens: int,
        *,
        vocabulary: int,
        condition: int,
        group: int = 1,
        copies: bool = False,
        config: Config | None = None,
    ) -> None:
        """Build it for grids of `tokens` ids below `vocabulary`.

        Each position has a condition of `condition` numbers. With `copies` every call is given the
        ids `before` (n, K) as well. Raises ConfigError unless tokens are a multiple of `group`.
        """
        super().__init__()
        if group < 1 or tokens % group:
            raise ConfigError(
                f"MaskedPrior.group: found {group}, need a divisor of the {tokens} tokens"
            )
        c, positions = config or self.Config(), tokens // group
        # a step without a position would do nothing
        self.config = replace(c, draft=min(c.draft, positions), revise=min(c.revise, positions))
        self.tokens, self.vocabulary, self.group = tokens, vocabulary, group
        self.positions, self.copies = positions, copies
        self.embed = nn.Embedding(vocabulary + 1, c.width)  # the last is the mask
        self.merge = nn.Linear(group * c.width, c.width) if group > 1 else nn.Identity()
        self.condition = nn.Linear(condition, c.width)
        self.place = nn.Parameter(0.02 * torch.randn(positions, c.width))
        self.body = Transformer(
            c.width, layers=c.layers, heads=c.heads, dropout=c.dropout, causal=False
        )
        self.head = nn.Linear(c.width, group * vocabulary)
        self.gate = nn.Linear(c.width, group) if copies else None
        for layer in (self.embed, self.head):
            nn.init.normal_(layer.weight, std=0.02)
        with torch.device("cpu"):
            orders = [torch.randperm(positions, generator=_seeded(i)) for i in range(c.rounds + 1)]
        self.orders: Tensor  # partitions of decoding without a generator
        self.register_buffer("orders", torch.stack(orders), persistent=False)

    def forward(
        self, ids: Tensor, masked: Tensor, conditions: Tensor, before: Tensor | None = None
    ) -> Tensor:
        """Return logits (n, K, vocabulary) of all tokens, given those that are not `masked`.

        `masked` (n, P) bool; conditions (n, P, C). Raises ShapeError for other shapes.
        """
        check("MaskedPrior.ids", ids, "n K", K=self.tokens)
        check("MaskedPrior.conditions", conditions, "n P C", n=len(ids), P=self.positions)
        known = self.embed(ids.masked_fill(self._of_tokens(masked), self.vocabulary))
        known = self.merge(known.unflatten(1, (-1, self.group)).flatten(2))  # n p width
        hidden = self.body(known + self.condition(conditions) + self.place)
        logits: Tensor = self.head(hidden).view(*ids.shape, self.vocabulary)
        if self.gate is None:
            return logits
        assert before is not None
        return logits.scatter_add(-1, before[..., None], self.gate(hidden).view(*ids.shape, 1))

    def loss(self, ids: Tensor, conditions: Tensor, before: Tensor | None = None) -> Masked:
        """Return the cross-entropy of tokens masked at random, by the cosine schedule."""
        size = (len(ids), self.positions)
        share = torch.cos(pi / 2 * torch.rand(len(ids), 1, device=ids.device))
        count = (share * self.positions).ceil().clamp(min=1)
        rank = torch.rand(size, device=ids.device).argsort(-1).argsort(-1)
        masked = rank < count  # as many as `count`, anywhere
        logits = self(ids, masked, conditions, before)
        nats = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
        masked = self._of_tokens(masked)
        right = (logits.detach().argmax(-1) == ids) & masked
        return Masked((nats.view_as(masked) * masked).sum() / masked.sum(), masked, right)

    def log_prob(self, ids: Tensor, conditions: Tensor, before: Tensor | None = None) -> Tensor:
        """Return log-probabilities (n,) in nats of ids, as `draft` without a generator draws them.

        Revision, which has no likelihood, is left out.
        """
        masked = torch.ones_like(conditions[..., 0], dtype=torch.bool)
        found = torch.zeros_like(conditions[:, 0, 0])
        for part in self.orders[0].tensor_split(self.config.draft):
            logits = self._grouped(self(ids, masked, conditions, before))[:, part]
            wanted = self._grouped(ids)[:, part]
            nats = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none")
            found = found - nats.view_as(wanted).sum((1, 2))
            masked = masked.index_fill(1, part, False)
        return found

    @torch.no_grad()
    def sample(
        self,
        conditions: Tensor,
        before: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: Generator | None = None,
        draft: int | None = None,
    ) -> Tensor:
        """Return ids (n, K) drawn for conditions (n, P, C); at temperature 0 the likeliest.

        With `draft` the grid is filled in so many steps, and not revised. Partitions are drawn from
        the generator, one for all n; without it they are the same each time, so that temperature 0
        has no chance.
        """
        c, device, n = self.config, conditions.device, len(conditions)
        ids = torch.zeros(n, self.tokens, dtype=torch.long, device=device)
        masked = torch.ones(n, self.positions, dtype=torch.bool, device=device)
        steps = [c.draft, *[c.revise] * c.rounds] if draft is None else [draft]
        for number, count in enumerate(steps):
            order = self.orders[number]
            if generator is not None:
                order = torch.rand(self.positions, generator=generator, device=device).argsort()
            for part in order.tensor_split(count):
                hidden = masked.index_fill(1, part, True)
                logits = self._grouped(self(ids, hidden, conditions, before))[:, part]
                drawn = sampling.choose(logits, temperature, generator=generator)
                ids = self._grouped(ids).index_copy(1, part, drawn).flatten(1)
                masked = hidden.index_fill(1, part, False)
        return ids

    def _of_tokens(self, of_positions: Tensor) -> Tensor:
        """Return (n, K) of (n, P)."""
        return of_positions.repeat_interleave(self.group, dim=1)

    def _grouped(self, of_tokens: Tensor) -> Tensor:
        """Return (n, P, group, ...) of (n, K, ...)."""
        return rearrange(of_tokens, "n (p g) ... -> n p g ...", g=self.group)


def _seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)
