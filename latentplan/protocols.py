"""The seams: what an env, a model, an objective, a planner must offer, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from latentplan.types import (
    Array,
    Batch,
    Context,
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
class Component(Protocol):
    """What a registered name stands for: a class, or a function that has a `Config`.

    It is called with its Config last: an env or a planner as `cls(config)`, a model, tokenizer or
    policy as `cls(spec, config)` with the Spec of the data or env, an objective as `cls(config)`,
    a source as `cls(path, config)`. An env says nothing about its Spec before it is built.
    """

    Config: type[Any]  # a frozen dataclass; each field has a default and a comment, ranges checked


@runtime_checkable
class Configured(Protocol):
    """A network that is built already; a checkpoint saves its config."""

    config: Any  # the dataclass it was built from


@runtime_checkable
class Env(Protocol):
    """A simulated task, a `Component`; numpy in and out. It may be a `gymnasium.Env` as well.

    A goal is an observation of the env, privileged keys included. `options={"goal": goal}` of
    `reset` starts an episode towards it; an env that draws goals of its own returns the one that it
    drew as `info["goal"]`. Evaluation takes goals from a `GoalSampler`, else from other resets.

    Success is `info["success"]` of the last step, else a distance within the `success_threshold`
    of a `HasSuccessThreshold`; an env with neither is evaluated by its distances alone. Where a
    step's info holds `distance`, it is that of `distance` to the goal, and `refused` is the number
    of actions so far that the env did not execute.

    Collection stores the numbers of a reset's info with the episode, and its strings `text` (a
    sentence) and `task` (a name) as the episode's label; they are also the instruction that a
    planner is given. A simulator that diverges raises UnstablePhysics from `reset` or `step`; the
    caller drops the episode. Any other error ends the command.

    Optional abilities: HasEpisodeLength, HasSuccessThreshold, GoalSampler, ExpertEnv, RenderedEnv,
    AdaptableEnv. `latentplan check env NAME` tests all of this.
    """

    @property
    def data_spec(self) -> Spec:
        """Observations and actions of this env; `env` in it is the name that it is registered by.

        (`spec` belongs to gymnasium.)
        """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode and return its first observation and info, see the class.

        The same seed and options give the same start, whatever ran before.
        """

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Execute an action (A,) float32 and return a `types.Step`.

        Raises ShapeError for an action of another shape, out of its bounds or not finite.
        """

    def snapshot(self) -> Any:
        """Return the whole simulator state; steps from it are bit-equal every time."""

    def restore(self, state: Any) -> Observation:
        """Return to a `snapshot` of this env and return the observation there."""

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the error of the task in metres between two observations, 0 at the goal."""

    def oracle(self, observation: Observation, goal: Observation) -> Array:
        """Return the action (A,) of a scripted expert, which may read the privileged keys.

        Raises ConfigError if there is no expert for the task.
        """

    def close(self) -> None:
        """Free the simulator; the renderer of the process stays."""


@runtime_checkable
class HasEpisodeLength(Protocol):
    """An env class whose tasks take a known number of actions."""

    episode_length: int  # actions of a collected episode and of a trial, unless the user says so


@runtime_checkable
class HasSuccessThreshold(Protocol):
    """An env in which a task is done at a small enough distance to its goal."""

    success_threshold: float  # m, the largest `distance` that is a success


@runtime_checkable
class GoalSampler(Protocol):
    """An env that draws goals of its task."""

    def goal(self, *, seed: int) -> Observation:
        """Return a goal; the same seed gives the same one, and the episode stays as it is."""


