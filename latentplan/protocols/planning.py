"""Protocols of planning: planners, objectives, action spaces, constraints and proposals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from latentplan.protocols.learning import Dynamics
from latentplan.types import Context, Goal, Plan

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Objective(Protocol):
    """The cost of candidates, lower is better; it never rolls out a model."""

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return the cost (B, N) of latents (B, N, H, D) reached by actions (B, N, H, A)."""


class ObjectiveFactory(Protocol):
    """A registered objective, built from its Config, which makes an Objective for each plan.

    A function with this signature is one, too.
    """

    def __call__(self, goal: Goal, context: Context, model: Dynamics) -> Objective:
        """Return the objective of a goal from a context, in the latents of `model`.

        A planner calls it before each solve, with the same Goal object until the goal changes.
        """


@runtime_checkable
class GoalChecker(Protocol):
    """An ObjectiveFactory that refuses a goal when it is set."""

    def check(self, goal: Goal, model: Dynamics) -> None:
        """Raise ConfigError or ShapeError unless the factory can make an objective of the goal."""


class ActionSpace(Protocol):
    """The actions that are possible now, for each of B problems."""

    low: Tensor  # (A,)
    high: Tensor  # (A,)
    choices: Tensor | None  # (B, K, C) allowed values of an action's first C numbers
    valid: Tensor | None  # (B, K) bool, False for rows that are padding

    def sample(self, candidates: int, horizon: int, *, generator: Generator) -> Tensor:
        """Return random actions (B, N, H, A) that cover the whole space."""

    def project(self, actions: Tensor) -> Tensor:
        """Return the nearest allowed actions to (B, N, H, A); allowed ones do not change."""


class Constraint(Protocol):
    """A limit on predicted latents or actions."""

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return the excess (B, N) of (B, N, H, D) and (B, N, H, A), positive if violated."""


class Proposal(Protocol):
    """A source of candidates for any planner: scripted, learned or retrieved."""

    def sample(self, context: Context, count: int, *, horizon: int, generator: Generator) -> Tensor:
        """Return about `count` action sequences (B, n, H, A) for B contexts."""


@runtime_checkable
class StepProposal(Proposal, Protocol):
    """A proposal that also extends a plan, from the latents that a model predicts along it."""

    def extend(self, context: Context, count: int, *, generator: Generator) -> Tensor:
        """Return about `count` next actions (B, n, A) for B contexts."""


@runtime_checkable
class ActionProposer(Protocol):
    """A model that generates actions towards a goal."""

    def proposal(self, goal: Goal) -> Proposal:
        """Return a proposal for the goal, whose first sample is the most likely sequence.

        Raises ConfigError for a goal that the model cannot use, such as a task that it was not
        trained on.
        """


@runtime_checkable
class SubgoalModel(Protocol):
    """A model that predicts the latents to which a task leads."""

    def subgoal(self, task: str = "") -> Callable[[Context, int], Tensor]:
        """Return a function (context, steps) -> latents (B, D) after `steps` of the task.

        Raises ConfigError for a task that the model was not trained on.
        """


@runtime_checkable
class TextSpace(Protocol):
    """A space of vectors for latents and texts: a model that has one, or a reader of its latents.

    The nearer a latent is to a text (by the cosine), the better it satisfies the text.
    """

    def describe(self, latents: Tensor) -> Tensor:
        """Return the vectors (..., E) of latents (..., D); ShapeError for another D."""

    def text_vector(self, text: str) -> Tensor:
        """Return the vector (E,) of a text; ConfigError for one that has no meaning here."""


class Planner(Protocol):
    """A stateless optimiser of action sequences, by sampling or gradients."""

    @property
    def horizon(self) -> int:
        """The number of actions of a plan, H."""

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

        The first candidates include the warm start (B, H, A), or several (B, W, H, A) with the best
        first, and the samples of proposals. Constraints come before cost: a feasible candidate is
        better than any infeasible one. With a deadline, the best plan so far is returned in time.
        Raises ShapeError if shapes do not match, and PlanningError if no cost is finite, a
        component raises, or the deadline is shorter than one iteration.
        """
