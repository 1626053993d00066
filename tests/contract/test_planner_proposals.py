"""Proposals: candidates from elsewhere compete in every planner, within their share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import lq_residuals
from toy_problem import (
    DOUBLE,
    Scripted,
    at,
    build,
    cost_of,
    every_planner,
    objective,
    problem,
    seeded,
    solve,
)

from latentplan.planning.problem import Problem
from latentplan.planning.spaces import Box

HORIZON = 4


def reachable():
    """Return a problem whose goals are the origin, and its least costly actions (B, 1, H, A)."""
    model, context, _, (low, high) = problem(2, bound=8.0)
    best = []
    for start in context[:, 0]:
        r = lq_residuals(model, start, horizon=HORIZON, effort=0.0)
        actions = np.linalg.lstsq(r.M, -r.c)[0]
        best.append(torch.from_numpy(actions).view(1, HORIZON, 2))
    return model, context, torch.zeros(2, 4, dtype=DOUBLE), Box(low, high, problems=2), best


@every_planner
def test_a_proposal_that_holds_the_optimum_wins(name):
    model, context, goal, space, best = reachable()
    optimum = torch.stack(best)
    assert (optimum.abs() < 8).all()  # the box does not bind
    poor = torch.full((2, 3, HORIZON, 2), 7.0, dtype=DOUBLE)
    planner = build(name, candidates=32, horizon=HORIZON)
    proposals = [Scripted(poor), Scripted(optimum)]
    plan = solve(planner, model, context, goal, space, proposals=proposals)
    # Gradients may still gain the rounding errors of the optimum.
    torch.testing.assert_close(plan.actions, optimum[:, 0], rtol=0, atol=1e-6)
    assert (plan.cost < solve(planner, model, context, goal, space).cost).all()


@every_planner
def test_a_proposal_that_is_not_finite_or_out_of_bounds_gives_a_plan_within_them(name):
    model, context, goal, space, _ = reachable()
    planner = build(name, candidates=64, horizon=HORIZON)
    for value in (torch.nan, torch.inf, -torch.inf, 1e30):
        proposal = Scripted(torch.full((2, 16, HORIZON, 2), value, dtype=DOUBLE))
        plan = solve(planner, model, context, goal, space, proposals=[proposal])
        assert plan.actions.isfinite().all() and (plan.actions.abs() <= 8).all()
        torch.testing.assert_close(plan.cost, cost_of(plan, model, context, goal))


@every_planner
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_sequence_that_is_not_finite_never_wins(name, value):
    model, _, _, (low, high) = problem(2)
    rest = torch.zeros(2, 1, 4, dtype=DOUBLE)  # to do nothing is best
    given = torch.zeros(2, 8, HORIZON, 2, dtype=DOUBLE)
    planner = build(name, candidates=32, horizon=HORIZON, hold=False)

    def plan():
        space = Box(low, high, problems=2)
        return solve(planner, model, rest, rest[:, 0], space, proposals=[Scripted(given)])

    assert (plan().actions == 0).all()
    given[:, :, 1, 0] = value
    assert not (plan().actions == 0).any()


@every_planner
@pytest.mark.parametrize("proposed", [0.0, 0.25, 1.0])
def test_each_proposal_fills_its_part_of_the_share(name, proposed):
    model, context, goal, space, best = reachable()
    proposals = [Scripted(torch.stack(best)) for _ in range(2)]
    planner = build(name, candidates=64, horizon=HORIZON, proposed=proposed)
    solve(planner, model, context, goal, space, proposals=proposals)
    assert [p.asked for p in proposals] == [[max(1, int(proposed * 64) // 2)]] * 2


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 20),
    warm=st.integers(0, 4),
    hold=st.booleans(),
    more=st.integers(0, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_first_round_has_the_requested_candidates_in_order(count, warm, hold, more, seed):
    model, context, goal, (low, high) = problem(2)
    start = torch.rand(2, warm, 3, 2, dtype=DOUBLE, generator=seeded(seed)) if warm else None
    given = torch.rand(2, more, 3, 2, dtype=DOUBLE, generator=seeded(seed + 1))
    drawn = Problem(
        at(context[:2]),
        model,
        objective(goal),
        Box(low, high, problems=2),
        seeded(seed),
        3,
        start,
        (Scripted(given),),
    ).first(count, hold=hold, proposed=0.5, near=0.1)
    assert drawn.shape == (2, count, 3, 2) and (drawn.abs() <= 1).all()
    still = [torch.zeros(2, 1, 3, 2, dtype=DOUBLE)] if hold else []
    wanted = torch.cat([*([] if start is None else [start]), *still, given], dim=1)[:, :count]
    assert torch.equal(drawn[:, : wanted.shape[1]], wanted)


def test_a_proposal_may_depend_on_the_context_and_draws_from_the_generator():
    model, context, goal, (low, high) = problem(2)

    class Back:
        def sample(self, context, count, *, horizon, generator):
            noise = torch.randn(count, horizon, 2, generator=generator, dtype=DOUBLE)
            return -context.latents[:, -1:, None, :2] + noise

    planner, space = build("shooting", candidates=16), Box(low, high, problems=2)
    one, two = (
        solve(planner, model, context, goal, space, proposals=[Back()]).actions for _ in range(2)
    )
    other = solve(planner, model, context, goal, space, proposals=[Back()], seed=1).actions
    assert torch.equal(one, two) and not torch.equal(one, other)
