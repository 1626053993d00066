"""The store of tokenized clips that the prior of VideoGPT is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from latentplan.errors import ConfigError
from latentplan.types import (
    ActionSpec,
    Array,
    ArraySpec,
    Episode,
    Label,
    Spec,
)

if TYPE_CHECKING:
    from latentplan.models.videogpt.videogpt import VideoGPT

TOKENS, FRAMES, ACTIONS = "tokens", "frames", "actions"  # observations of such a store


def check_stride(config: VideoGPT.Config, stride: int) -> None:
    """Raise ConfigError unless clips and context fit the tokenizer's stride."""
    if config.clip % stride or config.context > stride:
        raise ConfigError(
            f"VideoGPT.clip: found {config.clip} frames and a context of {config.context}, need a "
            f"multiple of the tokenizer's stride {stride} and a context of at most {stride}"
        )


def clip_spec(spec: Spec, tokenizer: Any, config: VideoGPT.Config) -> Spec:
    """Return the spec of the store of clips made of data of `spec`."""
    stride = tokenizer.stride
    check_stride(config, stride)
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


def clips_of(
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


def by_token_frame(actions: Tensor, steps: int, stride: int) -> Tensor:
    """Return (B, steps, stride A) of actions (B, n, A): those that lead to each token frame.

    Zeros stand for the one before the first frame, and for those that are missing at the end.
    """
    lead = F.pad(actions, (0, 0, 1, steps * stride - 1 - actions.shape[1]))
    return rearrange(lead, "b (t s) a -> b t (s a)", s=stride)
