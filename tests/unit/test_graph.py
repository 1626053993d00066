"""A captured solve, without the graph on a CPU, plans bit for bit as its planner does."""

from __future__ import annotations

from functools import partial
from types import FunctionType

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
    rated,
    seeded,
)

from latentplan.objectives.goal import GoalDistance, LatentDistance
from latentplan.planning import graph
from latentplan.planning.graph import Captured
from latentplan.planning.spaces import Box, Choices

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def pair(name, **values):
    """Return a planner and the same captured, both with their own generator."""
    planner = build(name, candidates=32, horizon=2, iterations=4, **values)
    generators = seeded(), seeded()

    def both(context, model, **rest):
        size = len(rest["space"].low)
        plain = planner.plan(at(context, size), model, generator=generators[0], **rest)
        found = captured.plan(at(context, size), model, generator=generators[1], **rest)
        assert torch.equal(plain.actions, found.actions)
        assert torch.equal(plain.cost, found.cost)
        assert torch.equal(plain.elites, found.elites)
        assert (plain.violation is None) == (found.violation is None)
        if plain.violation is not None:
            assert torch.equal(plain.violation, found.violation)
        assert found.complete and found.iterations == plain.iterations
        return found

    captured = Captured(planner)
    return both, captured


@every_planner
@settings(max_examples=10, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.integers(0, 2**16),
            st.integers(1, 3),
            st.booleans(),
            st.booleans(),
            st.booleans(),
            st.integers(0, 2),
        ),
        min_size=2,
        max_size=6,
    )
)
def test_any_sequence_of_solves_is_that_of_the_planner(name, calls):
    both, captured = pair(name)
    model = problem()[0]  # the same in all calls
    for seed, problems, limited, constrained, proposed, warm in calls:
        _, context, goal, (low, high) = problem(problems, seed=seed)
        given = torch.randn(problems, 4, 2, 2, dtype=DOUBLE, generator=seeded(seed))
        space = Box(low, high, problems=problems)
        if limited:
            space = rated(low, high, 0.1 + seed % 7 / 10, previous=given[:, 0, 0].clamp(-1, 1))
        normal = torch.randn(4, dtype=DOUBLE, generator=seeded(seed))
        both(
            context,
            model,
            objective=objective(goal),
            space=space,
            warm_start=given[:, :warm] if warm else None,
            proposals=[Scripted(given[:, 2:])] if proposed else [],
            constraints=[HalfSpace(normal, seed % 5 / 5)] if constrained else [],
        )
    assert len(captured._solves) <= graph.KEPT


@every_planner
def test_choices_of_any_number_and_objectives_of_any_setting(name):
    both, _ = pair(name)
    model, _, _, (low, high) = problem(actions=4)
    for seed, count in enumerate([3, 20, 3, 7, 20]):
        _, context, goal, _ = problem(2, actions=4, seed=seed)
        points = [torch.rand(k, 2, dtype=DOUBLE, generator=seeded(seed)) for k in (count, 5)]
        for power in (1.0, 2.0):
            cost = LatentDistance(goal, GoalDistance.Config(power=power, effort=(0.1 * seed,) * 4))
            space = Choices(low, high, choices=points)
            both(context, model, objective=cost, space=space)


class Aim:
    """Objectives of every kind, all with the same goal."""

    def __init__(self, goal):
        self.goal = goal

    def cost(self, latents, actions):
        return (latents[:, :, -1] - self.goal[:, None]).square().sum(-1)

    def __call__(self, latents, actions):
        return self.cost(latents, actions)


def free(latents, actions, goal):
    return Aim(goal)(latents, actions)


class Named(Aim):
    """With its goal in a mapping and in a tuple."""

    def __init__(self, goal):
        self.goals, self.pair = {"goal": goal}, (goal, 2.0)

    def __call__(self, latents, actions):
        return Aim((self.goals["goal"] + self.pair[0]) / self.pair[1])(latents, actions)


