"""VideoGPT: a likelihood model of video, a GPT over the tokens of a 3-D VQ-VAE.

Yan et al., arXiv 2104.10157: (1) a tokenizer turns a clip into a small grid of discrete tokens over
time, height and width; (2) a causal transformer, the prior, predicts them one after the other in
raster order (section 3.2), conditioned on the first frames, on actions and on a task if asked to.
Differs: features of the first frames, embedded actions and the task are added to the input of each
position that they concern, where the paper has cross-attention for frames and conditional layer
norms for the rest; positions are rotary as well as learned; tokens have an embedding of the prior's
own, so that any tokenizer serves; and past tokens are a clip's true beginning if enough frames are
given, since the tokenizer is causal in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import isqrt, log2
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan import mp4, registry
from latentplan.data.windows import Windows
from latentplan.errors import ConfigError, ShapeError, StoreError, check_range
from latentplan.files import replacing
from latentplan.nn import images
from latentplan.nn.transformer import Growing, Transformer
from latentplan.shapes import check
from latentplan.types import (
    ActionSpec,
    Array,
    ArraySpec,
    Batch,
    Derived,
    Episode,
    Label,
    Loss,
    Part,
    Parts,
    Spec,
    Stage,
    Tensors,
    Tokens,
    Training,
)

TOKENS, FRAMES, ACTIONS = "tokens", "frames", "actions"  # observations of a store of clips
DRAWN, DRAWN_SIDE = 4, 96  # held-out clips that are illustrated, pixels of a frame there


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
            drawn.append(_draw(self.head(hidden), temperature, generator))
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


class VideoGPT(nn.Module):
    """A `protocols.VideoModel`: tokenizer, then prior; not a Dynamics.

    Videos are handled in clips of `clip` frames. The probability of a token frame, `stride` frames
    of the tokenizer, is that of the last of them; the others have the log-probability 0. It is that
    of the tokens alone: what the decoder makes of them has no likelihood. All is given the first
    `context` frames.
    """

    @dataclass(frozen=True)
    class Config:
        """The two networks and what the prior is conditioned on."""

        tokenizer: Part = Part("tokenizer", "video_vqvae")  # whose tokens the prior predicts
        clip: int = 8  # frames
        context: int = 1  # first frames that the prior is conditioned on
        every: int = 1  # frames between the starts of the clips that the prior is trained on
        prior: Prior.Config = Prior.Config()  # the transformer over tokens

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("VideoGPT.clip", self.clip, 2)
            check_range("VideoGPT.context", self.context, 1, self.clip)
            check_range("VideoGPT.every", self.every, 1)

    @dataclass(frozen=True)
    class Training:
        """How each network is trained."""

        tokenizer: Training = field(default=Training(batch=16, learning_rate=3e-4, clip=1.0))
        prior: Training = field(default=Training(batch=32, learning_rate=3e-4, clip=1.0))

    def __init__(
        self,
        spec: Spec,
        config: Config | None = None,
        *,
        tokenizer: Any = None,
        prior: Prior | None = None,
    ) -> None:
        """Put the networks together, or build those that are not given."""
        super().__init__()
        c = self.config = config or self.Config()
        self.tokenizer = tokenizer or _tokenizer(spec, c)
        self.spec = self.tokenizer.spec
        self.cameras = tuple(self.spec.observation)
        self.stride = self.tokenizer.stride
        _check(c, self.stride)
        self.prior = prior or _prior(clip_spec(spec, self.tokenizer, c), self.tokenizer, c)

    @classmethod
    def stages(
        cls, config: Config, *, training: VideoGPT.Training, spec: Spec, labels: Sequence[Label]
    ) -> Sequence[Stage | Derived]:
        """Return the tokenizer, the store of tokenized clips, and the prior."""
        if config.prior.tasks and not spec.tasks:
            raise ConfigError(
                "model.prior.tasks: found true, the data's labels name no task; set it to false"
            )
        clips = {"clip": config.clip, "context": config.context, "every": config.every}
        return [
            Stage(
                "tokenizer",
                lambda spec, parts: _tokenizer(spec, config),
                config.tokenizer,
                training.tokenizer,
                kind="tokenizer",
                registered=config.tokenizer.name,
                run=config.tokenizer.run,
            ),
            Derived(
                "clips",
                lambda spec, parts: clip_spec(spec, parts["tokenizer"], config),
                lambda episodes, parts: _clips(episodes, parts["tokenizer"], config),
                clips,
                parts=("tokenizer",),
                codebooks={TOKENS: "tokenizer"},
            ),
            Stage(
                "prior",
                lambda spec, parts: _prior(spec, parts["tokenizer"], config),
                config.prior,
                training.prior,
                data="clips",
                parts=("tokenizer",),
                window=config.clip,
                window_from="model.clip",
            ),
        ]

    @classmethod
    def assemble(
        cls, config: Config, *, spec: Spec, labels: Sequence[Label], parts: Parts
    ) -> VideoGPT:
        """Return the model of its trained networks."""
        return cls(spec, config, tokenizer=parts["tokenizer"], prior=parts["prior"])

    def log_prob(
        self, frames: Tensors, *, actions: Tensor | None = None, task: Tensor | None = None
    ) -> Tensor:
        """Return the log-probability (B, T) in nats of the tokens that end with each frame.

        T is a multiple of the stride, at most a clip. Sums are of whole videos, given the first
        frames.
        """
        tokens = self.tokenizer.encode(frames).ids
        b, steps = tokens.shape[:2]
        if steps * self.stride > self.config.clip:
            raise ShapeError(
                f"VideoGPT.log_prob: found {steps * self.stride} frames, need at most "
                f"{self.config.clip}, a clip"
            )
        known = self._conditions(frames, actions, task, steps)
        found = tokens.new_zeros((b, steps, self.stride), dtype=known.dtype)
        found[..., -1] = self.prior.log_prob(tokens, known).sum(-1)
        log_probs: Tensor = found.flatten(1)
        return log_probs

    @torch.no_grad()
    def sample(
        self,
        frames: Tensors,
        steps: int,
        *,
        actions: Tensor | None = None,
        task: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        cached: bool = True,
    ) -> dict[str, Tensor]:
        """Return the next `steps` frames (B, steps, h, w, 3) uint8 a camera.

        With fewer frames than a token frame spans, the first `context` of them are what is known;
        else it is the tokens of as many of the last frames as are a multiple of the stride. What
        does not fit a clip follows from the clip before. `actions` (B, T - 1 + steps, A).
        """
        check_range("VideoGPT.sample: steps", steps, 1)
        video = {key: frames[key] for key in self.cameras}
        first = self.cameras[0]
        given = video[first].shape[1]
        while (length := video[first].shape[1]) < given + steps:
            known = self._known(length)
            start = length - known
            count = min(self.config.clip, given + steps - start)
            sent = None if actions is None else actions[:, start : start + count - 1]
            shown = self._complete(
                {key: each[:, start:] for key, each in video.items()},
                -(-count // self.stride),
                actions=sent,
                task=task,
                draw={"temperature": temperature, "generator": generator, "cached": cached},
            )
            for key, each in shown.items():
                video[key] = torch.cat([video[key], each[:, known:count]], dim=1)
        return {key: each[:, given:] for key, each in video.items()}

    def illustrate(self, store: Any, folder: Path) -> Iterator[tuple[Path, str]]:
        """Draw held-out clips of `store`, what the tokenizer makes of them, and samples."""
        c, cameras = self.config, self.cameras
        for key in cameras:
            if key not in store.spec.observation:
                raise StoreError(f"{store.path}: has no images {key}, which VideoGPT observes")
        chosen = {"keys": cameras, "reads": ("task",), "tasks": self.spec.tasks}
        clips = Windows(store, length=c.clip, batch=DRAWN, split="test", **chosen)[0]
        device = next(self.parameters()).device
        frames = {key: each.to(device) for key, each in clips.observations.items()}
        first = {key: each[:, : c.context] for key, each in frames.items()}
        task = None if clips.task is None else clips.task[:, 0].to(device)
        known: dict[str, Any] = {"actions": clips.actions.to(device), "task": task}
        panels = [frames, self.tokenizer.decode(self.tokenizer.encode(frames))]
        draw = torch.Generator(device).manual_seed(0)
        for _ in range(2):
            after = self.sample(first, c.clip - c.context, generator=draw, **known)
            panels.append({key: torch.cat([first[key], after[key]], dim=1) for key in cameras})
        about = "held-out clips: true, reconstructed, two samples after the first"
        for key in cameras:
            grid = torch.stack([each[key] for each in panels], dim=1).cpu()  # b p t h w c
            scale = max(1, DRAWN_SIDE // grid.shape[-2])
            grid = grid.repeat_interleave(scale, dim=3).repeat_interleave(scale, dim=4)
            grid = F.pad(grid, (0, 0, 0, 2, 0, 2), value=255)  # a white line between images
            image = rearrange(grid, "b p t h w c -> (b p h) (t w) c").numpy()
            yield _png(folder / f"samples_{key}.png", image), f"{about}, time to the right"
            video = rearrange(grid, "b p t h w c -> t (b h) (p w) c").numpy()
            file = folder / f"samples_{key}.mp4"
            mp4.encode(file, video, fps=4)
            yield file, f"{about}, side by side"

    def _known(self, length: int) -> int:
        """Return how many of the last of `length` frames a continuation is given."""
        c = self.config
        if length < c.context:
            raise ShapeError(
                f"VideoGPT.sample: found {length} frames, need at least {c.context}, the context"
            )
        stride = int(self.stride)
        return c.context if length < stride else min(length, c.clip - stride) // stride * stride

    def _complete(
        self,
        frames: Tensors,
        steps: int,
        *,
        actions: Tensor | None,
        task: Tensor | None,
        draw: dict[str, Any],
    ) -> Tensors:
        """Return a clip of `steps` token frames that begins with `frames`, decoded."""
        first = frames[self.cameras[0]]
        if first.shape[1] < self.stride:
            tokens = first.new_zeros((len(first), 0, self.tokenizer.tokens), dtype=torch.long)
        else:
            tokens = self.tokenizer.encode(frames).ids
        known = self._conditions(frames, actions, task, steps)
        ids = self.prior.sample(tokens, known, **draw)
        shown: Tensors = self.tokenizer.decode(Tokens(ids))
        return shown

    def _conditions(
        self, frames: Tensors, actions: Tensor | None, task: Tensor | None, steps: int
    ) -> Tensor:
        """Return the prior's conditions of a clip of `steps` token frames."""
        first = torch.stack([frames[key] for key in self.cameras], dim=2)[:, : self.config.context]
        if first.shape[1] < self.config.context:
            raise ShapeError(
                f"VideoGPT: found {first.shape[1]} frames, need {self.config.context}, the context"
            )
        if actions is not None:
            actions = by_token_frame(actions, steps, self.stride)
        return self.prior.conditions(first, actions, task)[:, :steps]


