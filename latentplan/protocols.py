"""The seams: what an env, a model, an objective, a planner must offer, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from latentplan.types import (
    Array,
    Batch,
    Derived,
    Episode,
    Goal,
    Label,
    Loss,
    Observation,
    Parts,
    Plan,
    Spec,
    Stage,
    Tensors,
    Tokens,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Generator, Tensor


@runtime_checkable
class Env(Protocol):
    """A simulated task; numpy in and out. Also a `gymnasium.Env` (so `spec` is theirs).

    A failing simulator raises UnstablePhysics from `reset` or `step`; the caller drops the episode.
    """

    @property
    def data_spec(self) -> Spec:
        """What this env's observations and actions are."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; the same seed gives the same start, whatever ran before.

        Numbers in the info say what was drawn for the episode; collection stores them with it,
        and the texts `text` and `task`, if any, as the episode's label.
        """

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply an action (A,) and return a `types.Step`."""

    def snapshot(self) -> Any:
        """Return the whole simulator state; stepping on from it is bit-equal every time."""

    def restore(self, state: Any) -> Observation:
        """Go back to a `snapshot` of this env and return what is seen there."""

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the task's error in metres between two observations, from privileged keys."""

    def oracle(self, observation: Observation, goal: Observation) -> Array:
        """Return the action (A,) of a scripted expert that sees the privileged keys."""

    def close(self) -> None:
        """Free the simulator; the renderer of the process stays."""


