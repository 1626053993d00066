"""Scoring: blocks of rows, broken costs, warm starts, and the best of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_problem import DOUBLE, HalfSpace, at, objective, problem, seeded

from latentplan.errors import ShapeError
from latentplan.planning import problem as planning
from latentplan.planning.problem import Problem, Scored
from latentplan.planning.spaces import Box


def make(problems=3, horizon=2, **rest):
    model, context, goal, (low, high) = problem(problems)
    space = Box(low, high, problems=problems)
    return Problem(at(context), model, objective(goal), space, seeded(), horizon, **rest).prepare()


@pytest.mark.parametrize("rows", [1, 7, 64, 10_000])
@pytest.mark.parametrize("constrained", [False, True])
def test_blocks_of_rows_give_the_same_as_all_at_once(rows, constrained, monkeypatch):
    wall = [HalfSpace(torch.eye(4, dtype=DOUBLE)[0], 0.1)] if constrained else []
    here = make(constraints=wall)
    actions = here.draw(50)
    monkeypatch.setattr(planning, "ROWS", 10**9)
    whole = here.score(actions)
    monkeypatch.setattr(planning, "ROWS", rows)
    calls, rollout = [], here.dynamics.rollout
    here.dynamics.rollout = lambda z, a: calls.append(a.shape[1]) or rollout(z, a)
    parts = here.score(actions)
    torch.testing.assert_close(parts.cost, whole.cost)
    assert parts.actions is actions and sum(calls) == 50
    assert max(calls) <= max(1, rows * torch.get_num_threads() // 3)
    if constrained:
        torch.testing.assert_close(parts.violation, whole.violation)
    else:
        assert parts.violation is None


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12))
def test_the_best_are_the_cheapest_in_order_and_the_best_fills_up(seed, count):
    draw = seeded(seed)
    cost = torch.randn(3, 12, generator=draw)
    cost[torch.rand(3, 12, generator=draw) < 0.4] = torch.inf
    cost[:, 5] = 0.0
    index = torch.arange(12.0).view(1, 12, 1, 1).expand(3, 12, 1, 1)
    best = Scored(index, cost).best(count)
    for row in range(3):
        wanted = cost[row, cost[row].isfinite()].sort().values
        wanted = torch.cat([wanted, wanted[:1].expand(count)])[:count]
        assert torch.equal(best.cost[row], wanted)
        assert torch.equal(cost[row, best.actions[row].flatten().long()], wanted)


def test_a_cost_that_is_not_finite_counts_as_infinite_and_its_neighbours_do_not():
    here = make(problems=2)
    aim, broken = here.objective, [torch.nan, torch.inf, -torch.inf]

    def cost(latents, actions):
        found = aim(latents, actions)
        found[0, :3] = torch.tensor(broken, dtype=DOUBLE)
        return found

    actions = here.draw(6)
    wanted = here.score(actions).cost
    object.__setattr__(here, "objective", cost)
    found = here.score(actions).cost
    assert (found[0, :3] == torch.inf).all()
    assert torch.equal(found[0, 3:], wanted[0, 3:]) and torch.equal(found[1], wanted[1])


def test_a_violation_that_is_not_a_number_counts_as_infinite_and_one_below_nought_as_none():
    excess = torch.tensor([[torch.nan, -2.0, 0.0, 3.0, torch.inf]], dtype=DOUBLE).expand(3, -1)
    here = make(constraints=[lambda latents, actions: excess, lambda latents, actions: 1 + excess])
    found = here.score(here.draw(5)).violation
    wanted = torch.tensor([torch.inf, 0.0, 1.0, 7.0, torch.inf], dtype=DOUBLE)
    assert torch.equal(found, wanted.expand(3, -1))


def test_noise_is_the_same_for_all_problems_and_of_the_requested_std():
    here = make(problems=2, horizon=3)
    centre = torch.zeros(2, 20_000, 3, 2, dtype=DOUBLE)
    std = torch.tensor([0.5, 2.0], dtype=DOUBLE)
    noisy = here.noisy(centre, std)
    assert torch.equal(noisy[0], noisy[1])
    torch.testing.assert_close(noisy.std((0, 1, 2)), std, rtol=0.02, atol=0)
    basis = torch.ones(3, 1, dtype=DOUBLE)
    held = here.noisy(centre, std, basis)  # one number for the whole horizon
    assert torch.equal(held[:, :, 0], held[:, :, 2])
    assert (here.scatter(centre, std).abs() <= 1).all()


@pytest.mark.parametrize("shape", [(3, 2, 2), (3, 1, 2, 2), (3, 5, 2, 2)])
def test_warm_starts_come_as_one_or_as_many(shape):
    here = make(warm_start=torch.zeros(shape, dtype=DOUBLE))
    assert here.warm_start.ndim == 4 and here.warm_start.shape[0] == 3


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 3, 2), (3, 5, 3, 2), (3, 2), (3, 1, 2, 3)])
def test_a_warm_start_of_another_shape_is_refused(shape):
    with pytest.raises(ShapeError, match="Planner.warm_start: found shape"):
        make(warm_start=torch.zeros(shape))