def _png(path: Path, image: Array) -> Path:
    """Write an image (h, w, 3) uint8."""
    from matplotlib.image import imsave

    with replacing(path) as partial:
        imsave(partial, image, format="png")
    return path


def _draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Return ids (n,) drawn from logits (n, vocabulary); the likeliest at temperature 0."""
    if not temperature:
        return logits.argmax(-1)
    shares = F.softmax(logits / temperature, dim=-1)
    return torch.multinomial(shares, 1, generator=generator)[:, 0]


def by_token_frame(actions: Tensor, steps: int, stride: int) -> Tensor:
    """Return (B, steps, stride A) of actions (B, n, A): those that lead to each token frame.

    Zeros stand for the one before the first frame, and for those that are missing at the end.
    """
    lead = F.pad(actions, (0, 0, 1, steps * stride - 1 - actions.shape[1]))
    return rearrange(lead, "b (t s) a -> b t (s a)", s=stride)


def _tokenizer(spec: Spec, config: VideoGPT.Config) -> Any:
    """Return an untrained tokenizer."""
    build = registry.get("tokenizer", config.tokenizer.name)
    return build(spec, config.tokenizer.config)


def _prior(spec: Spec, tokenizer: Any, config: VideoGPT.Config) -> Prior:
    """Return an untrained prior for a store of clips."""
    return Prior(spec, replace(config.prior, vocabulary=tokenizer.vocabulary))


def _check(config: VideoGPT.Config, stride: int) -> None:
    """Raise ConfigError unless clips and context fit the tokenizer's stride."""
    if config.clip % stride or config.context > stride:
        raise ConfigError(
            f"VideoGPT.clip: found {config.clip} frames and a context of {config.context}, need a "
            f"multiple of the tokenizer's stride {stride} and a context of at most {stride}"
        )


