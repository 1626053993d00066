"""The stages of VideoWorld's training: five or six networks, and the stores between them.

Frames and clips become tokens and codes, on which the transformer trains. The inverse dynamics
trains on the transformer's states, which are computed once, since reading them takes less time; so
does the joint prior of a frame, which may also be added to a trained VideoWorld.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from latentplan import config as configs
from latentplan import registry
from latentplan.errors import ConfigError
from latentplan.models.frame_tokens import FRAMES, TOKENS, token_array, tokens_of
from latentplan.models.videoworld.dynamics import TokenDynamics
from latentplan.models.videoworld.frame_prior import FramePrior
from latentplan.models.videoworld.inverse_dynamics import InverseDynamics
from latentplan.models.videoworld.ldm import LDM
from latentplan.models.videoworld.video_transformer import (
    CODES,
    HIDDEN,
    TASK,
    VideoTransformer,
)
from latentplan.nn.sentences import embed
from latentplan.protocols import Tokenizer
from latentplan.types import (
    Array,
    ArraySpec,
    Derived,
    Episode,
    Label,
    Part,
    Parts,
    Spec,
    Stage,
    Training,
)

if TYPE_CHECKING:
    from latentplan.models.videoworld.videoworld import VideoWorld

PLANS = 256  # generated at a time


@dataclass(frozen=True)
class StageTraining:
    """Training settings of each part; the part determines `window`."""

    tokenizer: Training = field(default_factory=lambda: Training(steps=3000, batch=24, window=2))
    ldm: Training = field(default_factory=lambda: Training(steps=3000, batch=16))
    transformer: Training = field(
        default_factory=lambda: Training(steps=4000, batch=32, clip=1.0, weight_decay=0.01)
    )
    inverse: Training = field(
        default_factory=lambda: Training(steps=1500, batch=64, clip=1.0, weight_decay=0.01)
    )
    dynamics: Training = field(default_factory=lambda: Training(steps=2000, batch=32, clip=1.0))
    frame_prior: Training = field(
        default_factory=lambda: Training(steps=2000, batch=32, clip=1.0, weight_decay=0.01)
    )


def declare(
    config: VideoWorld.Config, *, training: StageTraining, spec: Spec, labels: Sequence[Label]
) -> tuple[Stage | Derived, ...]:
    """Return VideoWorld's stages; ConfigError if the data lack images, or sentences to learn."""
    if config.base != Part("model"):
        return _on_base(config, training, spec)
    tasks = task_names(labels, language=config.language)
    if config.language and not tasks:
        raise ConfigError("model.language: no episode in the data has a sentence")
    sentences = embed(tasks) if config.language else None  # fails, if so, before any training
    c = config.fitted(spec, tasks=tasks)
    hidden = c.inverse.reads == "hidden"
    transformer = Stage(
        "transformer",
        lambda spec, parts: VideoTransformer(spec, c.transformer, sentences=sentences),
        c.transformer,
        training.transformer,
        data="tokens",
        window=c.transformer.context,
        window_from="model.transformer.context",
    )
    states = Derived(
        "states",
        lambda spec, parts: with_states(spec, c.transformer),
        lambda episodes, parts: add_states(episodes, parts["transformer"]),
        data="tokens",
        parts=("transformer",),
        rows=PLANS,
    )
    inverse = Stage(
        "inverse",
        lambda spec, parts: InverseDynamics(spec, c.inverse, transformer=parts["transformer"]),
        c.inverse,
        training.inverse,
        data="states" if hidden else "tokens",
        parts=("transformer",),
        share=c.inverse.labelled,
        window=c.inverse.chunk + 1,
        window_from="model.inverse.chunk",
    )
    dynamics = Stage(
        "dynamics",
        lambda spec, parts: TokenDynamics(spec, c.dynamics),
        c.dynamics,
        training.dynamics,
        data="tokens",
        share=c.inverse.labelled,
    )
    tokenized = _tokenized(c, training, seen=c.observed(spec), tasks=tasks)
    made = *tokenized, transformer, *([states] if hidden else []), inverse, dynamics
    return (*made, *_frame_prior(c, training, "transformer")) if c.frame_prior.channels else made


