"""LWM: a world model of long streams of images, proprioception and actions.

Large World Model (Liu et al., arXiv 2402.08268) for robots: a frozen tokenizer makes every image a
few tokens, and one transformer is trained on the stream of all steps of an episode, in packed rows
whose context grows from stage to stage, with a larger rotary base for longer ones (section 3.1).
Differs: there is no text, which a task's embedding replaces; proprioception and actions are
vectors; and the tokens of a step are predicted at once from the block of the step before (the
`causal_block_size` of the authors' ring attention), not one after the other, so that a plan of H
actions takes H passes of the transformer, whatever the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan import config as configs
from latentplan import registry
from latentplan.errors import ConfigError, ShapeError, check_range
from latentplan.models.frame_tokens import (
    TOKENS,
    check_stride,
    ordered,
    token_array,
    tokens_of,
)
from latentplan.models.lwm.stream import PROPRIOCEPTION, Prepared, Stream
from latentplan.nn import images
from latentplan.protocols import ScalarTokenizer
from latentplan.shapes import check
from latentplan.types import (
    Array,
    ArraySpec,
    Context,
    Derived,
    Episode,
    Label,
    Part,
    Parts,
    Spec,
    Stage,
    Tensors,
    Tokens,
    Training,
)


class LWM(nn.Module):
    """A `protocols.Dynamics`: tokenizer, then a transformer over the stream of all steps.

    A latent (D = K d + P) is the d numbers of each of the K tokens of an image, and the P numbers
    of proprioception, scaled. A plan is made from the last `context` of them.
    """

    @dataclass(frozen=True)
    class Config:
        """The two networks, what they observe, and the curriculum."""

        images: tuple[str, ...] = ()  # observation keys of the cameras; () for all images
        proprioception: tuple[str, ...] = ()  # keys of vectors that a step has; () for all vectors
        tokenizer: Part = Part("tokenizer", "vqvae")  # whose tokens are the stream's
        contexts: tuple[int, ...] = (8, 16)  # steps of a row, one stage of training each
        thetas: tuple[float, ...] = (1e4, 1e5)  # base of the rotary frequencies in each stage
        efforts: tuple[float, ...] = (1.0, 0.5)  # training steps of each, of training.transformer's
        horizon: int = 4  # steps of the longest context that are left for a plan
        transformer: Stream.Config = Stream.Config()  # of the stream

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            counts = {len(self.contexts), len(self.thetas), len(self.efforts)}
            if len(counts) > 1 or not self.contexts:
                raise ConfigError(
                    f"LWM.contexts: found {len(self.contexts)} contexts, {len(self.thetas)} thetas "
                    f"and {len(self.efforts)} efforts, need one of each for every stage"
                )
            if list(self.contexts) != sorted({*self.contexts}):
                raise ConfigError(f"LWM.contexts: found {self.contexts}, need growing numbers")
            check_range("LWM.contexts", self.contexts[0], 3)
            check_range("LWM.horizon", self.horizon, 1, self.contexts[-1] - 1)
            for theta, effort in zip(self.thetas, self.efforts, strict=True):
                check_range("LWM.thetas", theta, 1.0)
                check_range("LWM.efforts", effort, 0.001)

    @dataclass(frozen=True)
    class Training:
        """How each network is trained; `batch` rows of the longest context, more of shorter."""

        tokenizer: Training = field(default=Training(steps=3000, batch=32))
        transformer: Training = field(
            default=Training(steps=4000, batch=8, clip=1.0, weight_decay=0.01)
        )

    def __init__(
        self,
        spec: Spec,
        config: Config | None = None,
        *,
        tokenizer: Any = None,
        transformer: Stream | None = None,
    ) -> None:
        """Put the networks together, or build those that are not given.

        Raises ConfigError if they do not fit the data or each other.
        """
        super().__init__()
        c = self.config = ordered(config or self.Config(), tokenizer)
        self.spec = observed(spec, c)
        self.cameras = images.keys("LWM.images", c.images, spec)
        self.vectors = vectors(spec, c)
        self.tokenizer = tokenizer or _tokenizer(spec, c)
        self.transformer = transformer or _stream(
            stream_spec(spec, self.tokenizer, c), self.tokenizer, c, stage=len(c.contexts) - 1
        )
        known, given = self.transformer.config.vocabulary, self.tokenizer.vocabulary
        if (known, self.transformer.tokens) != (given, self.tokenizer.tokens):
            raise ConfigError(
                f"LWM.transformer: was trained on {self.transformer.tokens} tokens of {known}, the "
                f"tokenizer has {self.tokenizer.tokens} of {given}; take the one that it was "
                "trained with"
            )
        self.context = c.contexts[-1] - c.horizon
        self.code = self.transformer.codes.shape[1]  # d
        self.latent_dim = self.tokenizer.tokens * self.code + self.transformer.numbers
        low, high = (torch.tensor(each) for each in (spec.action.low, spec.action.high))
        self.rest: Tensor  # (A,) the action before an episode
        self.register_buffer("rest", torch.zeros(len(low)).clamp(low, high), persistent=False)

    @classmethod
    def stages(
        cls, config: Config, *, training: LWM.Training, spec: Spec, labels: Sequence[Label]
    ) -> Sequence[Stage | Derived]:
        """Return the tokenizer, the store of streams, and the transformer at each context."""
        if config.transformer.tasks and not spec.tasks:
            raise ConfigError(
                "model.transformer.tasks: found true, the data's labels name no task; set it to "
                "false"
            )
        tokenizer = Stage.of_part(
            "tokenizer",
            config.tokenizer,
            lambda spec, parts: _tokenizer(spec, config),
            training.tokenizer,
            config={"part": configs.to_values(config.tokenizer), "images": list(config.images)},
        )
        keys = vectors(spec, config)
        streams = Derived(
            "streams",
            lambda spec, parts: stream_spec(spec, parts["tokenizer"], config),
            lambda episodes, parts: streams_of(episodes, parts["tokenizer"], keys),
            {"proprioception": list(keys)},
            parts=("tokenizer",),
            codebooks={TOKENS: "tokenizer"},
        )
        return [tokenizer, streams, *_curriculum(config, training.transformer)]

    @classmethod
    def assemble(
        cls, config: Config, *, spec: Spec, labels: Sequence[Label], parts: Parts
    ) -> LWM:
        """Return the model of its trained networks."""
        return cls(spec, config, tokenizer=parts["tokenizer"], transformer=parts["transformer"])

    def encode(self, observations: Tensors) -> Tensor:
        """Return the latents (B, T, D) of observations, each (B, T, ...); images are uint8."""
        tokens = self.tokenizer.encode({key: observations[key] for key in self.cameras})
        ids = used_ids(tokens, vocabulary=self.tokenizer.vocabulary)
        numbers = self.transformer.codes[ids].flatten(2)  # b t (k d)
        if not self.vectors:
            return numbers
        seen = joined({key: observations[key] for key in self.vectors}, self.spec)
        return torch.cat([numbers, self.transformer.scaling(seen)], dim=-1)

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """Return the cameras' images (B, T, h, w, 3) uint8 of latents (B, T, D)."""
        ids, _ = self._split(latents)
        unused = ids == self.tokenizer.vocabulary
        tokens = Tokens(ids.masked_fill(unused, 0), ~unused if self._masked(ids) else None)
        decoded: dict[str, Tensor] = self.tokenizer.decode(tokens)
        return decoded

    def prepare(self, context: Context) -> Prepared:
        """Return the key-value cache of the history, which all candidates of a solve share.

        Copies of the first observation with which a history begins that is shorter than the context
        are not attended to. Raises ShapeError for a history longer than `context`.
        """
        z = context.latents
        check("LWM.prepare.context", z, "B T D", D=self.latent_dim)
        if z.shape[1] > self.context:
            raise ShapeError(
                f"LWM.prepare.context: found {z.shape[1]} latents, need at most {self.context}: "
                f"contexts[-1]={self.config.contexts[-1]} less horizon={self.config.horizon}; "
                "train with a longer context"
            )
        ids, proprio = self._split(z)
        still = (z[:, 1:] == z[:, :-1]).all(-1) & (context.actions == self.rest).all(-1)
        hidden = F.pad(still.long().cumprod(1), (0, 1)).bool()  # b t; the last is never hidden
        return self.transformer.prepare(
            ids, proprio, context.actions, task=context.task, hidden=hidden
        )

    def rollout(self, prepared: Prepared, actions: Tensor) -> Tensor:
        """Return (B, N, H, D) after each of the actions (B, N, H, A): expected numbers of tokens.

        Raises ShapeError for more than `horizon` actions.
        """
        size, b = self.spec.action.size, len(prepared.last)
        check("LWM.rollout.actions", actions, "B N H A", B=b, A=size)
        if actions.shape[2] > self.config.horizon:
            raise ShapeError(
                f"LWM.rollout.actions: found {actions.shape[2]} actions, need at most "
                f"horizon={self.config.horizon}; plan fewer, or train with a larger model.horizon"
            )
        after = [
            torch.cat([(each.tokens @ self.transformer.codes).flatten(1), each.proprioception], 1)
            for each in self.transformer.rollout(prepared, actions)
        ]
        return rearrange(torch.stack(after, dim=1), "(b n) h d -> b n h d", b=b)

    def _split(self, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the nearest tokens (B, T, K) and proprioception (B, T, P) of latents (B, T, D)."""
        count = self.tokenizer.tokens * self.code
        numbers = rearrange(latents[..., :count], "b t (k d) -> b t k d", d=self.code)
        ids = torch.cdist(numbers, self.transformer.codes).argmin(-1)
        return ids, latents[..., count:] if self.vectors else None

    def _masked(self, ids: Tensor) -> bool:
        """Return whether some tokens are not in use."""
        return bool((ids == self.tokenizer.vocabulary).any())


def observed(spec: Spec, config: LWM.Config) -> Spec:
    """Return the spec of what the model observes; ConfigError if the data do not have it."""
    keys = {*images.keys("LWM.images", config.images, spec), *vectors(spec, config)}
    keys |= {spec.pick.image} if spec.pick else set()  # picks are planned in it
    seen = {key: array for key, array in spec.observation.items() if key in keys}
    return replace(spec, observation=seen, privileged=())


def vectors(spec: Spec, config: LWM.Config) -> tuple[str, ...]:
    """Return the keys of proprioception, sorted if all vectors are; ConfigError for another."""
    found = {
        key
        for key, array in spec.observation.items()
        if key not in spec.privileged and len(array.shape) <= 1 and 0 not in array.shape
    }
    for key in config.proprioception:
        if key not in found:
            known = ", ".join(sorted(found)) or "none"
            raise ConfigError(f"LWM.proprioception: no vector {key!r}; the data have: {known}")
    return config.proprioception or tuple(sorted(found))


def joined(observations: Tensors, spec: Spec) -> Tensor:
    """Return vectors (B, T, P) of all `observations`, each (B, T, n) or (B, T) as in `spec`."""
    rows = []
    for key, x in observations.items():
        shape = spec.observation[key].shape
        if x.ndim != 2 + len(shape) or tuple(x.shape[2:]) != shape:
            wanted = ", ".join(("B", "T", *map(str, shape)))
            raise ShapeError(f"LWM.encode[{key!r}]: found shape {tuple(x.shape)}, need ({wanted})")
        rows.append(x.float().flatten(2) if shape else x.float()[..., None])
    return torch.cat(rows, dim=-1)


def used_ids(tokens: Tokens, *, vocabulary: int) -> Tensor:
    """Return the ids (B, T, K) of encoded images; tokens not in use have the id `vocabulary`."""
    ids = tokens.ids
    return ids if tokens.mask is None else ids.masked_fill(~tokens.mask, vocabulary)


def stream_spec(spec: Spec, tokenizer: Any, config: LWM.Config) -> Spec:
    """Return the spec of a store of streams; ConfigError for a tokenizer of several frames."""
    check_stride("LWM.tokenizer", tokenizer, config.tokenizer.name)
    found = {TOKENS: token_array(tokenizer)}
    keys = vectors(spec, config)
    if keys:
        size = sum(int(np.prod(spec.observation[key].shape)) for key in keys)
        found[PROPRIOCEPTION] = ArraySpec((size,), "float32", ", ".join(keys))
    return replace(spec, observation=found, privileged=(), pick=None, planar=None)


def streams_of(
    episodes: Sequence[Episode], tokenizer: Any, keys: Sequence[str]
) -> Iterable[Episode]:
    """Yield for each episode its stream, with the same actions and labels; `keys` are vectors."""
    ids = partial(used_ids, vocabulary=tokenizer.vocabulary)
    for episode in episodes:
        stream: dict[str, Array] = {TOKENS: tokens_of(episode, tokenizer, ids=ids)}
        if keys:
            rows = [episode.observations[key].reshape(len(episode) + 1, -1) for key in keys]
            stream[PROPRIOCEPTION] = np.concatenate(rows, axis=1).astype(np.float32)
        yield replace(episode, observations=stream)


def _curriculum(config: LWM.Config, training: Training) -> list[Stage]:
    """Return a stage for each context, which begins with the weights of the one before.

    As many steps of an episode make a batch in each (LWM: 4M tokens, table 11).
    """
    found: list[Stage] = []
    longest = config.contexts[-1]
    for stage, (context, effort) in enumerate(zip(config.contexts, config.efforts, strict=True)):
        before = found[-1].name if found else ""
        found.append(
            Stage(
                "transformer" if context == longest else f"transformer_{context}",
                partial(_build_stream, config=config, stage=stage, before=before),
                {"transformer": configs.to_values(config.transformer), "context": context}
                | {"theta": config.thetas[stage]},
                replace(
                    training,
                    window=context,
                    steps=max(1, round(effort * training.steps)),
                    batch=training.batch * longest // context,
                ),
                data="streams",
                parts=("tokenizer", *([before] if before else [])),
            )
        )
    return found


def _build_stream(
    spec: Spec, parts: Parts, *, config: LWM.Config, stage: int, before: str
) -> Stream:
    start = parts[before] if before else None
    return _stream(spec, parts["tokenizer"], config, stage=stage, start=start)


def _stream(
    spec: Spec, tokenizer: Any, config: LWM.Config, *, stage: int, start: Stream | None = None
) -> Stream:
    """Return the transformer of a stage for a store of streams."""
    levels = tokenizer.levels if isinstance(tokenizer, ScalarTokenizer) else ()
    chosen = replace(
        config.transformer,
        vocabulary=tokenizer.vocabulary,
        levels=tuple(levels),
        context=config.contexts[stage],
        theta=config.thetas[stage],
    )
    return Stream(spec, chosen, start=start)


def _tokenizer(spec: Spec, config: LWM.Config) -> Any:
    """Return an untrained tokenizer of the cameras."""
    keys = images.keys("LWM.images", config.images, spec)
    seen = {key: spec.observation[key] for key in keys}
    return registry.build(config.tokenizer, replace(spec, observation=seen, privileged=()))
