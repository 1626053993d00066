"""Protocols of envs, policies and evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from latentplan.types import Array, Goal, Observation, Spec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np


@runtime_checkable
class Env(Protocol):
    """A simulated task; a `Component` with numpy arrays in and out, and often a `gymnasium.Env`.

    A goal is an observation of the env, with privileged keys. `options={"goal": goal}` of `reset`
    starts an episode towards a goal. An env that draws its own goals returns the goal as
    `info["goal"]`. Evaluation draws goals from a `GoalSampler`, and otherwise from other resets.

    Success is `info["success"]` of the last step, or, for a `HasSuccessThreshold`, a distance
    within its `success_threshold`; an env with neither is evaluated by distances alone. In the info
    of a step, `distance` must equal `distance()` to the goal, and `refused` counts the actions so
    far that the env did not execute.

    Collection stores the numbers in the info of a reset with the episode, and its strings `text` (a
    sentence) and `task` (a name) as a label; these strings are also the instruction of planners. If
    the simulator diverges, `reset` or `step` raises UnstablePhysics, and the caller drops the
    episode. Any other error ends the command.

    Optional abilities: HasEpisodeLength, HasSuccessThreshold, GoalSampler, ExpertEnv, RenderedEnv,
    AdaptableEnv. `latentplan check env NAME` tests all of this.
    """

    @property
    def data_spec(self) -> Spec:
        """The observations and actions; its `env` is the registered name of the env.

        The attribute `spec` belongs to gymnasium.
        """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode and return its first observation and info.

        The start depends on seed and options, and not on earlier episodes.
        """

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Execute an action (A,) float32 and return a `types.Step`.

        Raises ShapeError if the action has a wrong shape, is out of bounds or is not finite.
        """

    def snapshot(self) -> Any:
        """Return the full simulator state, from which steps are bit-equal each time."""

    def restore(self, state: Any) -> Observation:
        """Return to a `snapshot` of this env and return its observation."""

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the error of the task between two observations in metres, 0 at the goal."""

    def oracle(self, observation: Observation, goal: Observation) -> Array:
        """Return the action (A,) of a scripted expert, which may read privileged keys.

        Raises ConfigError if the task has no expert.
        """

    def close(self) -> None:
        """Free the simulator, but not the renderer that the process shares."""


@runtime_checkable
class HasEpisodeLength(Protocol):
    """An env class whose tasks take a known number of actions."""

    episode_length: int  # default number of actions of a collected episode and of a trial


@runtime_checkable
class HasSuccessThreshold(Protocol):
    """An env whose task succeeds at a small distance to the goal."""

    success_threshold: float  # m, the largest `distance` that is a success


@runtime_checkable
class GoalSampler(Protocol):
    """An env that draws goals of its task."""

    def goal(self, *, seed: int) -> Observation:
        """Return the goal of a seed, without changing the episode."""


@runtime_checkable
class ExpertEnv(Protocol):
    """An env with a scripted expert for the task of the episode, which needs no goal."""

    def expert(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return the expert's action (A,) within the bounds; it may read privileged keys."""


@runtime_checkable
class CandidateExpert(Protocol):
    """An env whose oracle tries candidate actions in the simulator and takes the best."""

    def candidates(self, observation: Observation, goal: Observation) -> Iterator[Array]:
        """Yield these actions (A,), the one that is likeliest to be the best first."""


@runtime_checkable
class RenderedEnv(Protocol):
    """An env that renders an image for people to watch."""

    def render(self) -> Array:
        """Return an image (h, w, 3) uint8 of the scene."""


@runtime_checkable
class AdaptableEnv(Protocol):
    """An env class whose settings can be derived from the data of a model."""

    @staticmethod
    def settings_for(spec: Spec) -> dict[str, Any]:
        """Return the Config values with which actions and images match a model's `spec`."""


@runtime_checkable
class Policy(Protocol):
    """A policy of any kind: random actions, experts, baselines, clones, MPC, generative models.

    Optional abilities: EnvPolicy, PrivilegedPolicy, GoalChoosingPolicy, CostPredictor.
    """

    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode towards `goal`, whose random numbers depend on `seed` alone.

        The seed is an int, a numpy SeedSequence, or a numpy Generator to draw from.
        """

    def act(self, observation: Observation) -> Array:
        """Return an action (A,) float32 within the bounds."""


@runtime_checkable
class EnvPolicy(Protocol):
    """A policy that needs its env, for example to call the env's expert.

    Only such a policy receives all privileged observations.
    """

    def attach(self, env: Env) -> None:
        """Set the env before the first `reset`; ConfigError if the env lacks what is needed."""


@runtime_checkable
class PrivilegedPolicy(Protocol):
    """A policy that reads some privileged observations, as its model declares."""

    @property
    def privileged(self) -> tuple[str, ...]:
        """The keys of these observations; () for a policy of public observations alone."""


@runtime_checkable
class GoalChoosingPolicy(Protocol):
    """A policy that chooses a goal in a `reset` without one; the env is then reset to that goal."""

    @property
    def goal_chosen(self) -> Goal | None:
        """The chosen goal of the episode; None if there is none."""


@runtime_checkable
class CostPredictor(Protocol):
    """A policy that predicts the cost of actions, such as MPC."""

    def evaluate(self, observation: Observation, actions: Array) -> Any:
        """Return the predicted cost (K,) of each of the actions (K, A); lower is better."""


class Evaluation(Protocol):
    """A measurement of a policy in an env, by trials and their metrics; built from its Config."""

    def count(self, episodes: int | None) -> int:
        """Return the number of trials for `episodes`; None means the default number."""

    def trials(
        self, policy: Any, env: Env, *, episodes: int | None = None, seed: int = 0
    ) -> Iterator[Any]:
        """Yield trials as they finish; the same seed gives the same trials."""

    def figures(self, trial: Any) -> dict[str, str]:
        """Return the figures shown when a trial finishes, by name."""

    def metrics(self, trials: Sequence[Any], *, seed: int) -> Any:
        """Return the metrics of one or more trials: an object with `to_json()` and `table()`.

        Both have a policy without learning beside the evaluated one: random, noop or oracle.
        """

    def records(self, trials: Sequence[Any]) -> list[dict[str, Any]]:
        """Return JSON values of each trial, from which the metrics can be recomputed.

        Keys of measured times end in `_ms`.
        """


@runtime_checkable
class IllustratedEvaluation(Protocol):
    """An evaluation that also writes an HTML page and a video."""

    def report(
        self,
        trials: Sequence[Any],
        metrics: Any,
        *,
        title: str,
        config: str,
        provenance: Mapping[str, Any],
    ) -> str:
        """Return a self-contained HTML page; `config` is YAML."""

    def video(self, trials: Sequence[Any], file: Path) -> bool:
        """Write an mp4 of the trials; return False, and write nothing, if there are no images."""
