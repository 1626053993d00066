"""The autoregressive transformer over frames and codes: what it predicts is a plan, or a video.

VideoWorld (arXiv 2501.09781, section 3.3; layout as in its released code): a time step is the block

    [task] [start] [K frame tokens of all cameras] [end] [H codes]

over one vocabulary: frame tokens, codes, start and end. Codes come after the frame that they look
ahead from, so that generating codes is planning, and generating the next block is imagining.
Differs: past codes are dropped at random in training (`past_code_dropout`) and always in use, when
only the frames were observed; tasks are a learned vector each, or sentences; neighbouring frame
tokens may share a position (`tokens_per_position`) and are then embedded and predicted together;
[end] carries features of the whole frame from convolutions (`frame_encoder`), which attention to
single tokens is slow to learn from few videos; and the frame encoder may be supervised by the
codes on its own, on a larger batch (`transformer_batch_fraction`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, ShapeError, check_range
from latentplan.nn import sentences as encoder
from latentplan.nn.quantizer import FSQCodebook
from latentplan.nn.transformer import Growing, Transformer
from latentplan.shapes import check
from latentplan.types import Batch, Loss, Spec

TOKENS, CODES, TASK = "tokens", "codes", "task"  # observation keys of a store of tokens
HIDDEN = "hidden"  # that of the generator's states, in a store that has them
LARGE = 8  # tokens a side of a camera, above which a frame encoder halves the map
ALIKE = 0.5  # cosine to the nearest known sentence from which one is understood


class Generated(NamedTuple):
    """What follows the last frame of B contexts, n times."""

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

        context: int = 4  # T, frames that it sees at most
        levels: tuple[int, ...] = (8, 5, 5, 5)  # the tokenizer's
        views: int = 1  # cameras
        codes: int = 64  # the latent dynamics model's
        horizon: int = 4  # H, codes a frame; 0: video alone, the control without codes
        tasks: tuple[str, ...] = ()  # names, in the order of their numbers 1, 2, ...; 0 is none
        tokens_per_position: int = 4  # frame tokens a position; those of one are said independently
        frame_encoder: int = 64  # channels of the convolutions over a whole frame; 0: none
        width: int = 192  # of the transformer
        layers: int = 4  # of the transformer
        heads: int = 4  # of its attention
        dropout: float = 0.1  # share of activations that training drops
        past_code_dropout: float = 0.5  # share of past frames whose codes are hidden, in training
        frame_loss_weight: float = 0.2  # weight of the frame tokens' mean loss beside the codes'
        frame_loss_fraction: float = 1.0  # share of a frame's positions in the loss of a step
        transformer_batch_fraction: float = 1.0  # of a batch; the frame encoder gets all

        def __post_init__(self) -> None:
            """Raise ConfigError where a field is out of its range."""
            for name in ("views", "codes", "tokens_per_position", "width", "layers", "heads"):
                check_range(f"VideoTransformer.{name}", getattr(self, name), 1)
            check_range("VideoTransformer.context", self.context, 2)
            check_range("VideoTransformer.horizon", self.horizon, 0, 64)
            check_range("VideoTransformer.frame_encoder", self.frame_encoder, 0)
            check_range("VideoTransformer.dropout", self.dropout, 0.0, 0.9)
            check_range("VideoTransformer.past_code_dropout", self.past_code_dropout, 0.0, 1.0)
            check_range("VideoTransformer.frame_loss_weight", self.frame_loss_weight, 0.0)
            check_range(
                "VideoTransformer.frame_loss_fraction", self.frame_loss_fraction, 0.001, 1.0
            )
            check_range(
                "VideoTransformer.transformer_batch_fraction",
                self.transformer_batch_fraction,
                0.001,
                1.0,
            )
            if self.width % (2 * self.heads):
                raise ConfigError(
                    f"VideoTransformer.width: {self.width} is not a multiple of "
                    f"2 heads={2 * self.heads}"
                )

        @property
        def vocabulary(self) -> int:
            """Frame tokens that there are."""
            return prod(self.levels)

    def __init__(
        self, spec: Spec, config: Config | None = None, *, sentences: Tensor | None = None
    ) -> None:
        """Build the network for a store of tokens.

        With `sentences` (tasks, 384) the tasks are sentences, these their vectors.
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
        self.hidden_code = self.first_code + c.codes  # stands for a forgotten one
        self.embed = nn.Embedding(self.hidden_code + 1, c.width)
        names = nn.Embedding(len(c.tasks) + 1, c.width)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(names.weight, std=1.0)  # large enough for the frame encoder
        self.task = names if sentences is None else TaskSentences(sentences, c.width)
        # Which place of a block a token has: rotary positions count through all blocks.
        self.place = nn.Parameter(0.02 * torch.randn(self.block, c.width))
        many, together = c.tokens_per_position > 1, c.tokens_per_position * c.width
        self.merge = nn.Linear(together, c.width, bias=False) if many else nn.Identity()
        self.split = nn.Linear(c.width, together, bias=False) if many else nn.Identity()
        self.frame_encoder = None
        if c.frame_encoder:
            self.frame_encoder = FrameEncoder(
                c, self.tokens, told=c.width, channels=c.frame_encoder, size=c.width
            )
        self.frame_head = None
        if c.frame_encoder and c.horizon and c.transformer_batch_fraction < 1:
            self.frame_head = nn.Linear(c.width, c.horizon * c.codes)
        self.body = Transformer(c.width, layers=c.layers, heads=c.heads, dropout=c.dropout)
        self.head = nn.Linear(c.width, self.hidden_code, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)

    @property
    def block(self) -> int:
        """Positions of a time step."""
        return self.positions + 3 + self.config.horizon

    def number(self, task: str) -> int:
        """Return the number of a task; ConfigError where it was not trained on.

        Of a sentence that is not known, that of the nearest: what it asks for is done as that was.
        """
        if task in self.config.tasks:
            return self.config.tasks.index(task) + 1
        if isinstance(self.task, TaskSentences) and self.config.tasks:
            place, alike = self.task.nearest(task)
            if alike >= ALIKE:
                return place + 1
            raise ConfigError(
                f"task {task!r}: is like nothing that was trained on; nearest: "
                f"{self.config.tasks[place]!r} (cosine {alike:.2f}, need {ALIKE})"
            )
        known = ", ".join(self.config.tasks) or "none"
        raise ConfigError(f"task {task!r}: was not trained on; known: {known}")

    def loss(self, batch: Batch) -> Loss:
        """Return the cross-entropy of frames and codes in nats a token, and the frame encoder's."""
        c = self.config
        tokens, task = batch.observations[TOKENS].long(), batch.observations[TASK].long()
        codes = batch.observations[CODES].long()[..., : c.horizon]
        guessed = self._guessed(tokens, task, codes)
        if self.training and c.transformer_batch_fraction < 1:
            few = max(1, round(c.transformer_batch_fraction * len(tokens)))
            tokens, task, codes = tokens[:few], task[:few], codes[:few]
        b, t = tokens.shape[:2]
        hidden_codes = torch.ones(b, t, dtype=torch.bool, device=tokens.device)  # as in use
        hidden_codes[:, -1] = False  # there they are what is said
        if self.training:
            hidden_codes[:, :-1] = torch.rand(b, t - 1, device=tokens.device) < c.past_code_dropout
        out = self._run(tokens, task, codes, hidden_codes)  # b t block width
        k = self.positions
        counted = torch.arange(k, device=tokens.device)
        if self.training and c.frame_loss_fraction < 1:
            some = max(1, round(c.frame_loss_fraction * k))
            counted = torch.randperm(k, device=tokens.device)[:some]
        # [start] and all tokens but the last say the tokens.
        logits = self._said(out[:, :, 1 + counted])
        truth = tokens.view(b, t, k, c.tokens_per_position)[:, :, counted]
        frames = F.cross_entropy(logits.flatten(0, 2), truth.flatten())
        parts = {"frames": frames.detach()}
        total = c.frame_loss_weight * frames
        if c.horizon:
            said = self.head(out[:, :, 2 + k : 2 + k + c.horizon])  # [end] and codes but the last
            said = said[..., self.first_code : self.hidden_code]
            nats = F.cross_entropy(said.flatten(0, 2), codes.flatten(), reduction="none")
            # The first is said of frames alone. Without it little is learnt of a window's first
            # frame, where no motion was seen yet and what the task is about has to be found.
            counts = (~hidden_codes)[:, :, None].repeat(1, 1, c.horizon)
            counts[:, :, 0] = True
            of_codes = (nats * counts.flatten()).sum() / counts.sum()
            hit = (said.detach().argmax(-1) == codes)[:, -1].float()  # b H, of the last frame
            parts |= {"codes": of_codes.detach(), "first": hit[:, 0].mean(), "hits": hit.mean()}
            total = total + of_codes
        if guessed is not None:
            parts["frame_encoder"] = guessed.detach()
            total = total + guessed
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
        logits = self._said(out[:, :, 1 : 1 + self.positions])[..., : self.config.vocabulary]
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

        temperature 0 takes the likeliest code; top_p keeps the likeliest codes that make up so
        much of the probability. Without the cache every code runs the whole context again: the
        same, only slower.
        """
        c = self.config
        check("VideoTransformer.generate", tokens, "B T K", K=self.tokens)
        b, t = tokens.shape[:2]
        if t > c.context:
            raise ShapeError(
                f"VideoTransformer.generate: found {t} frames, it was trained on {c.context}"
            )
        codes = torch.zeros(b, t, c.horizon, dtype=torch.long, device=tokens.device)
        forgotten = torch.ones(b, t, dtype=torch.bool, device=tokens.device)
        x = self._embed(tokens, task[:, None].expand(b, t), codes, forgotten).flatten(1, 2)
        x = x[:, : t * self.block - c.horizon]  # up to the [end] of the last frame

        def pick(hidden: Tensor) -> Tensor:
            logits = self.head(hidden)[..., self.first_code : self.hidden_code]
            return choose(logits, temperature, top_p=top_p, generator=generator)

        if not c.horizon:  # nothing is said behind [end]: the state that says the next frame
            x = torch.cat([x, self._begun(task)], dim=1)
        sequence = Growing(self.body, b, t * self.block + 2, cached=cached)
        hidden = sequence.read(x)[:, -1:].repeat_interleave(count, dim=0)  # (b n) 1 width
        sequence.repeat(count)
        said, states = [], [hidden]
        for h in range(c.horizon):
            code = pick(hidden[:, 0])
            said.append(code)
            hidden = sequence.read(self._code(code, h))
            states.append(hidden)
        seen = torch.cat(states, dim=1)  # (b n) (H + 1) width
        made = torch.stack(said, dim=1) if said else seen.new_zeros(len(seen), 0).long()
        return Generated(made.view(b, count, -1), seen.view(b, count, *seen.shape[1:]))

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

        Drawn one after the other. Of `context` frames or more the first are left out, since the
        next one is the last that the network has learnt to see.
        """
        tokens = tokens[:, -(self.config.context - 1) :]
        b, t = tokens.shape[:2]
        every = torch.zeros(b, t, self.config.horizon, dtype=torch.long, device=tokens.device)
        every[:, -1] = codes
        forgotten = torch.ones(b, t, dtype=torch.bool, device=tokens.device)
        forgotten[:, -1] = False
        x = self._embed(tokens, task[:, None].expand(b, t), every, forgotten).flatten(1, 2)
        sequence = Growing(self.body, b, (t + 1) * self.block, cached=cached)
        hidden = sequence.read(torch.cat([x, self._begun(task)], dim=1))[:, -1]
        drawn = []
        for k in range(self.positions):
            logits = self._said(hidden[:, None])[..., : self.config.vocabulary]
            token = choose(logits.flatten(0, 1), temperature, top_p=top_p, generator=generator)
            drawn.append(token.view(b, -1))
            hidden = sequence.read(self._read(drawn[-1]) + self.place[2 + k])[:, -1]
        return torch.cat(drawn, dim=1)

    def plan_states(self, tokens: Tensor, codes: Tensor, task: Tensor) -> Tensor:
        """Return the hidden states (B, H + 1, width) after the last frame and its codes (B, H).

        As `generate` gives them, for frames (B, T, K) and codes that are known, one or more.
        """
        b, t = tokens.shape[:2]
        every = torch.zeros(b, t, self.config.horizon, dtype=torch.long, device=tokens.device)
        every[:, -1] = codes
        forgotten = torch.ones(b, t, dtype=torch.bool, device=tokens.device)
        forgotten[:, -1] = False
        out = self._run(tokens, task[:, None].expand(b, t), every, forgotten)
        return out[:, -1, 2 + self.positions :]

    def _guessed(self, tokens: Tensor, task: Tensor, codes: Tensor) -> Tensor | None:
        """Return the cross-entropy of codes (b, t, H) as the frame encoder alone predicts them.

        It is what finds the thing that a task is about, for which it has to see many frames; most
        of a step's time goes into the transformer.
        """
        if self.frame_head is None or self.frame_encoder is None:
            return None
        seen = self.frame_head(F.relu(self.frame_encoder(tokens, self.task(task))))
        logits = seen.view(-1, self.config.codes)
        return F.cross_entropy(logits, codes.flatten())

    def _begun(self, task: Tensor) -> Tensor:
        """Return the first two positions (b, 2, width) of a block, [task] and [start]."""
        start = self.embed(torch.full_like(task, self.start))
        begun: Tensor = torch.stack([self.task(task), start], dim=1) + self.place[:2]
        return begun

    def _code(self, code: Tensor, h: int) -> Tensor:
        """Return what code number h (n,) of a block is to the transformer: (n, 1, width)."""
        embedded: Tensor = self.embed(code + self.first_code)
        return (embedded + self.place[self.positions + 3 + h])[:, None]

    def _read(self, tokens: Tensor) -> Tensor:
        """Return positions (..., K / together, width) of tokens (..., K)."""
        parts = self.embed(tokens).unflatten(-2, (-1, self.config.tokens_per_position))
        joined: Tensor = self.merge(parts.flatten(-2))
        return joined

    def _said(self, hidden: Tensor) -> Tensor:
        """Return logits (..., n together, ids) of what states (..., n, width) say comes next."""
        parts = self.split(hidden).unflatten(-1, (self.config.tokens_per_position, -1))
        parts = parts.flatten(-3, -2)
        logits: Tensor = self.head(parts)
        return logits

    def _embed(self, tokens: Tensor, task: Tensor, codes: Tensor, hidden_codes: Tensor) -> Tensor:
        """Return blocks (b, t, block, width)."""
        b, t = tokens.shape[:2]
        start = torch.full((b, t, 1), self.start, device=tokens.device)
        said = (codes + self.first_code).masked_fill(hidden_codes[:, :, None], self.hidden_code)
        told = self.task(task)
        end = self.embed(torch.full_like(start, self.end))
        if self.frame_encoder is not None:
            end = end + self.frame_encoder(tokens, told)[:, :, None]
        parts = [told[:, :, None], self.embed(start), self._read(tokens), end, self.embed(said)]
        return torch.cat(parts, dim=2) + self.place

    def _run(self, tokens: Tensor, task: Tensor, codes: Tensor, hidden_codes: Tensor) -> Tensor:
        x = self._embed(tokens, task, codes, hidden_codes)
        out: Tensor = self.body(x.flatten(1, 2)).view(x.shape)
        return out