def _on_base(
    config: VideoWorld.Config, training: StageTraining, spec: Spec
) -> tuple[Stage | Derived, ...]:
    """Return the stages that add a joint prior of frames to a trained, frozen VideoWorld."""
    c = config.on_base()
    seen = c.observed(spec)
    base = Stage.of_part(
        "base", config.base, lambda spec, parts: registry.build(config.base, seen), Training()
    )
    tokens = _token_store(c, seen, c.transformer.tasks, of_base=True)
    return base, tokens, *_frame_prior(c, training, "base")


def _frame_prior(
    c: VideoWorld.Config, training: StageTraining, of: str
) -> tuple[Stage | Derived, ...]:
    """Return the joint prior of frames, and the states that it reads: those of true codes.

    `of` is the stage of the transformer, or of a VideoWorld that has one.
    """

    def transformer(parts: Parts) -> VideoTransformer:
        found = parts[of]
        return found if isinstance(found, VideoTransformer) else found.transformer

    states = Derived(
        "frame_states",
        lambda spec, parts: with_states(spec, c.transformer),
        lambda episodes, parts: add_states(episodes, transformer(parts), generated=False),
        data="tokens",
        parts=(of,),
        rows=PLANS,
    )
    prior = Stage(
        "frame_prior",
        lambda spec, parts: FramePrior(spec, c.frame_prior),
        c.frame_prior,
        training.frame_prior,
        data="frame_states",
        share=c.inverse.labelled,
        window=FramePrior.window,
        window_from="model.frame_prior",
    )
    return states, prior


def _tokenized(
    c: VideoWorld.Config, training: StageTraining, *, seen: Spec, tasks: Sequence[str]
) -> tuple[Stage | Derived, ...]:
    """Return the stages of the tokenizer and the latent codes, and the tokens that they make."""
    tokenizer = Stage.of_part(
        "tokenizer",
        c.tokenizer,
        lambda spec, parts: registry.build(c.tokenizer, seen),
        training.tokenizer,
        config={"part": configs.to_values(c.tokenizer), "images": list(c.images)},
    )
    ldm = Stage(
        "ldm",
        lambda spec, parts: LDM(seen, c.ldm),
        c.ldm,
        training.ldm,
        window=c.ldm.span + 1,
        window_from="model.ldm.horizon",
        run=c.ldm_run,
    )
    return tokenizer, ldm, _token_store(c, seen, tasks)


def _token_store(
    c: VideoWorld.Config, seen: Spec, tasks: Sequence[str], *, of_base: bool = False
) -> Derived:
    """Return the store of tokens and codes, made by two stages or by a trained VideoWorld's."""

    def networks(parts: Parts) -> Parts:
        if not of_base:
            return parts
        return {name: getattr(parts["base"], name) for name in ("tokenizer", "ldm")}

    return Derived(
        "tokens",
        lambda spec, parts: token_spec(seen, *networks(parts).values()),
        lambda episodes, parts: [tokenised(e, networks(parts), c, tasks) for e in episodes],
        {"tasks": list(tasks), "language": c.language},
        parts=("base",) if of_base else ("tokenizer", "ldm"),
        codebooks={} if of_base else {TOKENS: "tokenizer", CODES: "ldm"},
    )


def task_names(labels: Sequence[Label], *, language: bool = False) -> tuple[str, ...]:
    """Return the tasks that labels name, sorted; with `language` their sentences."""
    found = {label.text if language else label.task for label in labels}
    return tuple(sorted(found - {""}))