@pytest.mark.parametrize(
    "make",
    [
        Aim,
        Named,
        lambda goal: Aim(goal).cost,
        lambda goal: partial(free, goal=goal),
        lambda goal: lambda latents, actions: free(latents, actions, goal),
    ],
    ids=["object", "containers", "method", "partial", "function"],
)
def test_a_new_goal_is_never_taken_for_the_last_one(make):
    both, captured = pair("cem")
    model, context, goal, (low, high) = problem(2)
    space = Box(low, high, problems=2)
    for seed in range(3):
        goal = torch.randn(2, 4, dtype=DOUBLE, generator=seeded(seed))
        both(context, model, objective=make(goal), space=space)
    # A function cannot be looked into: each is captured for itself.
    assert len(captured._solves) == (3 if isinstance(make(goal), FunctionType) else 1)


def test_a_goal_that_changes_in_place_or_is_replaced_takes_effect():
    both, captured = pair("cem")
    model, context, goal, (low, high) = problem(2)
    space, aim = Box(low, high, problems=2), Aim(goal)
    both(context, model, objective=aim, space=space)
    aim.goal.mul_(-1)
    both(context, model, objective=aim, space=space)
    aim.goal = goal + 1
    both(context, model, objective=aim, space=space)
    assert len(captured._solves) == 1


def test_weights_may_change_in_place():
    both, captured = pair("cem")
    model, context, goal, (low, high) = problem(2)
    for _ in range(3):
        both(context, model, objective=objective(goal), space=Box(low, high, problems=2))
        model.B.data.mul_(-0.5)
    assert len(captured._solves) == 1


def test_the_last_used_are_kept_and_no_more():
    both, captured = pair("cem")
    model, _, _, (low, high) = problem()
    used = []
    for problems in [*range(1, graph.KEPT + 3), 3, 4]:
        _, context, goal, _ = problem(problems)
        both(context, model, objective=objective(goal), space=Box(low, high, problems=problems))
        used.append(next(reversed(captured._solves)))
        assert len(captured._solves) == min(len(used), graph.KEPT)
    assert list(captured._solves)[-2:] == used[-2:] == used[2:4]


def test_a_plan_is_not_overwritten_by_the_next():
    _, captured = pair("cem")
    model, context, goal, (low, high) = problem(2)
    space, generator = Box(low, high, problems=2), seeded()

    def plan(goal):
        return captured.plan(
            at(context), model, objective=objective(goal), space=space, generator=generator
        )

    first = plan(goal)
    kept = first.actions.clone(), first.cost.clone(), first.elites.clone()
    plan(-goal)
    for before, now in zip(kept, (first.actions, first.cost, first.elites), strict=True):
        assert torch.equal(before, now)


@pytest.mark.gpu
@gpu
@every_planner
def test_on_a_gpu_a_graph_is_as_good_as_its_planner_and_never_waits(name):
    device = torch.device("cuda")
    model, context, goal, (low, high) = problem(64)
    model, context, goal = model.float().to(device), context.float().to(device), goal.float()
    space = Box(low.float().to(device), high.float().to(device), problems=64)
    planner = build(name, candidates=256, horizon=3, iterations=6)
    captured = Captured(planner)
    cost = {"plain": 0.0, "graph": 0.0}
    for turn in range(4):
        aim = objective((goal * (turn + 1) / 2).to(device))
        for kind, maker in (("plain", planner), ("graph", captured)):
            generator = torch.Generator(device).manual_seed(turn)
            plan = maker.plan(at(context), model, objective=aim, space=space, generator=generator)
            assert (plan.actions.abs() <= 1).all()
            latents = imagined(model, context, plan.actions[:, None])
            torch.testing.assert_close(plan.cost, aim(latents, plan.actions[:, None])[:, 0])
            cost[kind] += float(plan.cost.mean()) / 4
    assert cost["graph"] == pytest.approx(cost["plain"], rel=0.03)

    def solve():
        generator = torch.Generator(device).manual_seed(0)
        found = graph.Problem(at(context), model, aim, space, generator, 3)
        torch.cuda.set_sync_debug_mode("error")
        try:
            planner.solve(found)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    solve()
