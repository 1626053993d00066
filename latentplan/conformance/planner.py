"""Checks of every planner: bounds, seeds, batches, finiteness, constraints and errors.

They use a linear model and the settings of the subject. The distance to the optimum depends on the
budget; `tests/contract` and the benchmarks measure it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latentplan.conformance.data import seeded
from latentplan.conformance.linear import Linear, spec
from latentplan.conformance.suite import Broken, NotApplicable, Subject, refuses, require
from latentplan.errors import PlanningError, ShapeError
from latentplan.objectives.goal import GoalDistance, LatentDistance
from latentplan.planning.spaces import Box, Choices
from latentplan.protocols import ActionSpace, Constraint, Objective, Planner
from latentplan.types import Context, Plan

PROBLEMS, STATES = 3, 4
DOUBLE = torch.float64  # a batch and its rows then break ties in the same way
RATE, RATES = 0.25, 8  # rate limit, and number of cases
ROUNDING = 1e-12  # tolerance of a cost
ROUNDS = 4  # largest number of iterations compared


class Problem:
    """A batch of planning problems: reach a goal from a start with a linear model."""

    def __init__(
        self, planner: Planner, *, actions: int = 2, seed: int = 0, problems: int = PROBLEMS
    ) -> None:
        """Draw starts and goals."""
        self.planner, self.horizon, self.actions = planner, planner.horizon, actions
        self.model = Linear(spec(STATES, actions), dtype=DOUBLE)
        draw = seeded(seed)
        self.start = torch.randn(problems, 1, STATES, generator=draw, dtype=DOUBLE)
        self.goal = torch.randn(problems, STATES, generator=draw, dtype=DOUBLE)
        self.high = torch.ones(actions, dtype=DOUBLE)
        self.low = -self.high

    def context(self, rows: slice = slice(None)) -> Context:
        """Return the context of some of the starts."""
        start = self.start[rows]
        return Context(start, start.new_zeros(len(start), 0, self.actions))

    def distance(self, rows: slice = slice(None)) -> LatentDistance:
        """Return the distance to some of the goals as objective."""
        return LatentDistance(self.goal[rows], GoalDistance.Config(power=2, reduce="mean"))

    def box(self, problems: int | None = None) -> Box:
        """Return the whole box of actions."""
        count = len(self.start) if problems is None else problems
        return Box(self.low, self.high, problems=count)

    def random(self, count: int = 1, *, seed: int = 1, scale: float = 1.0) -> Tensor:
        """Return normal actions (B, count, H, A) with std `scale`."""
        size = (len(self.start), count, self.horizon, self.actions)
        return scale * torch.randn(size, generator=seeded(seed), dtype=DOUBLE)

    def plan(
        self,
        *,
        rows: slice = slice(None),
        context: Context | None = None,
        objective: Objective | None = None,
        space: ActionSpace | None = None,
        warm_start: Tensor | None = None,
        constraints: Sequence[Constraint] = (),
        seed: int = 0,
    ) -> Plan:
        """Plan from some of the starts, by default towards their goals.

        Raises Broken if the shapes of the plan are wrong.
        """
        context = context or self.context(rows)
        problems = len(context.latents)
        found = self.planner.plan(
            context,
            self.model,
            objective=objective or self.distance(rows),
            space=space or self.box(problems),
            generator=seeded(seed),
            warm_start=warm_start,
            constraints=constraints,
        )
        shape, need = tuple(found.actions.shape), (problems, self.horizon, self.actions)
        require(shape == need, f"actions have shape {shape}, need {need}")
        shape = tuple(found.cost.shape)
        require(shape == (problems,), f"cost has shape {shape}, need ({problems},)")
        return found

    @torch.no_grad()
    def predicted(self, plan: Plan) -> Tensor:
        """Return the latents (B, 1, H, D) predicted for a plan."""
        return self.model.rollout(self.model.prepare(self.context()), plan.actions[:, None])


def check_bounds(subject: Subject) -> None:
    """Check that actions are within their bounds for any warm start."""
    problem = Problem(subject.build())
    for warm_start in (None, problem.random(scale=10)[:, 0], problem.random(3, scale=10)):
        plan = problem.plan(warm_start=warm_start)
        _inside(plan, problem.box())


def check_cost(subject: Subject) -> None:
    """Check that the cost of a plan is the objective of its actions."""
    problem = Problem(subject.build())
    plan = problem.plan()
    cost = problem.distance()(problem.predicted(plan), plan.actions[:, None])[:, 0]
    _close(plan.cost, cost, "the cost of the plan and the objective of its actions")


def check_rates(subject: Subject) -> None:
    """Check that actions and elites keep rate limits exactly."""
    planner = subject.build()
    for case in range(RATES):
        problem = Problem(planner, seed=case)
        previous = problem.goal[:, : problem.actions].clamp(-1, 1)
        rate = torch.full_like(problem.high, RATE)
        size = len(previous)
        space = Box(problem.low, problem.high, problems=size, rate=rate, previous=previous)
        plan = problem.plan(space=space, warm_start=problem.random(scale=5, seed=case), seed=case)
        _inside(plan, space)
        for actions in _sequences(plan):
            change = torch.cat([previous[:, None], actions], dim=1).diff(dim=1).abs()
            found = f"a change of {change.max():.17g} exceeds {RATE}"
            require(bool((change <= RATE).all()), found)


def check_choices(subject: Subject) -> None:
    """Check that actions in a space of choices are among the choices."""
    problem = Problem(subject.build(), actions=4, problems=2)
    points = [torch.rand(k, 2, generator=seeded(k), dtype=DOUBLE) * 2 - 1 for k in (1, 30)]
    space = Choices(problem.low, problem.high, choices=points)
    plan = problem.plan(space=space, warm_start=problem.random())
    for actions, allowed in zip(plan.actions, points, strict=True):
        known = (actions[:, None, :2] == allowed).all(-1).any(-1)
        found = f"{actions[0, :2].tolist()} is none of the {len(allowed)} points"
        require(bool(known.all()), found)
    _inside(plan, problem.box())


def check_seeds(subject: Subject) -> None:
    """Check that a plan depends on its generator and not on earlier plans."""
    problem = Problem(subject.build())
    plan = problem.plan(seed=3)
    torch.rand(1), problem.plan(seed=4)
    again = problem.plan(seed=3)
    require(torch.equal(plan.actions, again.actions), "actions differ the second time")
    require(torch.equal(plan.cost, again.cost), "the cost differs the second time")


def check_rows(subject: Subject) -> None:
    """Check that a plan does not depend on the other problems of its batch."""
    problem = Problem(subject.build())
    warm_start = problem.random()[:, 0]
    whole = problem.plan(warm_start=warm_start)
    for row in range(PROBLEMS):
        rows = slice(row, row + 1)
        alone = problem.plan(rows=rows, warm_start=warm_start[rows])
        where = f"of problem {row}, alone and in the batch"
        _close(alone.actions[0], whole.actions[row], f"actions {where}")
        _close(alone.cost[0], whole.cost[row], f"costs {where}")
    problem = Problem(problem.planner, actions=4, problems=2)
    points = [torch.rand(k, 2, generator=seeded(k), dtype=DOUBLE) for k in (3, 40)]
    both = problem.plan(space=Choices(problem.low, problem.high, choices=points))
    for row in range(2):
        rows = slice(row, row + 1)
        alone = problem.plan(
            rows=rows, space=Choices(problem.low, problem.high, choices=points[rows])
        )
        _close(alone.actions[0], both.actions[row], f"choices of problem {row}, alone and not")


def check_iterations(subject: Subject) -> None:
    """Check that more iterations never raise the cost."""
    if not hasattr(subject.config, "iterations"):
        raise NotApplicable("Config has no iterations")
    costs = []
    for count in range(1, ROUNDS + 1):
        settings = replace(subject.config, iterations=count)
        problem = Problem(replace(subject, config=settings).build())
        costs.append(problem.plan().cost)
    for count, (fewer, more) in enumerate(zip(costs, costs[1:], strict=False), start=1):
        worse = (more - fewer).max().item()
        found = f"the cost rises by {worse:.3g} from {count} iterations to {count + 1}"
        require(worse <= ROUNDING, found)


def check_warm_start(subject: Subject) -> None:
    """Check that a plan costs no more than its warm start."""
    problem = Problem(subject.build())
    found = problem.plan()
    for seed in range(1, 4):
        again = problem.plan(warm_start=found.actions, seed=seed)
        worse = (again.cost - found.cost).max().item()
        require(worse <= ROUNDING, f"it costs {worse:.3g} more")


def check_constraints(subject: Subject) -> None:
    """Check that a feasible plan is preferred to an infeasible one of a lower cost."""
    problem = Problem(subject.build())
    problem.start = torch.zeros_like(problem.start)  # an equilibrium: zero actions stay there
    problem.goal[:, 0] = 1.0

    def wall(latents: Tensor, actions: Tensor) -> Tensor:
        return latents[..., 0].amax(-1)  # positive beyond 0, between start and goal

    rest = torch.zeros_like(problem.random()[:, 0])
    free = problem.plan(warm_start=rest)
    beyond = wall(problem.predicted(free), free.actions[:, None])
    require(bool((beyond > 0).any()), "without the constraint, no plan crosses the wall either")
    plan = problem.plan(warm_start=rest, constraints=[wall])
    reported = plan.violation
    if reported is None:
        raise Broken("violation is None though there is a constraint")
    missed = wall(problem.predicted(plan), plan.actions[:, None])[:, 0].relu()
    found = f"the violation is {missed.max():.3g}, that of zero actions is 0"
    require(bool((missed == 0).all()), found)
    require(torch.allclose(reported, missed), f"violation is {reported.tolist()}")


def check_constant_cost(subject: Subject) -> None:
    """Check that a constant objective gives finite actions of that cost."""
    problem = Problem(subject.build())
    for cost in (0.0, 3.5):
        plan = problem.plan(objective=lambda z, a, cost=cost: torch.full(z.shape[:2], cost))
        where = f"with constant cost {cost}"
        require(bool(plan.actions.isfinite().all()), f"{where}, actions are not finite")
        require(bool((plan.cost == cost).all()), f"{where}, the cost is {plan.cost.tolist()}")


def check_broken_cost(subject: Subject) -> None:
    """Check that a cost that is not finite is never chosen, and raises PlanningError if all are."""
    problem = Problem(subject.build())
    distance = problem.distance()
    for broken in (torch.nan, torch.inf, -torch.inf):

        def half(latents: Tensor, actions: Tensor, broken: float = broken) -> Tensor:
            cost = distance(latents, actions)
            return torch.where(actions[:, :, 0, 0] > 0, broken, cost)

        plan = problem.plan(objective=half)
        require(bool(plan.cost.isfinite().all()), f"the cost is {plan.cost}")
        allowed = bool((plan.actions[:, 0, 0] <= 0).all())
        require(allowed, f"an action of cost {broken} is chosen")

        def second(latents: Tensor, actions: Tensor, broken: float = broken) -> Tensor:
            cost = distance(latents, actions).clone()
            cost[1] = broken
            return cost

        where = f"a problem where every cost is {broken}"
        refuses(where, PlanningError, lambda second=second: problem.plan(objective=second))  # type: ignore[misc]


def check_wrong_shapes(subject: Subject) -> None:
    """Check that a wrong shape of context, warm start, space or cost raises ShapeError."""
    problem = Problem(subject.build(), problems=2)
    h, a = problem.horizon, problem.actions
    for shape in [(2, h + 1, a), (1, h, a), (2, h, a + 1), (2, a)]:
        _refuses(f"a warm start {shape}", problem, warm_start=torch.zeros(shape))
    for shape in [(2, 1, STATES + 1), (2, 2, STATES), (2, STATES)]:
        context = Context(torch.zeros(shape), torch.zeros(2, 0, a))
        _refuses(f"latents {shape}", problem, context=context)
    _refuses("a space of another number of problems", problem, space=problem.box(3))
    _refuses("a cost (B,)", problem, objective=lambda latents, actions: latents.sum((1, 2, 3)))


def _refuses(where: str, problem: Problem, **parts: Any) -> None:
    refuses(where, ShapeError, lambda: problem.plan(**parts))


def _sequences(plan: Plan) -> list[Tensor]:
    elites = [] if plan.elites is None else list(plan.elites.unbind(1))
    return [plan.actions, *elites]


def _inside(plan: Plan, space: ActionSpace) -> None:
    for actions in _sequences(plan):
        inside = bool(((actions >= space.low) & (actions <= space.high)).all())
        require(inside, f"actions from {actions.min():.6g} to {actions.max():.6g}")


def _close(found: Tensor, wanted: Tensor, where: str) -> None:
    close = torch.allclose(found, wanted, rtol=1e-7, atol=1e-7)
    require(close, f"a difference of {(found - wanted).abs().max():.3g} between {where}")