def token_spec(spec: Spec, tokenizer: Tokenizer, ldm: LDM) -> Spec:
    """Return the spec of a store of tokens."""
    return replace(
        spec,
        observation={
            TOKENS: token_array(tokenizer),
            CODES: ArraySpec((ldm.config.horizon,), "int32", "what changes over the next frames"),
            TASK: ArraySpec((), "int32", "task id at the frame, 0 for none"),
        },
        privileged=(),
    )


def with_states(spec: Spec, c: VideoTransformer.Config) -> Spec:
    """Return the spec of a store of tokens that has the transformer's states as well."""
    states = ArraySpec((c.horizon + 1, c.width), "float16", "states after the frame and its codes")
    return replace(spec, observation={**spec.observation, HIDDEN: states})


@torch.no_grad()
def tokenised(
    episode: Episode, parts: Parts, c: VideoWorld.Config, tasks: Sequence[str]
) -> Episode:
    """Return an episode of tokens, codes and task ids, with the same actions and labels.

    Codes depend on later frames: after an episode's last frame, that frame repeats.
    """
    tokenizer, ldm = parts["tokenizer"], parts["ldm"]
    device = next(ldm.parameters()).device
    images = {k: torch.from_numpy(episode.observations[k]).to(device) for k in c.images}
    starts = range(0, len(episode) + 1, FRAMES)
    codes = [ldm.encode_video(images, rows=slice(start, start + FRAMES)) for start in starts]
    observations: dict[str, Array] = {
        TOKENS: tokens_of(episode, tokenizer),
        CODES: torch.cat(codes).int().cpu().numpy(),
        TASK: _task_ids(episode, tasks, language=c.language),
    }
    return replace(episode, observations=observations)


def _task_ids(episode: Episode, tasks: Sequence[str], *, language: bool) -> Array:
    """Return the task id (L + 1,) at each frame; if labels overlap, that of the later one."""
    id_of = {name: index for index, name in enumerate(tasks, start=1)}
    found = np.zeros(len(episode) + 1, np.int32)
    for label in sorted(episode.labels, key=lambda each: each.start):
        stop = len(found) if label.stop < 0 else label.stop + 1
        found[label.start : stop] = id_of.get(label.text if language else label.task, 0)
    return found


def add_states(
    episodes: Sequence[Episode], transformer: VideoTransformer, *, generated: bool = True
) -> list[Episode]:
    """Return episodes of tokens with the transformer's states.

    These are the states after each frame and its codes, given the frames of the context up to then:
    the likeliest codes if `generated`, else those of the store.
    """
    return [
        replace(episode, observations={**episode.observations, HIDDEN: found})
        for episode, found in zip(
            episodes, _states(episodes, transformer, generated=generated), strict=True
        )
    ]


@torch.no_grad()
def _states(
    episodes: Sequence[Episode], transformer: VideoTransformer, *, generated: bool
) -> list[Array]:
    """Return (L + 1, H + 1, width) float16 of each episode."""
    c, device = transformer.config, next(transformer.parameters()).device
    lengths = [len(episode) + 1 for episode in episodes]
    tokens, task, codes = (
        torch.from_numpy(np.concatenate([e.observations[key] for e in episodes])).long().to(device)
        for key in (TOKENS, TASK, CODES)
    )
    since = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))
    found = torch.empty(len(tokens), c.horizon + 1, c.width, dtype=torch.float16)
    for count in range(1, c.context + 1):  # frames in the context
        rows = (since.clamp(max=c.context - 1) == count - 1).nonzero()[:, 0]
        for first in range(0, len(rows), PLANS):
            some = rows[first : first + PLANS]
            context = tokens[some[:, None] + torch.arange(1 - count, 1)]
            if generated:
                states = transformer.generate(context, task[some]).hidden[:, 0]
            else:
                given = codes[some, : c.horizon]
                states = transformer.plan_states(context, given, task[some])
            found[some] = states.half().cpu()
    return np.split(found.numpy(), np.cumsum(lengths)[:-1])