class FrameEncoder(nn.Module):
    """All tokens of a frame at once, as the maps of numbers that they are, to one vector."""

    def __init__(
        self, config: VideoTransformer.Config, tokens: int, *, told: int, channels: int, size: int
    ) -> None:
        """Make the layers for so many tokens a frame; a vector of `told` numbers says what matters.

        ConfigError where the tokens are not a square for each camera.
        """
        super().__init__()
        c = config
        self.shape = (c.views, isqrt(tokens // c.views))
        if c.views * self.shape[1] ** 2 != tokens:
            raise ConfigError(
                f"VideoTransformer.views: {tokens} tokens are not {c.views} square maps"
            )
        self.codebook = FSQCodebook(c.levels)
        self.first = nn.Conv2d(c.views * len(c.levels), channels, 3, padding=1)
        self.told = nn.Linear(told, channels)
        side = self.shape[1]
        stride = 2 if side > LARGE else 1
        self.more = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1), nn.ReLU(),
            nn.Conv2d(channels, channels // 2, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Dropout(c.dropout),
        )  # fmt: skip
        self.out = nn.Linear(channels // 2 * (-(-side // stride)) ** 2, size)

    def forward(self, tokens: Tensor, told: Tensor) -> Tensor:
        """Return (..., size) of frames (..., K) and what they are told (..., told)."""
        views, side = self.shape
        maps = self.codebook.codes(tokens.flatten(0, -2))
        maps = rearrange(maps, "n (v y x) d -> n (v d) y x", v=views, y=side)
        x = self.first(maps) + self.told(told).flatten(0, -2)[:, :, None, None]
        seen: Tensor = self.out(self.more(F.relu(x)))
        return seen.view(*tokens.shape[:-1], -1)


class TaskSentences(nn.Module):
    """Tasks as sentences: their vectors, brought to mean 0 and variance 1, then linear.

    Number 0 is no task.
    """

    def __init__(self, sentences: Tensor, width: int) -> None:
        """Take the vectors (tasks, 384) of the sentences; they are saved with the weights."""
        super().__init__()
        self.known: Tensor
        self.register_buffer("known", sentences.clone())
        self.read = nn.Linear(sentences.shape[1], width)
        self.none = nn.Parameter(0.02 * torch.randn(width))
        nn.init.normal_(self.read.weight, std=1 / sentences.shape[1] ** 0.5)
        nn.init.zeros_(self.read.bias)

    def forward(self, number: Tensor) -> Tensor:
        """Return (..., width) of task numbers (...)."""
        apart = self.known - self.known.mean(0)
        known = self.read(apart / apart.square().mean(0).sqrt().clamp(min=1e-4))
        return torch.cat([self.none[None], known])[number]

    def nearest(self, text: str) -> tuple[int, float]:
        """Return the place of the known sentence nearest to a text, and the cosine.

        Raises MissingDependency without the extra `language`.
        """
        asked = encoder.embed([text.replace("_", " ")]).to(self.known)
        alike, place = (self.known @ asked[0]).max(0)
        return int(place), float(alike)


def choose(
    logits: Tensor,
    temperature: float,
    *,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return one id (n,) a row of logits (n, ids): nucleus sampling (Holtzman et al., 1904.09751).

    temperature 0 takes the likeliest.
    """
    if temperature <= 0:
        return logits.argmax(-1)
    share = (logits / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = share.sort(dim=-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
        share = torch.zeros_like(share).scatter(-1, order, ordered)
    return torch.multinomial(share, 1, generator=generator)[:, 0]
