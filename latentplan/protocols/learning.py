"""Protocols of learning: models, tokenizers, and the training that they declare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from latentplan.protocols.data import EpisodeStore
from latentplan.types import (
    Batch,
    Context,
    Derived,
    Label,
    Loss,
    Moments,
    Parts,
    Spec,
    Stage,
    Tensors,
    Tokens,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Generator, Tensor


@runtime_checkable
class Learner(Protocol):
    """A `torch.nn.Module` that training fits, such as a model, a tokenizer or a reward.

    Its class has a dataclass `Config` and is built as `Class(spec, config)`.
    """

    spec: Spec  # observations that it reads, none privileged unless a PrivilegedModel
    config: Any  # the Config that it was built from
    window: int  # least number of observations in a training window
    targets: tuple[str, ...]  # privileged observations that its loss reads
    reads: tuple[str, ...]  # optional fields of Batch that its loss reads: rewards, task, segments

    def loss(self, batch: Batch) -> Loss:
        """Return the training loss of a batch of windows."""


@runtime_checkable
class Normalised(Protocol):
    """A Learner that scales its inputs by statistics of the training episodes.

    The scaling is saved with its weights.
    """

    @property
    def scaled(self) -> tuple[str, ...]:
        """Observations whose statistics it needs, beside those of the actions."""

    def fit_statistics(self, actions: Moments, observations: Mapping[str, Moments]) -> None:
        """Set the scaling; called once, before the first step of training."""


@runtime_checkable
class TextPretrained(Protocol):
    """A Learner with a part that is trained on text before its own first step.

    What it learned is saved with its weights, so that a resumed training does not repeat it.
    """

    def pretrain(self, texts: Sequence[str]) -> None:
        """Train that part on the texts of the data's labels, which may be none."""


@runtime_checkable
class PackedLearner(Protocol):
    """A Learner whose training windows are packed: each is filled with several short episodes.

    It reads `segments`, which tell them apart. Episodes shorter than a window are trained on, too.
    """

    packed: bool  # True


@runtime_checkable
class FittedConfig(Protocol):
    """A Config of a Learner with fields that are derived from the data."""

    def fitted(self, spec: Spec) -> Any:
        """Return the Config with these fields filled in, as the run stores it.

        Raises ConfigError if the data do not fit; nothing is written before.
        """


@runtime_checkable
class Upgradable(Protocol):
    """A network class that reads checkpoints of earlier versions, with other names."""

    @classmethod
    def upgraded(
        cls, config: Mapping[str, Any], spec: Spec
    ) -> tuple[Mapping[str, Any], Spec]:
        """Return the config values and the spec of a checkpoint as they are stated today."""