class Explorer(Protocol):
    """Who chooses actions while collecting: `begin` before every episode, then `act`."""

    def begin(self, env: Env, rng: np.random.Generator) -> Observation | None:
        """Prepare for an episode and return its goal, None where it has none.

        `env` is reset to the start of the episode afterwards, so it may be used to draw the goal.
        """

    def act(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return an action (A,) inside the bounds."""


@runtime_checkable
class Policy(Protocol):
    """Choose actions: explorers, experts, controls, clones, MPC and generative policies."""

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode towards `goal`; what is drawn next depends on `seed` alone."""

    def act(self, observation: Observation) -> Array:
        """Return an action (A,) float32 inside the bounds."""


class Source(Protocol):
    """A data set in somebody else's format, read as episodes; made from (path, Config)."""

    spec: Spec
    settings: dict[str, Any]  # JSON values that the episodes depend on, all but where they lie

    def __len__(self) -> int:
        """Return the number of episodes there; opening the source has found and checked them."""

    def episode(self, index: int) -> Episode:
        """Return one episode, from its files alone: any process may read any episode.

        Raises SourceError that names the file where one is missing, damaged or odd.
        """


class EpisodeStore(Protocol):
    """Episodes on disk, appended whole or not at all."""

    spec: Spec

    def append(self, episode: Episode) -> None:
        """Write one episode; after a crash at any moment it is there whole or not at all."""

    def __len__(self) -> int:
        """Return the number of episodes."""

    def episode(self, index: int) -> Episode:
        """Return one episode."""


@runtime_checkable
class Learner(Protocol):
    """Anything that training fits (a `torch.nn.Module`): a model, a tokenizer, a reward.

    Its class has a dataclass `Config` and is built as `Class(spec, config)`.
    """

    spec: Spec  # the observations that it reads, none of them privileged
    window: int  # observations in a training window, at least
    targets: tuple[str, ...]  # privileged observations that its loss reads
    reads: tuple[str, ...]  # optional fields of Batch that its loss reads: rewards, task, segments

    def loss(self, batch: Batch) -> Loss:
        """Return the training loss of windows."""


@runtime_checkable
class Staged(Protocol):
    """A model class of several networks, each trained by itself; it declares how.

    Beside `Config` it has a dataclass `Training` with one `types.Training` for each stage that can
    be set, its defaults. `training/stages.py` executes the declaration.
    """

    @classmethod
    def stages(
        cls, config: Any, *, training: Any, spec: Spec, labels: Sequence[Label]
    ) -> Sequence[Stage | Derived]:
        """Return what to train and which stores to make, in this order.

        `spec` is the data's without what is privileged, with their tasks; `labels` are the
        different ones in the data. Raises ConfigError if the data do not fit.
        """

    @classmethod
    def assemble(cls, config: Any, *, spec: Spec, labels: Sequence[Label], parts: Parts) -> Any:
        """Return the model, an instance of this class, of its trained networks."""


@runtime_checkable
class Dynamics(Protocol):
    """A latent dynamics model (a `torch.nn.Module`): `f(z, a) -> z'` behind an encoder.

    It never scores: costs are Objectives. Its device is that of its weights.
    """

    spec: Spec
    latent_dim: int  # D
    context: int  # T, the past latents that `rollout` needs

    def encode(self, observations: Tensors) -> Tensor:
        """Return latents (B, T, D) of observations, each (B, T, ...); images are uint8."""

    def rollout(self, context: Tensor, actions: Tensor) -> Tensor:
        """Return latents (B, N, H, D) after each action, from (B, T, D) and (B, N, H, A)."""


class Objective(Protocol):
    """What a plan costs. It never rolls out; lower is better, always."""

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return cost (B, N) of latents (B, N, H, D) reached by actions (B, N, H, A)."""


class ActionSpace(Protocol):
    """Which actions make sense now, for each of B problems: what a planner may draw and return."""

    low: Tensor  # (A,)
    high: Tensor  # (A,)
    choices: Tensor | None  # (B, K, C): the rows that an action's first C numbers are one of
    valid: Tensor | None  # (B, K): which rows count; the others only fill up

    def sample(self, candidates: int, horizon: int, *, generator: Generator) -> Tensor:
        """Return (B, N, H, A) actions drawn over the whole space."""

    def project(self, actions: Tensor) -> Tensor:
        """Return the nearest allowed actions to (B, N, H, A); allowed ones come back unchanged."""


class Constraint(Protocol):
    """What imagined latents or actions must keep to."""

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return (B, N), from (B, N, H, D) and (B, N, H, A): positive where it is exceeded."""


class Proposal(Protocol):
    """A source of candidates that any planner can mix in: scripted, learned, remembered."""

    def sample(self, context: Tensor, count: int, *, horizon: int, generator: Generator) -> Tensor:
        """Return about `count` action sequences (B, n, H, A) for context (B, T, D)."""


@runtime_checkable
class Proposing(Protocol):
    """A model that knows by itself what to do about a task."""

    def proposal(self, task: str = "") -> Proposal:
        """Return its actions for a task, the likeliest first; ConfigError for an unknown one."""


@runtime_checkable
class Imagining(Protocol):
    """A model that knows by itself where a task leads."""

    def subgoal(self, task: str = "") -> Callable[[Tensor, int], Tensor]:
        """Return what gives the latent (B, D) that the task leads to from (B, T, D), in n steps.

        Raises ConfigError for an unknown task.
        """


@runtime_checkable
class Tokenizer(Protocol):
    """Observations as discrete tokens (a `torch.nn.Module`), and back.

    One that training fits is a Learner too. Its spec holds what it is to encode: a model that uses
    tokens gives it the cameras that it observes.
    """

    spec: Spec
    stride: int  # observations that are one token frame
    tokens: int  # K, of one token frame
    vocabulary: int  # ids are below it

    def encode(self, observations: Tensors) -> Tokens:
        """Return ids (B, T / stride, K) of observations, each (B, T, ...); images are uint8.

        Raises ShapeError unless T is a multiple of the stride.
        """

    def decode(self, tokens: Tokens) -> Tensors:
        """Return the cameras' images (B, T, h, w, 3) uint8 that tokens stand for."""


@runtime_checkable
class ScalarTokenizer(Tokenizer, Protocol):
    """A tokenizer whose ids are numbers: finite scalar quantization of square maps, one a camera.

    The ids of a frame are those of the cameras in a row, each row by row.
    """

    levels: tuple[int, ...]  # values of each number of a token; their product is the vocabulary


@runtime_checkable
class VideoModel(Protocol):
    """A model that gives videos a probability and samples them; often not a Dynamics.

    Frames are the cameras' images (B, T, h, w, 3) uint8, `actions` (B, T - 1, A) those between
    them, `task` (B,) int64 task ids. A model ignores what it is not conditioned on.
    """

    spec: Spec

    def log_prob(
        self, frames: Tensors, *, actions: Tensor | None = None, task: Tensor | None = None
    ) -> Tensor:
        """Return the log-probability (B, T) in nats of each frame, given those before it."""

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
        """Return the next `steps` frames (B, steps, h, w, 3) uint8 a camera.

        With actions there are T - 1 + steps of them. Temperature 0 takes the likeliest.
        """


@runtime_checkable
class Illustrated(Protocol):
    """A model that draws what it has learnt, for `latentplan show RUN`."""

    def illustrate(self, store: EpisodeStore, folder: Path) -> Iterator[tuple[Path, str]]:
        """Write images or videos of held-out episodes of `store` into `folder`.

        Yields each file with one line that says what it shows. Raises StoreError if the store
        lacks what the model observes.
        """


class Planner(Protocol):
    """A sampling or gradient optimiser of action sequences; stateless."""

    def plan(
        self,
        context: Tensor,
        dynamics: Dynamics,
        *,
        objective: Objective,
        space: ActionSpace,
        generator: Generator,
        warm_start: Tensor | None = None,
        proposals: Sequence[Proposal] = (),
        constraints: Sequence[Constraint] = (),
        deadline_ms: float | None = None,
    ) -> Plan:
        """Return the best plan for context (B, T, D).

        It starts from warm_start (B, H, A), or several (B, W, H, A) with the best first, and the
        proposals' candidates where there are any. Constraints go before cost: one who keeps them
        beats any who does not. With a deadline the best so far comes back in time. Raises
        ShapeError where shapes do not fit; PlanningError where no cost is finite, a part raises,
        or the deadline is shorter than one iteration.
        """


class Windows(Protocol):
    """An endless, seeded, resumable stream of training windows."""

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield batch number `start`, `start + 1`, ...; number i is the same in every process."""
