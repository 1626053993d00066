"""Checks of every objective: one cost per candidate, for the current goal.

They use the latents of a linear model, one start, and a goal with an observation and a text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latentplan.conformance import data
from latentplan.conformance.linear import STATE, Linear, spec
from latentplan.conformance.suite import NotApplicable, Subject, refuses, require
from latentplan.errors import LatentplanError, ShapeError
from latentplan.protocols import GoalChecker, Objective, ObjectiveFactory
from latentplan.types import Context, Goal

CANDIDATES, HORIZON = 5, 4
TEXT = "do the task"


def check_cost(subject: Subject) -> None:
    """Check that there is one finite cost per candidate."""
    case = Case()
    cost = case.objective(built(subject))(case.latents, case.actions)
    shape, need = tuple(cost.shape), (1, CANDIDATES)
    require(shape == need, f"cost has shape {shape}, need {need}")
    require(cost.is_floating_point(), f"cost is {cost.dtype}")
    require(bool(cost.isfinite().all()), "cost is not finite")


def check_latents(subject: Subject) -> None:
    """Check that candidates with different latents have different costs."""
    case = Case()
    cost = case.objective(built(subject))(case.latents, case.actions)
    spread = (cost - cost[:, :1]).abs().amax(1)
    require(bool((spread > 0).all()), f"all candidates cost {cost[0, 0].item():.4g}")


def check_rows(subject: Subject) -> None:
    """Check that the cost of a candidate does not depend on the other candidates."""
    case = Case()
    factory = built(subject)
    whole = case.objective(factory)(case.latents, case.actions)
    part = case.objective(factory)(case.latents[:, 1:3], case.actions[:, 1:3])
    _close(part, whole[:, 1:3], "some candidates, alone and among all")


def check_twice(subject: Subject) -> None:
    """Check that repeated calls return the same cost and do not change their arguments."""
    case = Case()
    latents, actions = case.latents.clone(), case.actions.clone()
    objective = case.objective(built(subject))
    first = objective(latents, actions)
    kept = torch.equal(latents, case.latents) and torch.equal(actions, case.actions)
    require(kept, "a call changes latents or actions")
    _close(objective(latents, actions), first, "between two calls")


def check_goal(subject: Subject) -> None:
    """Check that the cost depends on the current goal and not on earlier ones."""
    case, other = Case(), Case(seed=5)
    factory = built(subject)
    first = case.objective(factory)(case.latents, case.actions)
    second = factory(other.goal, case.context(), case.model)(case.latents, case.actions)
    fresh = built(subject)(other.goal, case.context(), case.model)(case.latents, case.actions)
    _close(second, fresh, "a second goal, and the same goal with a new objective")
    back = case.objective(factory)(case.latents, case.actions)
    _close(back, first, "the first goal, before and after a second")


def check_checked_goals(subject: Subject) -> None:
    """Check that check() refuses exactly the goals that cannot be used."""
    case = Case()
    if not isinstance(built(subject), GoalChecker):
        raise NotApplicable("has no check()")
    for where, goal in (
        ("with an observation and a text", case.goal),
        ("without any part", Goal()),
        ("with a text alone", Goal(text=TEXT)),
        ("with an observation of a wrong shape", Goal({STATE: torch.zeros(9).numpy()})),
    ):
        late = _refused(lambda goal=goal: case.use(built(subject), goal))
        early = _refused(lambda goal=goal: case.check(built(subject), goal))
        found = f"a goal {where}: check {_outcome(early)}, its use {_outcome(late)}"
        require(early is late, found)


def check_wrong_shapes(subject: Subject) -> None:
    """Check that latents of a wrong shape raise ShapeError."""
    case = Case()
    objective = case.objective(built(subject))
    for where, latents in (
        ("a latent of too few numbers", case.latents[..., :-1]),
        ("latents of two starts", case.latents.expand(2, -1, -1, -1)),
        ("latents without a horizon", case.latents[:, :, 0]),
    ):
        refuses(where, ShapeError, lambda latents=latents: objective(latents, case.actions))  # type: ignore[misc]


class Case:
    """A goal, a start, and the latents of random candidates."""

    def __init__(self, *, seed: int = 0) -> None:
        """Draw the start, the candidates and the goal."""
        self.model = Linear(spec()).requires_grad_(False)
        drawn = data.observations(self.model.spec, 2, 1, seed=seed)[STATE]
        self.goal = Goal({STATE: drawn[0, 0].numpy()}, TEXT)
        self.start = drawn[1:]
        self.actions = data.actions(self.model.spec, 1, CANDIDATES, HORIZON, seed=seed)
        self.latents: Tensor = self.model.rollout(self.model.prepare(self.context()), self.actions)

    def context(self) -> Context:
        """Return the context of the start."""
        return Context(self.start, self.start.new_zeros(1, 0, self.model.spec.action.size))

    def objective(self, factory: ObjectiveFactory) -> Objective:
        """Return the objective of the goal."""
        return factory(self.goal, self.context(), self.model)

    def check(self, factory: Any, goal: Goal) -> None:
        """Call the factory's check of a goal."""
        factory.check(goal, self.model)

    def use(self, factory: ObjectiveFactory, goal: Goal) -> Tensor:
        """Return the cost of the candidates for a goal."""
        return factory(goal, self.context(), self.model)(self.latents, self.actions)


def built(subject: Subject) -> ObjectiveFactory:
    """Return a new objective factory."""
    factory: ObjectiveFactory = subject.build()
    return factory


def _refused(called: Any) -> type[LatentplanError] | None:
    try:
        called()
    except LatentplanError as e:
        return type(e)
    return None


def _outcome(error: type[LatentplanError] | None) -> str:
    return "accepts it" if error is None else f"raises {error.__name__}"


def _close(found: Tensor, wanted: Tensor, where: str) -> None:
    close = found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)
    require(close, f"costs differ between {where}")