@runtime_checkable
class UpgradableWeights(Protocol):
    """A module, of a network or inside it, that reads weights of earlier versions."""

    def upgraded_weights(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the module's weights by their names of today, which some have already."""


@runtime_checkable
class Staged(Protocol):
    """A model class of several networks that declares how each is trained.

    Besides `Config` it has a dataclass `Training`, whose fields are the default `types.Training` of
    each configurable stage. `training/stages.py` executes the declaration.
    """

    @classmethod
    def stages(
        cls, config: Any, *, training: Any, spec: Spec, labels: Sequence[Label]
    ) -> Sequence[Stage | Derived]:
        """Return the networks to train and the stores to make, in this order.

        `spec` is that of the data with their tasks and without privileged keys; `labels` are the
        distinct labels of the data. Raises ConfigError if the data do not fit.
        """

    @classmethod
    def assemble(cls, config: Any, *, spec: Spec, labels: Sequence[Label], parts: Parts) -> Any:
        """Return the model, an instance of this class, with its trained networks `parts`."""


@runtime_checkable
class Dynamics(Protocol):
    """A latent dynamics model (a `torch.nn.Module`): an encoder and a transition f(z, a) -> z'.

    It computes no costs, which are Objectives. Its device is that of its weights.
    """

    spec: Spec
    latent_dim: int  # D
    context: int  # T, number of latents in a context

    def encode(self, observations: Tensors) -> Tensor:
        """Return the latents (B, T, D) of observations, each (B, T, ...); images are uint8."""

    def prepare(self, context: Context) -> Any:
        """Return state that all rollouts of a solve share, such as a recurrent state or a cache.

        A planner calls it once per solve and passes the result to every `rollout`, which must not
        change it. If a solve is captured as a CUDA graph, `prepare` is part of the capture.
        """

    def rollout(self, prepared: Any, actions: Tensor) -> Tensor:
        """Return the latents (B, N, H, D) after each of the actions (B, N, H, A)."""


@runtime_checkable
class ElasticDynamics(Dynamics, Protocol):
    """A Dynamics that can predict the first tokens of each frame alone, in less time."""

    tokens: int  # most tokens of a frame, of one camera

    def prepare_prefix(self, context: Context, tokens: int) -> Any:
        """Return state as `prepare` does, of which rollouts predict the first `tokens` of a frame.

        Latents keep their size; later tokens stay those of the context. Raises ConfigError if there
        are fewer tokens.
        """


@runtime_checkable
class FrameStacking(Protocol):
    """A Dynamics whose latents are of several observations in a row, such as for velocities.

    `encode` repeats the first observation before the start of what it is given.
    """

    @property
    def frames(self) -> int:
        """The number of observations, the newest among them, that a latent is of."""


@runtime_checkable
class EnsembleDynamics(Protocol):
    """A Dynamics of several members, whose latents are concatenated."""

    members: Sequence[Dynamics]

    def split(self, latents: Tensor) -> Sequence[Tensor]:
        """Split latents (..., M d) into the latents (..., d) of each member."""


@runtime_checkable
class Tokenizer(Protocol):
    """A `torch.nn.Module` that encodes observations as discrete tokens and decodes them.

    A trained tokenizer is a Learner, too. Its spec holds the observations to encode: a model that
    uses tokens builds it for the cameras that the model observes.
    """

    spec: Spec
    config: Any  # the Config that it was built from
    stride: int  # observations per token frame
    tokens: int  # K, tokens per token frame
    vocabulary: int  # number of ids

    def encode(self, observations: Tensors) -> Tokens:
        """Return the ids (B, T / stride, K) of observations, each (B, T, ...); images are uint8.

        Raises ShapeError unless T is a multiple of the stride.
        """

    def decode(self, tokens: Tokens) -> Tensors:
        """Return the images (B, T, h, w, 3) uint8 of each camera, decoded from tokens."""


@runtime_checkable
class ScalarTokenizer(Tokenizer, Protocol):
    """A tokenizer by finite scalar quantization (FSQ) of one square feature map per camera.

    The ids of a frame are those of the first camera, row by row, then of the next.
    """

    levels: tuple[int, ...]  # FSQ levels per dimension; their product is the vocabulary


@runtime_checkable
class VideoModel(Protocol):
    """A probability model of videos, which need not be a Dynamics.

    Frames are images (B, T, h, w, 3) uint8 by camera, `actions` (B, T - 1, A) are the actions
    between them, and `task` (B,) are int64 task ids. A model ignores what it is not conditioned on.
    """

    spec: Spec
    stride: int  # frames with a joint probability; T of log_prob is a multiple of it

    def log_prob(
        self, frames: Tensors, *, actions: Tensor | None = None, task: Tensor | None = None
    ) -> Tensor:
        """Return the log-probability (B, T) in nats of each frame, given those before it.

        With a stride above 1, the last frame of each group has that of the group, the others 0.
        """

    def sample(
        self,
        frames: Tensors,
        steps: int,
        *,
        actions: Tensor | None = None,
        task: Tensor | None = None,
        temperature: float = 1.0,
        generator: Generator | None = None,
    ) -> Tensors:
        """Return the next `steps` frames (B, steps, h, w, 3) uint8 of each camera.

        `actions`, if given, are T - 1 + steps. Temperature 0 selects the most likely tokens.
        """


@runtime_checkable
class DecodableDynamics(Dynamics, Protocol):
    """A Dynamics whose latents can be decoded to images."""

    def decode(self, latents: Tensor) -> Tensors:
        """Return the images (B, T, h, w, 3) uint8 of each camera, of latents (B, T, D)."""


@runtime_checkable
class TokenModel(Protocol):
    """A model of the tokens that its tokenizer makes of images."""

    tokenizer: Tokenizer


@runtime_checkable
class Illustrated(Protocol):
    """A model with images or videos of its predictions, for `latentplan show RUN`."""

    def illustrate(self, store: EpisodeStore, folder: Path) -> Iterator[tuple[Path, str]]:
        """Write images or videos of held-out episodes of `store` into `folder`.

        Yields each file with a description of one line. Raises StoreError if the store lacks
        observations of the model.
        """


@runtime_checkable
class DefaultPolicy(Protocol):
    """A model whose default policy is not `mpc`."""

    default_policy: str  # registry name


@runtime_checkable
class DefaultPlanner(Protocol):
    """A model whose default planner is not `cem`."""

    default_planner: str  # registry name or preset


@runtime_checkable
class EquivariantEncoder(Protocol):
    """A Dynamics that is equivariant to a group, such as the turns and flips of a square.

    A view is the latent of an observation turned by one element of the group. Each view of a
    transition, with the action turned by the same element, is a transition as well.
    """

    elements: int  # G, of the group
    views: int  # views that `encode` concatenates: those of the first elements

    def encode_views(self, observations: Tensors) -> Tensor:
        """Return all views (B, T, G, d) of observations (B, T, ...)."""

    def turn_actions(self, actions: Tensor, elements: Tensor) -> Tensor:
        """Return actions (B, ..., A), row i turned by element `elements[i]`, (B,) int64."""


@runtime_checkable
class PrivilegedModel(Protocol):
    """A model class that reads simulator state: a bound to compare with, of no use without it.

    Its spec has these observations and lists them in `Spec.privileged`, which a checkpoint keeps
    and all results of `latentplan.evaluate` state. No other model is given privileged observations.
    """

    privileged: tuple[str, ...]  # observation keys that it reads even if they are privileged


@runtime_checkable
class SymmetricDynamics(Protocol):
    """A Dynamics of which several latents describe one state, such as points in either order."""

    def equivalents(self, latents: Tensor) -> Tensor:
        """Return the latents (S, ..., D) that describe the same states as latents (..., D)."""


@runtime_checkable
class LanguageConfig(Protocol):
    """A model's Config that selects whether its tasks are sentences or names."""

    language: bool  # True for sentences
