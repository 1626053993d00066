"""The prior of VideoGPT: a causal transformer over the tokens of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, log2
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.models.videogpt.clips import (
    ACTIONS,
    FRAMES,
    TOKENS,
)
from latentplan.nn import images, sampling
from latentplan.nn.transformer import Growing, Transformer
from latentplan.shapes import check
from latentplan.types import (
    Batch,
    Loss,
    Spec,
)


class Prior(nn.Module):
    """A causal transformer over the tokens of a clip, with factorised space-time positions.

    Its spec is that of a store of clips, each an observation: `tokens` (t, K) ids, `frames`
    (n, cameras, h, w, 3) uint8, the first of the clip, and `actions` (t, a), those that lead to
    each of the t token frames.
    """

    window = 1  # an observation is a whole clip
    targets: tuple[str, ...] = ()

    @dataclass(frozen=True)
    class Config:
        """The network."""

        vocabulary: int = 256  # the tokenizer's
        actions: bool = False  # whether it is conditioned on actions
        tasks: bool = False  # whether it is conditioned on the task
        width: int = 128  # of the transformer
        layers: int = 4  # of the transformer
        heads: int = 4  # of its attention
        dropout: float = 0.1  # share of activations that training drops
        channels: int = 32  # of the convolutions over the first frames
        blocks: int = 1  # residual blocks at each size there
        hide: float = 0.1  # share of training clips whose actions are hidden, and whose task is

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            for name in ("vocabulary", "width", "layers", "heads", "channels"):
                check_range(f"Prior.{name}", getattr(self, name), 1)
            check_range("Prior.blocks", self.blocks, 0)
            check_range("Prior.dropout", self.dropout, 0.0, 0.9)
            check_range("Prior.hide", self.hide, 0.0, 1.0)
            if self.width % (2 * self.heads) or self.channels % 8:
                raise ConfigError(
                    f"Prior.width: found {self.width} and {self.channels} channels, need a "
                    f"multiple of 2 heads={2 * self.heads} and one of 8"
                )

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the network for a store of clips."""
        super().__init__()
        c = self.config = config or self.Config()
        self.spec = spec
        self.reads = ("task",) if c.tasks else ()
        steps, self.tokens = spec.observation[TOKENS].shape  # t, K
        frames, views, side = spec.observation[FRAMES].shape[:3]
        grid = isqrt(self.tokens // views)
        factor = side // grid
        if views * grid**2 != self.tokens or factor * grid != side or factor & (factor - 1):
            raise ConfigError(
                f"Prior: {self.tokens} tokens of {views} cameras of {side} pixels are not a "
                "square grid a camera, of 2, 4, 8, ... pixels a token; take another tokenizer"
            )
        self.grid = (views, grid, grid)
        self.embed = nn.Embedding(c.vocabulary + 1, c.width)  # the last starts a clip
        self.places = nn.ParameterList(
            0.02 * torch.randn(size, c.width) for size in (steps, *self.grid)
        )
        self.frames = _FrameEncoder(frames, factor, c)
        self.actions = self.task = None
        if c.actions:
            size = spec.observation[ACTIONS].shape[1]
            self.actions = nn.Sequential(
                nn.Linear(size, c.width), nn.SiLU(), nn.Linear(c.width, c.width)
            )
            self.no_actions = nn.Parameter(torch.zeros(c.width))
        if c.tasks:
            self.task = nn.Embedding(len(spec.tasks) + 1, c.width)  # the first is no task
        self.body = Transformer(c.width, layers=c.layers, heads=c.heads, dropout=c.dropout)
        self.head = nn.Linear(c.width, c.vocabulary)
        # All that is added to a token's embedding begins at its scale. At torch's own scales, 1 for
        # an embedding of tasks, conditions would drown the tokens.
        small: list[Any] = [self.embed, self.head, self.frames.out]
        small += [self.task] if self.task is not None else []
        small += [self.actions[-1]] if self.actions is not None else []
        for layer in small:
            nn.init.normal_(layer.weight, std=0.02)

    def loss(self, batch: Batch) -> Loss:
        """Return the cross-entropy of clips in nats a token."""
        tokens = batch.observations[TOKENS][:, 0].long()
        frames = batch.observations[FRAMES][:, 0]
        actions = task = None
        if self.actions is not None:
            actions = batch.observations[ACTIONS][:, 0]
        if self.task is not None and batch.task is not None:
            task = batch.task[:, 0]
        nats = -self.log_prob(tokens, self.conditions(frames, actions, task)).mean()
        return Loss(nats, {"nats": nats.detach()})

    def log_prob(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Return log-probabilities (B, t, K) in nats of ids (B, t, K), each given those before."""
        check("Prior.log_prob", tokens, "B t K", K=self.tokens)
        ids = tokens.flatten(1)
        logits = self.head(self.body(self._inputs(ids[:, :-1], conditions)))
        nats = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
        return -nats.view(tokens.shape)

    @torch.no_grad()
    def sample(
        self,
        tokens: Tensor,
        conditions: Tensor,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        cached: bool = True,
    ) -> Tensor:
        """Return ids (B, t, K) that begin with `tokens` (B, s, K), as many as `conditions` are for.

        Temperature 0 takes the likeliest. Without the cache every token runs the whole sequence
        again: the same, only slower.
        """
        b, length = len(tokens), conditions[0].shape[:2].numel()
        ids = tokens.flatten(1)
        x = self._inputs(ids, conditions)
        sequence = Growing(self.body, b, length, cached=cached)
        hidden = sequence.read(x[:, : ids.shape[1] + 1])[:, -1]
        flat = conditions.flatten(1, 2)
        drawn = [*ids.unbind(1)]
        while True:
            drawn.append(sampling.choose(self.head(hidden), temperature, generator=generator))
            if len(drawn) == length:
                return torch.stack(drawn, dim=1).view(b, -1, self.tokens)
            x = self.embed(drawn[-1]) + flat[:, len(drawn)]
            hidden = sequence.read(x[:, None])[:, -1]

    def conditions(
        self, frames: Tensor, actions: Tensor | None = None, task: Tensor | None = None
    ) -> Tensor:
        """Return what is known of each position (B, t, K, width) beside the tokens before it.

        `frames` (B, n, cameras, h, w, 3) uint8, `actions` (B, t, a), `task` (B,) ids; without
        actions t is the longest that was trained on.
        """
        over_time, *over_space = self.places
        v, y, x = over_space
        place = v[:, None, None] + y[:, None] + x  # v y x width
        space = rearrange(place + self.frames(frames), "b v y x c -> b 1 (v y x) c")
        steps = len(over_time) if actions is None else actions.shape[1]
        time = over_time[:steps].expand(len(frames), -1, -1)  # b t width
        if self.actions is not None:
            time = time + self._embedded_actions(actions, time)
        if self.task is not None:
            ids = torch.zeros_like(frames[:, 0, 0, 0, 0, 0], dtype=torch.long)
            if task is not None:
                ids = task.masked_fill(self._hidden(ids), 0)
            time = time + self.task(ids)[:, None]
        known: Tensor = time[:, :, None] + space
        return known

    def _embedded_actions(self, actions: Tensor | None, like: Tensor) -> Tensor:
        """Return (B, t, width) of actions (B, t, a), the vector for none if they are hidden."""
        nothing = self.no_actions.expand_as(like)
        if actions is None or self.actions is None:
            return nothing
        hidden = self._hidden(actions[:, 0, 0])[:, None, None]
        return torch.where(hidden, nothing, self.actions(actions))

    def _hidden(self, like: Tensor) -> Tensor:
        """Return which clips' conditions are hidden, (B,) bool; none of them after training."""
        share = self.config.hide if self.training else 0.0
        return torch.rand(len(like), device=like.device) < share

    def _inputs(self, ids: Tensor, conditions: Tensor) -> Tensor:
        """Return the transformer's input (B, n + 1, width) after the first ids (B, n) of clips.

        At each position it is the token before it, and what is known of its own token.
        """
        start = ids.new_full((len(ids), 1), self.config.vocabulary)
        before = self.embed(torch.cat([start, ids], dim=1))
        out: Tensor = before + conditions.flatten(1, 2)[:, : before.shape[1]]
        return out


class _FrameEncoder(nn.Module):
    """Convolutions that reduce the first frames of a clip to the grid of its tokens."""

    def __init__(self, frames: int, factor: int, config: Prior.Config) -> None:
        """Take how many frames there are, and how many pixels a side of a token is."""
        super().__init__()
        patch = min(factor, 4)
        channels = [config.channels] * (int(log2(factor // patch)) + 1)
        self.layers = images.down(3 * frames, channels, patch=patch, blocks=config.blocks)
        self.out = nn.Linear(config.channels, config.width)

    def forward(self, frames: Tensor) -> Tensor:
        """Return (B, v, y, x, width) of frames (B, n, v, h, w, 3) uint8."""
        flat = rearrange(frames, "b n v h w c -> (b v) (n c) h w").float() / 127.5 - 1
        maps = self.layers(flat.contiguous(memory_format=torch.channels_last))
        maps = rearrange(maps, "(b v) c y x -> b v y x c", b=len(frames))
        out: Tensor = self.out(F.silu(maps))
        return out
