"""What every registered planner holds to: bounds, seeds, batches, finiteness, one clear error."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_model import ToyModel, lq_optimum, toy_spec

from latentplan import registry
from latentplan.errors import ConfigError, PlanningError, ShapeError
from latentplan.objectives.goal import GoalDistance
from latentplan.planning.spaces import Box, Choices

PLANNERS = sorted(registry.names("planner"))
DOUBLE = torch.float64  # so that a batch and its rows break ties alike
FEW = settings(max_examples=25, deadline=None)

every_planner = pytest.mark.parametrize("name", PLANNERS)


def build(name, **values):
    planner = registry.get("planner", name)
    fields = planner.Config.__dataclass_fields__
    if "elites" in fields and "candidates" in values:
        values.setdefault("elites", min(16, values["candidates"]))
    return planner(planner.Config(**{k: v for k, v in values.items() if k in fields}))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(problems=3, states=4, actions=2, bound=1.0, seed=0):
    model = ToyModel(toy_spec(states, actions, bound), ToyModel.Config(dtype="float64"))
    draw = seeded(seed)
    context = torch.randn(problems, 1, states, generator=draw, dtype=DOUBLE)
    goal = torch.randn(problems, states, generator=draw, dtype=DOUBLE)
    limit = torch.full((actions,), bound, dtype=DOUBLE)
    return model, context, goal, (-limit, limit)


def objective(goal: Tensor) -> GoalDistance:
    return GoalDistance(goal, GoalDistance.Config(power=2, reduce="mean"))


def solve(planner, model, context, goal, space, *, seed=0, warm_start=None):
    return planner.plan(
        context,
        model,
        objective=objective(goal),
        space=space,
        generator=seeded(seed),
        warm_start=warm_start,
    )


@torch.no_grad()
def cost_of(plan, model, context, goal):
    latents = model.rollout(context, plan.actions[:, None])
    return objective(goal)(latents, plan.actions[:, None])[:, 0]


@every_planner
@FEW
@given(
    low=st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=2),
    width=st.lists(st.floats(0, 3, width=32), min_size=2, max_size=2),
    horizon=st.integers(1, 4),
    candidates=st.integers(1, 40),
    problems=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    warm=st.booleans(),
)
def test_bounds_hold_and_the_cost_is_that_of_the_actions(
    name, low, width, horizon, candidates, problems, seed, warm
):
    model, context, goal, _ = problem(problems, seed=seed)
    low = torch.tensor(low, dtype=DOUBLE)
    high = low + torch.tensor(width, dtype=DOUBLE)
    warm_start = 10 * torch.randn(problems, horizon, 2, dtype=DOUBLE) if warm else None
    plan = solve(
        build(name, candidates=candidates, horizon=horizon),
        model,
        context,
        goal,
        Box(low, high, problems=problems),
        seed=seed,
        warm_start=warm_start,
    )
    assert plan.actions.shape == (problems, horizon, 2)
    assert ((plan.actions >= low) & (plan.actions <= high)).all()
    torch.testing.assert_close(plan.cost, cost_of(plan, model, context, goal))


@every_planner
@FEW
@given(seed=st.integers(0, 2**32 - 1), horizon=st.integers(1, 3), warm=st.booleans())
def test_picks_are_points_of_the_object(name, seed, horizon, warm):
    model, context, goal, (low, high) = problem(2, actions=4, seed=seed)
    points = [torch.rand(k, 2, generator=seeded(seed), dtype=DOUBLE) * 2 - 1 for k in (1, 30)]
    warm_start = torch.randn(2, horizon, 4, dtype=DOUBLE) if warm else None
    space = Choices(low, high, choices=points)
    planner = build(name, candidates=64, horizon=horizon)
    plan = solve(planner, model, context, goal, space, seed=seed, warm_start=warm_start)
    for actions, allowed in zip(plan.actions, points, strict=True):
        assert (actions[:, None, :2] == allowed).all(-1).any(-1).all()
    assert (plan.actions.abs() <= 1).all()


@every_planner
@FEW
@given(seed=st.integers(0, 2**32 - 1), warm=st.booleans())
def test_same_generator_same_plan_and_a_batch_equals_its_rows(name, seed, warm):
    model, context, goal, (low, high) = problem(3, seed=seed)
    planner = build(name, candidates=32, horizon=2)
    warm_start = torch.rand(3, 2, 2, dtype=DOUBLE) if warm else None
    space = Box(low, high, problems=3)
    plan = solve(planner, model, context, goal, space, seed=seed, warm_start=warm_start)
    again = solve(planner, model, context, goal, space, seed=seed, warm_start=warm_start)
    assert torch.equal(plan.actions, again.actions) and torch.equal(plan.cost, again.cost)
    for row in range(3):
        part = slice(row, row + 1)
        alone = solve(
            planner,
            model,
            context[part],
            goal[part],
            Box(low, high),
            seed=seed,
            warm_start=None if warm_start is None else warm_start[part],
        )
        torch.testing.assert_close(alone.actions, plan.actions[part])
        torch.testing.assert_close(alone.cost, plan.cost[part])


@every_planner
def test_picks_in_a_batch_equal_their_rows(name):
    model, context, goal, (low, high) = problem(2, actions=4)
    points = [torch.rand(k, 2, generator=seeded(k), dtype=DOUBLE) for k in (3, 40)]
    planner = build(name, candidates=64)
    both = solve(planner, model, context, goal, Choices(low, high, choices=points))
    for row in range(2):
        part = slice(row, row + 1)
        space = Choices(low, high, choices=points[part])
        alone = solve(planner, model, context[part], goal[part], space)
        torch.testing.assert_close(alone.actions, both.actions[part])


@every_planner
@FEW
@given(seed=st.integers(0, 2**32 - 1), problems=st.integers(1, 2), warm=st.booleans())
def test_more_iterations_never_cost_more(name, seed, problems, warm):
    planner = registry.get("planner", name)
    if "iterations" not in planner.Config.__dataclass_fields__:
        pytest.skip("one round only")
    model, context, goal, (low, high) = problem(problems, seed=seed)
    warm_start = torch.rand(problems, 3, 2, dtype=DOUBLE) if warm else None
    space = Box(low, high, problems=problems)
    plans = [
        solve(
            build(name, candidates=32, horizon=3, iterations=i),
            model,
            context,
            goal,
            space,
            seed=seed,
            warm_start=warm_start,
        )
        for i in range(1, 6)
    ]
    for fewer, more in zip(plans, plans[1:], strict=False):
        assert (more.cost <= fewer.cost).all()


@every_planner
def test_a_warm_start_is_never_made_worse(name):
    model, context, goal, (low, high) = problem(2)
    space = Box(low, high, problems=2)
    found = solve(build(name, candidates=512, horizon=4), model, context, goal, space)
    again = solve(
        build(name, candidates=8, horizon=4),
        model,
        context,
        goal,
        space,
        seed=1,
        warm_start=found.actions,
    )
    assert (again.cost <= found.cost + 1e-12).all()


@every_planner
@pytest.mark.parametrize("cost", [0.0, 3.5])
def test_a_constant_cost_gives_finite_actions(name, cost):
    model, context, _, (low, high) = problem(2)
    plan = build(name).plan(
        context,
        model,
        objective=lambda latents, actions: torch.full(latents.shape[:2], cost),
        space=Box(low, high, problems=2),
        generator=seeded(),
    )
    assert plan.actions.isfinite().all() and (plan.cost == cost).all()


@every_planner
def test_one_candidate_and_horizon_one_work(name):
    model, context, goal, (low, high) = problem(1)
    for warm_start in (None, torch.zeros(1, 1, 2)):
        planner = build(name, candidates=1, horizon=1)
        plan = solve(planner, model, context, goal, Box(low, high), warm_start=warm_start)
        assert plan.actions.shape == (1, 1, 2) and plan.actions.isfinite().all()


@every_planner
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_cost_never_wins(name, broken):
    model, context, goal, (low, high) = problem(2)

    def half(latents, actions):
        cost = objective(goal)(latents, actions)
        return torch.where(actions[:, :, 0, 0] > 0, broken, cost)

    space = Box(low, high, problems=2)
    planner = build(name, candidates=64)
    plan = planner.plan(context, model, objective=half, space=space, generator=seeded())
    assert plan.cost.isfinite().all() and (plan.actions[:, 0, 0] <= 0).all()

    def first_problem_only(latents, actions):
        cost = objective(goal)(latents, actions)
        cost[1] = broken
        return cost

    with pytest.raises(PlanningError, match="1 of 2 problems"):
        planner.plan(context, model, objective=first_problem_only, space=space, generator=seeded())


@every_planner
def test_a_hold_candidate_lets_the_arm_rest_at_the_goal(name):
    model, _, goal, (low, high) = problem(1, actions=4)
    model.A.data = torch.eye(4, dtype=DOUBLE)
    model.B.data[:, :2] = 0  # a pick alone moves nothing
    space = Choices(low, high, choices=torch.rand(1, 20, 2, dtype=DOUBLE))
    plan = solve(build(name, hold=True), model, goal[:, None], goal, space)
    assert (plan.actions[..., 2:] == 0).all() and (plan.cost == 0).all()


@every_planner
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_finite_plan(name, dtype):
    model, context, goal, (low, high) = problem(2)
    plan = solve(
        build(name, candidates=32, horizon=2),
        model.to(dtype),
        context.to(dtype),
        goal.to(dtype),
        Box(low.to(dtype), high.to(dtype), problems=2),
    )
    assert plan.actions.isfinite().all() and (plan.actions.abs() <= 1).all()


@every_planner
def test_what_does_not_fit_is_one_clear_error(name):
    model, context, goal, (low, high) = problem(2)
    space = Box(low, high, problems=2)
    planner = build(name, horizon=2)
    for shape in [(2, 3, 2), (1, 2, 2), (2, 2, 5), (2, 2)]:
        with pytest.raises(ShapeError, match="warm_start: found shape"):
            solve(planner, model, context, goal, space, warm_start=torch.zeros(shape))
    for shape in [(2, 1, 9), (2, 2, 4), (2, 4)]:
        with pytest.raises(ShapeError, match="context: found shape"):
            solve(planner, model, torch.zeros(shape), goal, space)
    with pytest.raises(ShapeError, match=r"ActionSpace.sample: found shape \(3"):
        solve(planner, model, context, goal, Box(low, high, problems=3))
    with pytest.raises(ShapeError, match=r"GoalDistance.latents: found shape"):
        solve(planner, model, context, goal[:, :3], space)
    with pytest.raises(ShapeError, match=r"Objective: found shape \(2,\), need \(B=2, N="):
        planner.plan(
            context,
            model,
            objective=lambda latents, actions: latents.sum((1, 2, 3)),
            space=space,
            generator=seeded(),
        )


@every_planner
@pytest.mark.parametrize(
    "field", ["candidates", "horizon", "iterations", "elites", "std_min", "locality", "answer"]
)
def test_settings_out_of_range_are_refused(name, field):
    planner = registry.get("planner", name)
    if field not in planner.Config.__dataclass_fields__:
        pytest.skip(f"no {field}")
    with pytest.raises(ConfigError, match=rf"{planner.__name__}.{field}: "):
        planner.Config(**{field: "worst" if field == "answer" else -1})


def test_more_elites_than_candidates_are_refused():
    cem = registry.get("planner", "cem")
    with pytest.raises(ConfigError, match=r"CEM.elites: 999 is not within \[1, 64\]"):
        cem.Config(candidates=64, elites=999)


@pytest.mark.parametrize("horizon", [1, 5])
@pytest.mark.parametrize("locality", [0.0, 0.7])
def test_cem_reaches_the_riccati_optimum_within_one_percent(horizon, locality):
    model, context, _, _ = problem(4)
    limit = torch.full((2,), 4.0, dtype=DOUBLE)
    effort = 0.1
    cem = registry.get("planner", "cem")
    config = cem.Config(
        candidates=512, iterations=20, elites=48, horizon=horizon, locality=locality, std_min=0.001
    )
    cost = GoalDistance(
        torch.zeros(4, 4, dtype=DOUBLE),
        GoalDistance.Config(power=2, reduce="mean", effort=(effort, effort)),
    )
    space = Box(-limit, limit, problems=4)
    plan = cem(config).plan(context, model, objective=cost, space=space, generator=seeded())
    optimum = lq_optimum(model, context[:, 0], horizon=horizon, effort=effort)
    assert (plan.actions.abs() < 3.9).all()  # the box does not bind: Riccati holds
    assert (plan.cost >= optimum - 1e-9).all()
    assert (plan.cost <= 1.01 * optimum).all()


def test_the_mean_of_the_elites_can_be_the_answer():
    model, context, goal, (low, high) = problem(2)
    space = Box(low, high, problems=2)
    cem = registry.get("planner", "cem")
    plan = solve(cem(cem.Config(answer="mean", iterations=8)), model, context, goal, space)
    best = solve(cem(cem.Config(iterations=8)), model, context, goal, space)
    assert not torch.equal(plan.actions, best.actions)
    torch.testing.assert_close(plan.cost, cost_of(plan, model, context, goal))
    torch.testing.assert_close(plan.cost, best.cost, rtol=0.05, atol=0)