@runtime_checkable
class ExpertEnv(Protocol):
    """An env with a scripted expert for the task of the episode, which needs no goal."""

    def expert(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return the expert's action (A,) inside the bounds; it may read privileged keys."""


@runtime_checkable
class RenderedEnv(Protocol):
    """An env with a camera to watch it by."""

    def render(self) -> Array:
        """Return an image (h, w, 3) uint8 of the scene."""


@runtime_checkable
class AdaptableEnv(Protocol):
    """An env class whose settings follow from the data that a model was trained on."""

    @staticmethod
    def settings_for(spec: Spec) -> dict[str, Any]:
        """Return the Config values that make actions and images those of a model's `spec`."""


@runtime_checkable
class Policy(Protocol):
    """What chooses actions: random ones, experts, baselines, clones, MPC, generative policies.

    Optional abilities: EnvPolicy, GoalChoosingPolicy, CostPredictor.
    """

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode towards `goal`; what is drawn in it depends on `seed` alone.

        The seed is an int, a numpy SeedSequence, or a numpy Generator to draw from.
        """

    def act(self, observation: Observation) -> Array:
        """Return an action (A,) float32 inside the bounds."""


@runtime_checkable
class EnvPolicy(Protocol):
    """A policy that needs the env it acts in, such as for the env's scripted expert.

    It alone is given privileged observations.
    """

    def attach(self, env: Env) -> None:
        """Take the env, before the first `reset`; ConfigError if it lacks what is needed."""


@runtime_checkable
class GoalChoosingPolicy(Protocol):
    """A policy that chooses a goal itself in a `reset` without one; the episode then has it too."""

    @property
    def goal_chosen(self) -> Goal | None:
        """The goal of the episode, None for none."""


@runtime_checkable
class CostPredictor(Protocol):
    """A policy that predicts what actions cost towards its goal, such as one that plans."""

    def evaluate(self, observation: Observation, actions: Array) -> Any:
        """Return the predicted cost (K,) of each single action (K, A); low is good."""


class Source(Protocol):
    """A data set in another format, read as episodes; a `Component`."""

    spec: Spec
    settings: dict[str, Any]  # JSON values that the episodes depend on, without the path

    def __len__(self) -> int:
        """Return the number of episodes, which were found and checked when the source was made."""

    def episode(self, index: int) -> Episode:
        """Return one episode, from its files alone: any process may read any episode.

        Raises SourceError that names a file that is missing, damaged or unexpected.
        """


@runtime_checkable
class SelectiveSource(Protocol):
    """A Source that can skip observations when it reads."""

    def choose(self, keys: Sequence[str]) -> None:
        """Read these observations alone from now on; `spec` then has no others."""


@runtime_checkable
class AnnotatedSource(Protocol):
    """A Source that reports what it leaves out."""

    notes: Sequence[str]  # one line each


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
    config: Any  # the Config that it was built from
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
    context: int  # T, the past latents that a plan starts from

    def encode(self, observations: Tensors) -> Tensor:
        """Return latents (B, T, D) of observations, each (B, T, ...); images are uint8."""

    def prepare(self, context: Context) -> Any:
        """Return what all rollouts of one solve share, such as a recurrent state or a cache.

        A planner calls it once a solve and passes the result to every `rollout`, which must not
        change it. Where a solve is captured as a CUDA graph, `prepare` is part of the capture.
        """

    def rollout(self, prepared: Any, actions: Tensor) -> Tensor:
        """Return latents (B, N, H, D) after each of the actions (B, N, H, A)."""


@runtime_checkable
class EquivariantEncoder(Protocol):
    """A Dynamics whose encoder may see an image turned, if actions are turned with it."""

    views: int  # how many turns `encode` puts side by side in a latent
    elements: int  # G, how many there are

    def encode_views(self, observations: Tensors) -> Tensor:
        """Return latents (B, T, G, d) of observations (B, T, ...) seen under every turn."""

    def turn_actions(self, actions: Tensor, elements: Tensor) -> Tensor:
        """Return actions (B, ..., A), row i turned by element `elements[i]`, (B,) int64."""


class Objective(Protocol):
    """What a plan costs. It never rolls out; lower is better, always."""

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return cost (B, N) of latents (B, N, H, D) reached by actions (B, N, H, A)."""


class ObjectiveFactory(Protocol):
    """What a registered objective is: built from its Config, it makes an Objective for each plan.

    A plain function of this signature is one too.
    """

    def __call__(self, goal: Goal, context: Context, model: Dynamics) -> Objective:
        """Return the objective of a goal from a context, in the latents of `model`.

        A planner calls it before each solve, with the same Goal object until the goal changes.
        """


@runtime_checkable
class GoalChecker(Protocol):
    """An ObjectiveFactory that refuses a goal as soon as it is set."""

    def check(self, goal: Goal, model: Dynamics) -> None:
        """Raise ConfigError or ShapeError unless the objective can be made of the goal."""


@runtime_checkable
class EnsembleDynamics(Protocol):
    """A Dynamics of several members whose latents stand side by side."""

    members: Sequence[Dynamics]

    def split(self, latents: Tensor) -> Sequence[Tensor]:
        """Return each member's latents (..., d) of latents (..., M d)."""


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

    def sample(
        self, context: Context, count: int, *, horizon: int, generator: Generator
    ) -> Tensor:
        """Return about `count` action sequences (B, n, H, A) for B contexts."""


@runtime_checkable
class StepProposal(Proposal, Protocol):
    """A Proposal that can be asked again along a plan, from the latents that a model predicts."""

    def extend(self, context: Context, count: int, *, generator: Generator) -> Tensor:
        """Return about `count` next actions (B, n, A) for B contexts."""


@runtime_checkable
class ActionProposer(Protocol):
    """A model that generates actions towards a goal."""

    def proposal(self, goal: Goal) -> Proposal:
        """Return a proposal for the goal, the likeliest actions first.

        Raises ConfigError for a goal that the model cannot use, such as a task that it was not
        trained on.
        """


@runtime_checkable
class SubgoalModel(Protocol):
    """A model that predicts where a task leads."""

    def subgoal(self, task: str = "") -> Callable[[Context, int], Tensor]:
        """Return a function (context, steps) -> latents (B, D) that a task leads to in `steps`.

        Raises ConfigError for a task that the model was not trained on.
        """


@runtime_checkable
class Tokenizer(Protocol):
    """Observations as discrete tokens (a `torch.nn.Module`), and back.

    One that training fits is a Learner too. Its spec holds what it is to encode: a model that uses
    tokens gives it the cameras that it observes.
    """

    spec: Spec
    config: Any  # the Config that it was built from
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
    stride: int  # frames that have one probability together; T is a multiple of it in log_prob

    def log_prob(
        self, frames: Tensors, *, actions: Tensor | None = None, task: Tensor | None = None
    ) -> Tensor:
        """Return the log-probability (B, T) in nats of each frame, given those before it.

        With a stride above 1 the last frame of each group has it, the others 0.
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


@runtime_checkable
class DefaultPolicy(Protocol):
    """A model that is used with another policy than `mpc` unless the user asks for one."""

    default_policy: str  # registry name


@runtime_checkable
class DefaultPlanner(Protocol):
    """A model that `mpc` plans with by another planner than `cem` unless the user asks for one."""

    default_planner: str  # registry name or preset


@runtime_checkable
class LanguageConfig(Protocol):
    """A model's Config that says whether its tasks are sentences; else they are names."""

    language: bool


class Planner(Protocol):
    """A sampling or gradient optimiser of action sequences; stateless."""

    @property
    def horizon(self) -> int:
        """H, the number of actions of a plan."""

    def plan(
        self,
        context: Context,
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
        """Return the best plan for each of the B contexts.

        It starts from warm_start (B, H, A), or several (B, W, H, A) with the best first, and the
        proposals' candidates where there are any. Constraints go before cost: one who keeps them
        beats any who does not. With a deadline the best so far comes back in time. Raises
        ShapeError where shapes do not fit; PlanningError where no cost is finite, a part raises,
        or the deadline is shorter than one iteration.
        """


class Evaluation(Protocol):
    """A measurement of a policy in an env: trials, and their figures. Made from its Config."""

    def count(self, episodes: int | None) -> int:
        """Return the number of trials; None asks for the default number."""

    def trials(
        self, policy: Any, env: Env, *, episodes: int | None = None, seed: int = 0
    ) -> Iterator[Any]:
        """Yield trials, each as soon as it is done; the same seed gives the same ones."""

    def figures(self, trial: Any) -> dict[str, str]:
        """Return what is shown of a trial as soon as it is done."""

    def metrics(self, trials: Sequence[Any], *, seed: int) -> Any:
        """Return the figures of at least one trial: an object with `to_json()` and `table()`."""

    def records(self, trials: Sequence[Any]) -> list[dict[str, Any]]:
        """Return JSON values of each trial, which the figures can be checked with."""


@runtime_checkable
class IllustratedEvaluation(Protocol):
    """An evaluation that also writes a page and a video."""

    def report(
        self,
        trials: Sequence[Any],
        metrics: Any,
        *,
        title: str,
        config: str,
        provenance: Mapping[str, Any],
    ) -> str:
        """Return an HTML page with everything in it; `config` is YAML."""

    def video(self, trials: Sequence[Any], file: Path) -> bool:
        """Write an mp4 of the trials; return False, and write nothing, if there are no images."""


class Windows(Protocol):
    """An endless, seeded, resumable stream of training windows."""

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield batch number `start`, `start + 1`, ...; number i is the same in every process."""
