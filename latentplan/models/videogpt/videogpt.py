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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan import mp4, png, registry
from latentplan.data.windows import Windows
from latentplan.errors import ConfigError, ShapeError, StoreError, check_range
from latentplan.models.videogpt.clips import (
    TOKENS,
    by_token_frame,
    check_stride,
    clip_spec,
    clips_of,
)
from latentplan.models.videogpt.prior import Prior
from latentplan.types import (
    Derived,
    Label,
    Part,
    Parts,
    Spec,
    Stage,
    Tensors,
    Tokens,
    Training,
)

DRAWN, DRAWN_SIDE = 4, 96  # held-out clips that are illustrated, pixels of a frame there


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
        self.tokenizer = tokenizer or registry.build(c.tokenizer, spec)
        self.spec = self.tokenizer.spec
        self.cameras = tuple(self.spec.observation)
        self.stride = self.tokenizer.stride
        check_stride(c, self.stride)
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
            Stage.of_part(
                "tokenizer",
                config.tokenizer,
                lambda spec, parts: registry.build(config.tokenizer, spec),
                training.tokenizer,
            ),
            Derived(
                "clips",
                lambda spec, parts: clip_spec(spec, parts["tokenizer"], config),
                lambda episodes, parts: clips_of(episodes, parts["tokenizer"], config),
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
            yield png.write(folder / f"samples_{key}.png", image), f"{about}, time to the right"
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


def _prior(spec: Spec, tokenizer: Any, config: VideoGPT.Config) -> Prior:
    """Return an untrained prior for a store of clips."""
    return Prior(spec, replace(config.prior, vocabulary=tokenizer.vocabulary))
