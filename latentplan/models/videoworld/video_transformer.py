"""The autoregressive transformer over frame tokens and codes: it predicts plans and video.

VideoWorld (arXiv 2501.09781, section 3.3; layout as in its released code): a time step is the block

    [task] [start] [K frame tokens of all cameras] [end] [H codes]

over one vocabulary: frame tokens, codes, start and end. Codes follow the frame whose future they
encode: generating codes is planning, and generating the next block is predicting video.
Differs: past codes are dropped at random in training (`past_code_dropout`) and always at inference,
since only frames are observed; tasks have a learned embedding each, or are sentences; neighbouring
frame tokens may share a position (`tokens_per_position`) and are then embedded and predicted
jointly; [end] adds convolutional features of the whole frame (`conditioning.FrameEncoder`), which
the codes may also supervise directly, on a larger batch (`transformer_batch_fraction`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentplan.errors import ConfigError, ShapeError, check_range
from latentplan.models.frame_tokens import TOKENS
from latentplan.models.videoworld.conditioning import FrameEncoder, TaskSentences
from latentplan.nn import sampling
from latentplan.nn.transformer import Growing, Transformer
from latentplan.shapes import check
from latentplan.types import Batch, Loss, Spec

CODES, TASK = "codes", "task"  # further observations of a store of tokens
HIDDEN = "hidden"  # the key of the transformer's states, in a store of them
ALIKE = 0.5  # least cosine at which a new sentence maps to the nearest known one


class Generated(NamedTuple):
    """n samples of what follows the last frame of each of B contexts."""

    codes: Tensor  # (B, n, H) int64
    hidden: Tensor  # (B, n, H + 1, width): after [end] and each code; H = 0: after next [start]


class VideoTransformer(nn.Module):
    """Next-token prediction over blocks of frame tokens and codes.

    Its spec is that of a store of tokens: `tokens` (K,), `codes` (H,) and `task` () integers.
    """

    targets, reads = (), ()

    @dataclass(frozen=True)
    class Config:
        """What the network is made of, and how it is trained."""

        context: int = 4  # T, frames attended to at most
        levels: tuple[int, ...] = (8, 5, 5, 5)  # the tokenizer's
        views: int = 1  # cameras
        codes: int = 64  # the latent dynamics model's
        horizon: int = 4  # H, codes a frame; 0: video alone, the control without codes
        tasks: tuple[str, ...] = ()  # names, in the order of their task ids 1, 2, ...; 0 is none
        tokens_per_position: int = 4  # frame tokens a position, predicted independently
        frame_encoder: int = 64  # channels of the convolutions over a whole frame; 0: none
        width: int = 192  # of the transformer
        layers: int = 4  # of the transformer
        heads: int = 4  # of its attention
        dropout: float = 0.1  # share of activations that training drops
        past_code_dropout: float = 0.5  # share of past frames whose codes training masks
        frame_loss_weight: float = 0.2  # weight of the frame tokens' mean loss beside the codes'
        frame_loss_fraction: float = 1.0  # share of a frame's positions in the loss of a step
        transformer_batch_fraction: float = 1.0  # of a batch; the frame encoder takes all of it

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            for name in ("views", "codes", "tokens_per_position", "width", "layers", "heads"):
                check_range(f"VideoTransformer.{name}", getattr(self, name), 1)
            check_range("VideoTransformer.context", self.context, 2)
            check_range("VideoTransformer.horizon", self.horizon, 0, 64)
            check_range("VideoTransformer.frame_encoder", self.frame_encoder, 0)
            check_range("VideoTransformer.dropout", self.dropout, 0.0, 0.9)
            check_range("VideoTransformer.past_code_dropout", self.past_code_dropout, 0.0, 1.0)
            check_range("VideoTransformer.frame_loss_weight", self.frame_loss_weight, 0.0)
            for name in ("frame_loss_fraction", "transformer_batch_fraction"):
                check_range(f"VideoTransformer.{name}", getattr(self, name), 0.001, 1.0)
            if self.width % (2 * self.heads):
                raise ConfigError(
                    f"VideoTransformer.width: {self.width} is not a multiple of "
                    f"2 heads={2 * self.heads}"
                )

        @property
        def vocabulary(self) -> int:
            """The number of frame tokens."""
            return prod(self.levels)

    def __init__(
        self, spec: Spec, config: Config | None = None, *, sentences: Tensor | None = None
    ) -> None:
        """Build the network for a store of tokens.

        With `sentences` (tasks, 384), the vectors of the tasks' sentences, tasks are sentences.
        """
        super().__init__()
        c = self.config = config or self.Config()
        self.spec = spec
        self.window = c.context
        self.tokens = spec.observation[TOKENS].shape[0]  # K
        if self.tokens % c.tokens_per_position:
            raise ConfigError(
                f"VideoTransformer.tokens_per_position: {self.tokens} tokens a frame are no "
                f"multiple of {c.tokens_per_position}"
            )
        self.positions = self.tokens // c.tokens_per_position  # of a frame's tokens
        self.start, self.end = c.vocabulary, c.vocabulary + 1
        self.first_code = c.vocabulary + 2  # ids of codes begin here
        self.hidden_code = self.first_code + c.codes  # the mask id of dropped codes
        self.embed = nn.Embedding(self.hidden_code + 1, c.width)
        names = nn.Embedding(len(c.tasks) + 1, c.width)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(names.weight, std=1.0)  # large enough for the frame encoder
        self.task = names if sentences is None else TaskSentences(sentences, c.width)
        # The position within a block; rotary positions count through all blocks.
        self.position = nn.Parameter(0.02 * torch.randn(self.block, c.width))
        many, joint = c.tokens_per_position > 1, c.tokens_per_position * c.width
        self.merge = nn.Linear(joint, c.width, bias=False) if many else nn.Identity()
        self.split = nn.Linear(c.width, joint, bias=False) if many else nn.Identity()
        self.frame_encoder = None
        if c.frame_encoder:
            self.frame_encoder = FrameEncoder(
                self.tokens,
                levels=c.levels,
                views=c.views,
                width=c.width,
                channels=c.frame_encoder,
                dropout=c.dropout,
            )
        self.frame_head = None
        if c.frame_encoder and c.horizon and c.transformer_batch_fraction < 1:
            self.frame_head = nn.Linear(c.width, c.horizon * c.codes)
        self.body = Transformer(c.width, layers=c.layers, heads=c.heads, dropout=c.dropout)
        self.head = nn.Linear(c.width, self.hidden_code, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)

    @property
    def block(self) -> int:
        """The number of positions of a time step."""
        return self.positions + 3 + self.config.horizon

    def task_id(self, task: str) -> int:
        """Return the id of a task; ConfigError if it is not one of the training tasks.

        A new sentence takes the id of the nearest sentence in training.
        """
        if task in self.config.tasks:
            return self.config.tasks.index(task) + 1
        if isinstance(self.task, TaskSentences) and self.config.tasks:
            index, cosine = self.task.nearest(task)
            if cosine >= ALIKE:
                return index + 1
            raise ConfigError(
                f"task {task!r}: is like nothing that was trained on; nearest: "
                f"{self.config.tasks[index]!r} (cosine {cosine:.2f}, need {ALIKE})"
            )
        known = ", ".join(self.config.tasks) or "none"
        raise ConfigError(f"task {task!r}: was not trained on; known: {known}")

    def loss(self, batch: Batch) -> Loss:
        """Return the cross-entropy in nats a token of frames and codes, and the frame encoder's."""
        c = self.config
        tokens, task = batch.observations[TOKENS].long(), batch.observations[TASK].long()
        codes = batch.observations[CODES].long()[..., : c.horizon]
        encoder_nats = self._frame_encoder_loss(tokens, task, codes)
        if self.training and c.transformer_batch_fraction < 1:
            few = max(1, round(c.transformer_batch_fraction * len(tokens)))
            tokens, task, codes = tokens[:few], task[:few], codes[:few]
        b, t = tokens.shape[:2]
        hidden_codes = torch.ones(b, t, dtype=torch.bool, device=tokens.device)  # as at inference
        hidden_codes[:, -1] = False  # these are the ones to predict
        if self.training:
            hidden_codes[:, :-1] = torch.rand(b, t - 1, device=tokens.device) < c.past_code_dropout
        out = self._run(tokens, task, codes, hidden_codes)  # b t block width
        k = self.positions
        positions = torch.arange(k, device=tokens.device)
        if self.training and c.frame_loss_fraction < 1:
            some = max(1, round(c.frame_loss_fraction * k))
            positions = torch.randperm(k, device=tokens.device)[:some]
        # [start] and all tokens but the last predict the tokens.
        logits = self._token_logits(out[:, :, 1 + positions])
        truth = tokens.view(b, t, k, c.tokens_per_position)[:, :, positions]
        frames = F.cross_entropy(logits.flatten(0, 2), truth.flatten())
        parts = {"frames": frames.detach()}
        total = c.frame_loss_weight * frames
        if c.horizon:
            # [end] and all codes but the last predict the codes.
            logits = self.head(out[:, :, 2 + k : 2 + k + c.horizon])
            logits = logits[..., self.first_code : self.hidden_code]
            nats = F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none")
            # The first code depends on frames alone, so it is supervised at every frame. Otherwise
            # a window's first frame, which shows no motion yet, hardly trains the conditioning on
            # the task.
            counts = (~hidden_codes)[:, :, None].repeat(1, 1, c.horizon)
            counts[:, :, 0] = True
            of_codes = (nats * counts.flatten()).sum() / counts.sum()
            hit = (logits.detach().argmax(-1) == codes)[:, -1].float()  # b H, of the last frame
            parts |= {"codes": of_codes.detach(), "first": hit[:, 0].mean(), "hits": hit.mean()}
            total = total + of_codes
        if encoder_nats is not None:
            parts["frame_encoder"] = encoder_nats.detach()
            total = total + encoder_nats
        return Loss(total, parts)

    def log_prob(self, tokens: Tensor, task: Tensor) -> Tensor:
        """Return the log-probability (B, T) in nats of frames (B, T, K), each given those before.

        Codes are hidden; `task` (B,).
        """
        check("VideoTransformer.log_prob", tokens, "B T K", K=self.tokens)
        b, t = tokens.shape[:2]
        codes = torch.zeros(b, t, self.config.horizon, dtype=torch.long, device=tokens.device)
        hidden = torch.ones(b, t, dtype=torch.bool, device=tokens.device)
        out = self._run(tokens, task[:, None].expand(b, t), codes, hidden)
        logits = self._token_logits(out[:, :, 1 : 1 + self.positions])
        logits = logits[..., : self.config.vocabulary]
        nats = F.cross_entropy(logits.flatten(0, 2), tokens.flatten(), reduction="none")
        found: Tensor = -nats.view(b, t, self.tokens).sum(-1)
        return found

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        task: Tensor,
        *,
        count: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        cached: bool = True,
    ) -> Generated:
        """Return `count` sequences of codes after frames (B, T, K) of tasks (B,).

        temperature 0 takes the likeliest code; top_p keeps the likeliest codes up to that much of
        the probability. Without the cache, each code runs the whole context again: slower, with
        the same result.
        """
        c = self.config
        check("VideoTransformer.generate", tokens, "B T K", K=self.tokens)
        b, t = tokens.shape[:2]
        if t > c.context:
            raise ShapeError(
                f"VideoTransformer.generate: found {t} frames, it was trained on {c.context}"
            )
        codes = torch.zeros(b, t, c.horizon, dtype=torch.long, device=tokens.device)
        hidden_codes = torch.ones(b, t, dtype=torch.bool, device=tokens.device)
        x = self._embed(tokens, task[:, None].expand(b, t), codes, hidden_codes).flatten(1, 2)
        x = x[:, : t * self.block - c.horizon]  # up to the [end] of the last frame

        def pick(hidden: Tensor) -> Tensor:
            logits = self.head(hidden)[..., self.first_code : self.hidden_code]
            return choose(logits, temperature, top_p=top_p, generator=generator)

        if not c.horizon:  # no codes follow [end]: take the state that predicts the next frame
            x = torch.cat([x, self._block_start(task)], dim=1)
        sequence = Growing(self.body, b, t * self.block + 2, cached=cached)
        hidden = sequence.read(x)[:, -1:].repeat_interleave(count, dim=0)  # (b n) 1 width
        sequence.repeat(count)
        chosen, states = [], [hidden]
        for h in range(c.horizon):
            code = pick(hidden[:, 0])
            chosen.append(code)
            hidden = sequence.read(self._embed_code(code, h))
            states.append(hidden)
        after = torch.cat(states, dim=1)  # (b n) (H + 1) width
        made = torch.stack(chosen, dim=1) if chosen else after.new_zeros(len(after), 0).long()
        return Generated(made.view(b, count, -1), after.view(b, count, *after.shape[1:]))

    @torch.no_grad()
    def imagine(
        self,
        tokens: Tensor,
        codes: Tensor,
        task: Tensor,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        cached: bool = True,
    ) -> Tensor:
        """Return the next frame's tokens (B, K) after frames (B, T, K), the last with codes (B, H).

        Positions are sampled one after the other. Only the last `context` - 1 frames are used,
        since with the next one they fill the context.
        """
        tokens = tokens[:, -(self.config.context - 1) :]
        b, t = tokens.shape[:2]
        every = torch.zeros(b, t, self.config.horizon, dtype=torch.long, device=tokens.device)
        every[:, -1] = codes
        hidden_codes = torch.ones(b, t, dtype=torch.bool, device=tokens.device)
        hidden_codes[:, -1] = False
        x = self._embed(tokens, task[:, None].expand(b, t), every, hidden_codes).flatten(1, 2)
        sequence = Growing(self.body, b, (t + 1) * self.block, cached=cached)
        hidden = sequence.read(torch.cat([x, self._block_start(task)], dim=1))[:, -1]
        drawn = []
        for k in range(self.positions):
            logits = self._token_logits(hidden[:, None])[..., : self.config.vocabulary]
            token = choose(logits.flatten(0, 1), temperature, top_p=top_p, generator=generator)
            drawn.append(token.view(b, -1))
            if k + 1 == self.positions:
                break  # nothing is predicted from the last
            hidden = sequence.read(self._embed_tokens(drawn[-1]) + self.position[2 + k])[:, -1]
        return torch.cat(drawn, dim=1)

    def plan_states(self, tokens: Tensor, codes: Tensor, task: Tensor) -> Tensor:
        """Return the hidden states (B, H + 1, width) after the last frame and its codes (B, H).

        The same states as `generate` returns, for frames (B, T, K) and given codes.
        """
        b, t = tokens.shape[:2]
        every = torch.zeros(b, t, self.config.horizon, dtype=torch.long, device=tokens.device)
        every[:, -1] = codes
        hidden_codes = torch.ones(b, t, dtype=torch.bool, device=tokens.device)
        hidden_codes[:, -1] = False
        out = self._run(tokens, task[:, None].expand(b, t), every, hidden_codes)
        return out[:, -1, 2 + self.positions :]

    def _frame_encoder_loss(self, tokens: Tensor, task: Tensor, codes: Tensor) -> Tensor | None:
        """Return the cross-entropy of codes (b, t, H) predicted by the frame encoder alone.

        The encoder learns to locate the object of a task, which takes many frames; the transformer,
        which takes most of a step's time, needs fewer.
        """
        if self.frame_head is None or self.frame_encoder is None:
            return None
        features = F.relu(self.frame_encoder(tokens, self.task(task)))
        logits = self.frame_head(features).view(-1, self.config.codes)
        return F.cross_entropy(logits, codes.flatten())

    def _block_start(self, task: Tensor) -> Tensor:
        """Return the first two positions (b, 2, width) of a block, [task] and [start]."""
        start = self.embed(torch.full_like(task, self.start))
        embedded: Tensor = torch.stack([self.task(task), start], dim=1) + self.position[:2]
        return embedded

    def _embed_code(self, code: Tensor, h: int) -> Tensor:
        """Return the embedding (n, 1, width) of codes (n,) at index h of a block."""
        embedded: Tensor = self.embed(code + self.first_code)
        return (embedded + self.position[self.positions + 3 + h])[:, None]

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        """Return positions (..., K / tokens_per_position, width) of tokens (..., K)."""
        parts = self.embed(tokens).unflatten(-2, (-1, self.config.tokens_per_position))
        joined: Tensor = self.merge(parts.flatten(-2))
        return joined

    def _token_logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., n tokens_per_position, ids) of the tokens after (..., n, width)."""
        parts = self.split(hidden).unflatten(-1, (self.config.tokens_per_position, -1))
        parts = parts.flatten(-3, -2)
        logits: Tensor = self.head(parts)
        return logits

    def _embed(self, tokens: Tensor, task: Tensor, codes: Tensor, hidden_codes: Tensor) -> Tensor:
        """Return the embedded blocks (b, t, block, width)."""
        b, t = tokens.shape[:2]
        start = torch.full((b, t, 1), self.start, device=tokens.device)
        ids = (codes + self.first_code).masked_fill(hidden_codes[:, :, None], self.hidden_code)
        of_task = self.task(task)
        end = self.embed(torch.full_like(start, self.end))
        if self.frame_encoder is not None:
            end = end + self.frame_encoder(tokens, of_task)[:, :, None]
        frame = self._embed_tokens(tokens)
        parts = [of_task[:, :, None], self.embed(start), frame, end, self.embed(ids)]
        return torch.cat(parts, dim=2) + self.position

    def _run(self, tokens: Tensor, task: Tensor, codes: Tensor, hidden_codes: Tensor) -> Tensor:
        x = self._embed(tokens, task, codes, hidden_codes)
        out: Tensor = self.body(x.flatten(1, 2)).view(x.shape)
        return out


def choose(
    logits: Tensor,
    temperature: float,
    *,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return an id (n,) for each row of logits (n, ids), by nucleus sampling (arXiv 1904.09751).

    temperature 0 takes the likeliest.
    """
    if temperature <= 0:
        return logits.argmax(-1)
    share = (logits / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = share.sort(dim=-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
        share = torch.zeros_like(share).scatter(-1, order, ordered)
    return sampling.draw(share, generator=generator)
