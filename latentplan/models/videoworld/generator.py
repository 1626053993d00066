"""The autoregressive transformer over frames and codes: what it says next is a plan, or a video.

VideoWorld (arXiv 2501.09781, section 3.3; layout as in its released code): a time step is the block

    [task] [start] [K frame tokens of all cameras] [end] [H codes]

over one vocabulary: frame tokens, codes, start and end. Codes come after the frame that they look
ahead from, so that generating codes is planning, and generating the next block is imagining.
Differs: past codes are forgotten at random in training (`forget`) and always elsewhere, where only
the frames were observed; tasks are a learned vector each, or sentences; neighbouring frame tokens
may share a position (`together`), which are then read and said at once; [end] carries what
convolutions see in the whole frame (`glance`), which attention to tokens one by one is slow to
learn from few videos; and the glance may be asked for the codes by itself (`through`).
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
from latentplan.nn.quantizer import Numbers
from latentplan.nn.transformer import Growing, Transformer
from latentplan.shapes import check
from latentplan.types import Batch, Loss, Spec

TOKENS, CODES, TASK = "tokens", "codes", "task"  # observation keys of a store of tokens
HIDDEN = "hidden"  # that of the generator's states, in a store that has them
LARGE = 8  # tokens a side of a camera, above which a glance halves the map
ALIKE = 0.5  # cosine to the nearest known sentence from which one is understood


class Generated(NamedTuple):
    """What follows the last frame of B contexts, n times."""

    codes: Tensor  # (B, n, H) int64
    hidden: Tensor  # (B, n, H + 1, width): after [end] and each code; H = 0: after next [start]


class Generator(nn.Module):
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
        together: int = 4  # frame tokens a position; those of one are said independently
        glance: int = 64  # channels of the convolutions over a whole frame; 0: none
        width: int = 192
        layers: int = 4
        heads: int = 4
        dropout: float = 0.1
        forget: float = 0.5  # share of past frames whose codes are hidden, in training
        frames: float = 0.2  # weight of the frame tokens' mean loss beside the codes'
        counted: float = 1.0  # share of a frame's positions that a training step counts there
        through: float = 1.0  # share of a training batch that the transformer sees; the glance all

        def __post_init__(self) -> None:
            """Raise ConfigError where a field is out of its range."""
            for name in ("views", "codes", "together", "width", "layers", "heads"):
                check_range(f"Generator.{name}", getattr(self, name), 1)
            check_range("Generator.context", self.context, 2)
            check_range("Generator.horizon", self.horizon, 0, 64)
            check_range("Generator.glance", self.glance, 0)
            check_range("Generator.dropout", self.dropout, 0.0, 0.9)
            check_range("Generator.forget", self.forget, 0.0, 1.0)
            check_range("Generator.frames", self.frames, 0.0)
            check_range("Generator.counted", self.counted, 0.001, 1.0)
            check_range("Generator.through", self.through, 0.001, 1.0)
            if self.width % (2 * self.heads):
                raise ConfigError(
                    f"Generator.width: {self.width} is not a multiple of 2 heads={2 * self.heads}"
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
        if self.tokens % c.together:
            raise ConfigError(
                f"Generator.together: {self.tokens} tokens a frame are no multiple of {c.together}"
            )
        self.positions = self.tokens // c.together  # of a frame's tokens
        self.start, self.end = c.vocabulary, c.vocabulary + 1
        self.first_code = c.vocabulary + 2  # ids of codes begin here
        self.hidden_code = self.first_code + c.codes  # stands for a forgotten one
        self.embed = nn.Embedding(self.hidden_code + 1, c.width)
        names = nn.Embedding(len(c.tasks) + 1, c.width)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(names.weight, std=1.0)  # a glance has to hear it from the first step on
        self.task = names if sentences is None else Spoken(sentences, c.width)
        # Which place of a block a token has: rotary positions count through all blocks.
        self.place = nn.Parameter(0.02 * torch.randn(self.block, c.width))
        together = c.together * c.width
        self.join = nn.Linear(together, c.width, bias=False) if c.together > 1 else nn.Identity()
        self.apart = nn.Linear(c.width, together, bias=False) if c.together > 1 else nn.Identity()
        self.glance = None
        if c.glance:
            self.glance = Glance(c, self.tokens, told=c.width, channels=c.glance, size=c.width)
        self.guess = None
        if c.glance and c.horizon and c.through < 1:
            self.guess = nn.Linear(c.width, c.horizon * c.codes)
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
        if isinstance(self.task, Spoken) and self.config.tasks:
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
        """Return the cross-entropy of windows in nats a token: of frames, codes, and the glance."""
        c = self.config
        tokens, task = batch.observations[TOKENS].long(), batch.observations[TASK].long()
        codes = batch.observations[CODES].long()[..., : c.horizon]
        guessed = self._guessed(tokens, task, codes)
        if self.training and c.through < 1:
            few = max(1, round(c.through * len(tokens)))
            tokens, task, codes = tokens[:few], task[:few], codes[:few]
        b, t = tokens.shape[:2]
        hidden_codes = torch.ones(b, t, dtype=torch.bool, device=tokens.device)  # as in use
        hidden_codes[:, -1] = False  # there they are what is said
        if self.training:
            hidden_codes[:, :-1] = torch.rand(b, t - 1, device=tokens.device) < c.forget
        out = self._run(tokens, task, codes, hidden_codes)  # b t block width
        k = self.positions
        counted = torch.arange(k, device=tokens.device)
        if self.training and c.counted < 1:  # most of a step's time goes into so many logits
            counted = torch.randperm(k, device=tokens.device)[: max(1, round(c.counted * k))]
        # [start] and all tokens but the last say the tokens.
        logits = self._said(out[:, :, 1 + counted])
        truth = tokens.view(b, t, k, c.together)[:, :, counted]
        frames = F.cross_entropy(logits.flatten(0, 2), truth.flatten())
        parts = {"frames": frames.detach()}
        total = c.frames * frames
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
            parts["glance"] = guessed.detach()
            total = total + guessed
        return Loss(total, parts)

    def log_prob(self, tokens: Tensor, task: Tensor) -> Tensor:
        """Return the log-probability (B, T) in nats of frames (B, T, K), each given those before.

        Codes are hidden; `task` (B,).
        """
        check("Generator.log_prob", tokens, "B T K", K=self.tokens)
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
        check("Generator.generate", tokens, "B T K", K=self.tokens)
        b, t = tokens.shape[:2]
        if t > c.context:
            raise ShapeError(f"Generator.generate: found {t} frames, it was trained on {c.context}")
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
        """Return the cross-entropy of codes (b, t, H) as the glance alone guesses them.

        It is what finds the thing that a task is about, for which it has to see many frames; most
        of a step's time goes into the transformer.
        """
        if self.guess is None or self.glance is None:
            return None
        seen = self.guess(F.relu(self.glance(tokens, self.task(task))))
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
        parts = self.embed(tokens).unflatten(-2, (-1, self.config.together))
        joined: Tensor = self.join(parts.flatten(-2))
        return joined

    def _said(self, hidden: Tensor) -> Tensor:
        """Return logits (..., n together, ids) of what states (..., n, width) say comes next."""
        parts = self.apart(hidden).unflatten(-1, (self.config.together, -1)).flatten(-3, -2)
        logits: Tensor = self.head(parts)
        return logits

    def _embed(self, tokens: Tensor, task: Tensor, codes: Tensor, hidden_codes: Tensor) -> Tensor:
        """Return blocks (b, t, block, width)."""
        b, t = tokens.shape[:2]
        start = torch.full((b, t, 1), self.start, device=tokens.device)
        said = (codes + self.first_code).masked_fill(hidden_codes[:, :, None], self.hidden_code)
        told = self.task(task)
        end = self.embed(torch.full_like(start, self.end))
        if self.glance is not None:
            end = end + self.glance(tokens, told)[:, :, None]
        parts = [told[:, :, None], self.embed(start), self._read(tokens), end, self.embed(said)]
        return torch.cat(parts, dim=2) + self.place

    def _run(self, tokens: Tensor, task: Tensor, codes: Tensor, hidden_codes: Tensor) -> Tensor:
        x = self._embed(tokens, task, codes, hidden_codes)
        out: Tensor = self.body(x.flatten(1, 2)).view(x.shape)
        return out


class Glance(nn.Module):
    """All tokens of a frame at once, as the maps of numbers that they are, to one vector."""

    def __init__(
        self, config: Generator.Config, tokens: int, *, told: int, channels: int, size: int
    ) -> None:
        """Make the layers for so many tokens a frame; a vector of `told` numbers says what matters.

        ConfigError where the tokens are not a square for each camera.
        """
        super().__init__()
        c = config
        self.shape = (c.views, isqrt(tokens // c.views))
        if c.views * self.shape[1] ** 2 != tokens:
            raise ConfigError(f"Generator.views: {tokens} tokens are not {c.views} square maps")
        self.meaning = Numbers(c.levels)
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
        maps = self.meaning.codes(tokens.flatten(0, -2))
        maps = rearrange(maps, "n (v y x) d -> n (v d) y x", v=views, y=side)
        x = self.first(maps) + self.told(told).flatten(0, -2)[:, :, None, None]
        seen: Tensor = self.out(self.more(F.relu(x)))
        return seen.view(*tokens.shape[:-1], -1)


class Spoken(nn.Module):
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