def clip_spec(spec: Spec, tokenizer: Any, config: VideoGPT.Config) -> Spec:
    """Return the spec of the store of clips made of data of `spec`."""
    stride = tokenizer.stride
    _check(config, stride)
    cameras = [*tokenizer.spec.observation]
    shape = tokenizer.spec.observation[cameras[0]].shape
    steps = config.clip // stride
    return Spec(
        {
            TOKENS: ArraySpec((steps, tokenizer.tokens), "int32"),
            FRAMES: ArraySpec((config.context, len(cameras), *shape), "uint8"),
            ACTIONS: ArraySpec((steps, stride * spec.action.size)),
        },
        ActionSpec((0.0,), (1.0,), "none: each observation is a clip by itself"),
        env=spec.env,
        tasks=spec.tasks,
    )


def _clips(
    episodes: Sequence[Episode], tokenizer: Any, config: VideoGPT.Config
) -> Iterable[Episode]:
    """Yield for each episode its clips, one that starts at every few frames."""
    cameras = [*tokenizer.spec.observation]
    device = next(tokenizer.parameters()).device
    for episode in episodes:
        starts = _starts(len(episode) + 1, config)
        at = np.minimum(starts[:, None] + np.arange(config.clip), len(episode))  # clips t
        found = {key: torch.from_numpy(episode.observations[key][at]) for key in cameras}
        with torch.no_grad():
            ids = tokenizer.encode({key: each.to(device) for key, each in found.items()}).ids
        padded = np.concatenate([episode.actions, np.zeros_like(episode.actions[:1])])
        actions = torch.from_numpy(padded[at[:, :-1]])
        frames = torch.stack([each[:, : config.context] for each in found.values()], dim=2)
        yield Episode(
            {
                TOKENS: ids.int().cpu().numpy(),
                FRAMES: frames.numpy(),
                ACTIONS: by_token_frame(actions, ids.shape[1], tokenizer.stride).numpy(),
            },
            np.zeros((len(starts) - 1, 1), np.float32),
            np.zeros(len(starts) - 1, np.float32),
            labels=_labels(episode, starts),
        )


def _starts(frames: int, config: VideoGPT.Config) -> Array:
    """Return the first frames (n >= 2,) of the clips of an episode.

    Two of them at least, as an episode has two observations: one that is too short stands still at
    its end.
    """
    last = max(frames - config.clip, 0)
    found = np.arange(0, last + 1, config.every)
    return found if len(found) > 1 else np.array([0, last])


def _labels(episode: Episode, starts: Array) -> tuple[Label, ...]:
    """Return the labels with the first and last clips that start within them."""
    found = []
    for label in episode.labels:
        stop = len(episode) if label.stop < 0 else label.stop
        inside = np.flatnonzero((starts >= label.start) & (starts <= stop))
        if len(inside):
            found.append(replace(label, start=int(inside[0]), stop=int(inside[-1])))
    return tuple(found)
