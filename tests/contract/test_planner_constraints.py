"""Constraints go before cost in every planner, and whatever a part does wrong is named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_problem import (
    DOUBLE,
    HalfSpace,
    Scripted,
    at,
    build,
    every_planner,
    imagined,
    objective,
    problem,
    seeded,
    solve,
)

from latentplan.errors import PlanningError, ShapeError
from latentplan.planning.problem import Scored
from latentplan.planning.spaces import Box

NORMAL = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=DOUBLE)


def excess(plan, model, context, constraint):
    with torch.no_grad():
        latents = imagined(model, context, plan.actions[:, None])
    return constraint(latents, plan.actions[:, None])[:, 0].relu()


def given_problem(name, **rest):
    model, context, goal, (low, high) = problem(3)
    planner = build(name, candidates=128, horizon=3, iterations=8)
    space = Box(low, high, problems=3)
    return model, context, lambda **r: solve(planner, model, context, goal, space, **rest, **r)


@every_planner
def test_a_feasible_plan_is_found_if_there_is_one(name):
    model, _, goal, (low, high) = problem(3)
    context = torch.zeros(3, 1, 4, dtype=DOUBLE)  # to stay there keeps any wall that is not behind
    planner = build(name, candidates=128, horizon=3, iterations=8, hold=False)
    space = Box(low, high, problems=3)
    wall = HalfSpace(NORMAL, 0.05)
    free = solve(planner, model, context, goal, space)
    walled = solve(planner, model, context, goal, space, constraints=[wall])
    assert free.violation is None and (excess(free, model, context, wall) > 0).any()
    assert (walled.violation == 0).all() and (excess(walled, model, context, wall) == 0).all()


@every_planner
def test_a_constraint_that_never_binds_changes_nothing(name):
    _, _, plan = given_problem(name)
    free, far = plan(), plan(constraints=[HalfSpace(NORMAL, 1e6)])
    assert torch.equal(free.actions, far.actions) and torch.equal(free.cost, far.cost)
    assert (far.violation == 0).all()


@every_planner
def test_without_a_feasible_plan_the_least_violation_is_sent_and_reported(name):
    model, context, plan = given_problem(name)
    wall = HalfSpace(NORMAL, -50.0)
    found = plan(constraints=[wall])
    assert (found.violation > 0).all()
    torch.testing.assert_close(found.violation, excess(found, model, context, wall))
    # All that counts is how far the first latent goes down: the box's corner is the optimum.
    sample = Box(torch.full((2,), -1.0), torch.full((2,), 1.0), problems=3)
    tried = sample.sample(2000, 3, generator=seeded(9)).double()
    with torch.no_grad():
        missed = wall(imagined(model, context, tried), tried)
    assert (found.violation <= missed.quantile(0.05, dim=1)).all()


@every_planner
def test_a_start_beyond_the_wall_comes_back_and_still_heads_for_the_goal(name):
    model, context, goal, (low, high) = problem(1)
    model.A.data = torch.eye(4, dtype=DOUBLE)  # the wall can be reached from where it starts
    context = torch.zeros_like(context)
    first = float(model.B.detach()[0].abs().sum())  # how far one step takes the first latent
    wall = HalfSpace(-NORMAL, -1.5 * first)  # two steps off: the first latent is always outside
    planner = build(name, candidates=256, horizon=3, iterations=20)
    plan = solve(planner, model, context, goal, Box(low, high), constraints=[wall])
    assert plan.violation == pytest.approx(0.5 * first, rel=0.15)  # of the best first step
    assert plan.cost.isfinite().all()


@every_planner
def test_several_constraints_add_up(name):
    model, context, plan = given_problem(name)
    walls = [HalfSpace(NORMAL, -20.0), HalfSpace(-NORMAL, -30.0)]
    found = plan(constraints=walls)
    both = sum(excess(found, model, context, wall) for wall in walls)
    torch.testing.assert_close(found.violation, both)


@every_planner
def test_a_violation_that_is_not_a_number_never_wins(name):
    _, _, plan = given_problem(name)

    def half(latents, actions):
        return torch.where(actions[:, :, 0, 0] > 0, torch.nan, -1.0)

    found = plan(constraints=[half])
    assert (found.violation == 0).all() and (found.actions[:, 0, 0] <= 0).all()

    def never(latents, actions):
        return torch.full(actions.shape[:2], torch.nan)

    with pytest.raises(PlanningError, match="no candidate has a finite violation in 3 of 3"):
        plan(constraints=[never])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 8))
def test_rank_is_feasibility_first_then_cost(seed, count):
    draw = seeded(seed)
    cost = torch.randn(2, 12, generator=draw)
    cost[torch.rand(2, 12, generator=draw) < 0.2] = torch.inf
    cost[:, 0] = 0.0
    violation = torch.rand(2, 12, generator=draw).mul(4).floor()  # ties among them
    violation[torch.rand(2, 12, generator=draw) < 0.1] = torch.inf
    violation[:, 0] = 3.0
    index = torch.arange(12.0).view(1, 12, 1, 1).expand(2, 12, 1, 1)
    best = Scored(index, cost, violation).best(count)
    for row in range(2):
        finite = [n for n in range(12) if cost[row, n].isfinite() and violation[row, n].isfinite()]
        wanted = sorted(finite, key=lambda n: (float(violation[row, n]), float(cost[row, n])))
        wanted = (wanted + [wanted[0]] * count)[:count]  # the best stands in for those missing
        assert best.actions[row].flatten().tolist() == wanted


class Raises:
    """Any part, which raises whatever is asked of it."""

    def __call__(self, *given):
        raise ZeroDivisionError("by nought")

    def sample(self, *given, **named):
        raise ZeroDivisionError("by nought")


@every_planner
def test_a_part_that_raises_is_named_and_the_cause_kept(name):
    model, context, goal, (low, high) = problem(2)
    planner, space = build(name, candidates=16), Box(low, high, problems=2)
    aim = objective(goal)

    def caught(message, cost=None, **rest):
        with pytest.raises(PlanningError, match=f"^{message} raised ZeroDivisionError: by") as e:
            rest["objective"] = cost or aim
            planner.plan(at(context), model, space=space, generator=seeded(), **rest)
        assert isinstance(e.value.__cause__, ZeroDivisionError)

    caught("Raises", cost=Raises())
    caught("Raises", constraints=[Raises()])
    caught("Raises.sample", proposals=[Raises()])

    def thrower(latents, actions):
        raise ZeroDivisionError("by nought")

    caught("thrower", cost=thrower)
    model.rollout = Raises()
    caught("ToyModel.rollout")


@every_planner
def test_what_a_part_returns_must_have_the_right_shape(name):
    model, context, goal, (low, high) = problem(2)
    planner, space = build(name, candidates=16, horizon=2), Box(low, high, problems=2)
    with pytest.raises(ShapeError, match=r"Constraint: found shape \(2, \d+, 2\), need \(B=2, N="):
        solve(planner, model, context, goal, space, constraints=[lambda z, a: z[..., 0]])
    for shape in [(2, 3, 2, 3), (1, 3, 2, 2), (2, 3, 5, 2), (2, 2, 2)]:
        with pytest.raises(ShapeError, match="Proposal.sample: found shape"):
            proposal = Scripted(torch.zeros(shape))
            solve(planner, model, context, goal, space, proposals=[proposal])
    model.rollout = lambda context, actions: torch.zeros(2, 1, 1, 4)
    with pytest.raises(ShapeError, match=r"Dynamics.rollout: found shape \(2, 1, 1, 4\)"):
        solve(planner, model, context, goal, space)
