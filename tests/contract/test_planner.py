"""Contract suite of planners: the checks of conformance/planner.py, and random inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy_problem import (
    DOUBLE,
    HalfSpace,
    Scripted,
    at,
    build,
    change,
    cost_of,
    every_planner,
    problem,
    rated,
    seeded,
    solve,
)

from latentplan import registry
from latentplan.conformance.suite import NotApplicable, checks, subject
from latentplan.errors import ConfigError, ShapeError
from latentplan.planning.problem import TIE, Scored
from latentplan.planning.spaces import Box, Choices

VARIANTS = [(), ("horizon=3",)]
SEARCH = settings.get_current_profile_name() == "search"
FEW = settings(max_examples=50 if SEARCH else 12, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


@every_planner
@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
@pytest.mark.parametrize("check", checks("planner").values(), ids=list(checks("planner")))
def test_it_keeps(check, name, overrides):
    try:
        check(subject("planner", name, overrides=overrides))
    except NotApplicable as e:
        assert name not in registry.BUILT_IN["planner"]
        pytest.skip(str(e))


@every_planner
@FEW
@given(
    low=st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=2),
    width=st.lists(st.floats(0, 3, width=32), min_size=2, max_size=2),
    horizon=st.integers(1, 4),
    candidates=st.integers(1, 40),
    problems=st.integers(1, 3),
    seed=SEEDS,
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
@given(
    low=st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=2),
    width=st.lists(st.floats(0, 3, width=32), min_size=2, max_size=2),
    rate=st.lists(st.floats(2**-13, 4, width=32), min_size=2, max_size=2),
    at=st.floats(0, 1, width=32),
    seed=SEEDS,
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    more=st.booleans(),
)
def test_rate_limits_hold_to_the_last_bit(name, low, width, rate, at, seed, dtype, more):
    model, context, goal, _ = problem(2, seed=seed)
    low, rate = torch.tensor(low, dtype=dtype), torch.tensor(rate, dtype=dtype)
    high = low + torch.tensor(width, dtype=dtype)
    previous = (low + at * (high - low)).clamp(low, high).expand(2, -1)
    rest = {}
    if more:
        wild = 5 * torch.randn(2, 3, 4, 2, dtype=dtype, generator=seeded(seed))
        rest = {"warm_start": wild, "proposals": [Scripted(-wild)]}
    plan = solve(
        build(name, candidates=24, horizon=4, iterations=3),
        model,
        context,
        goal,
        rated(low, high, rate, previous=previous),
        seed=seed,
        **rest,
    )
    for actions in (plan.actions, *plan.elites.unbind(1)):
        assert ((actions >= low) & (actions <= high)).all()
        assert (change(actions, previous) <= rate).all()


@every_planner
@FEW
@given(seed=SEEDS, horizon=st.integers(1, 3), warm=st.booleans())
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
@given(
    seed=SEEDS,
    warm=st.integers(0, 3),
    limited=st.booleans(),
    constrained=st.booleans(),
    proposed=st.booleans(),
)
def test_same_generator_same_plan_and_a_batch_equals_its_rows(
    name, seed, warm, limited, constrained, proposed
):
    model, context, goal, (low, high) = problem(3, seed=seed)
    planner = build(name, candidates=32, horizon=2, iterations=4)
    given = torch.randn(3, 8, 2, 2, dtype=DOUBLE, generator=seeded(seed))
    wall = HalfSpace(torch.tensor([1.0, 0.0, -1.0, 0.0], dtype=DOUBLE), 0.2)

    def plan(part):
        space = Box(low, high, problems=len(context[part]))
        if limited:
            space = rated(low, high, 0.3, previous=0.5 * goal[part, :2].clamp(-1, 1))
        return solve(
            planner,
            model,
            context[part],
            goal[part],
            space,
            seed=seed,
            warm_start=given[part, :warm] if warm else None,
            proposals=[Scripted(given[part, 3:])] if proposed else [],
            constraints=[wall] if constrained else [],
        )

    whole, again = plan(slice(None)), plan(slice(None))
    assert torch.equal(whole.actions, again.actions) and torch.equal(whole.cost, again.cost)
    for row in range(3):
        alone = plan(slice(row, row + 1))
        torch.testing.assert_close(alone.actions[0], whole.actions[row])
        torch.testing.assert_close(alone.cost[0], whole.cost[row])
        if constrained:
            torch.testing.assert_close(alone.violation[0], whole.violation[row])


@every_planner
@FEW
@given(seed=SEEDS, warm=st.booleans(), limited=st.booleans(), constrained=st.booleans())
@example(seed=336, warm=True, limited=False, constrained=True)  # a violation 6e-17 larger
def test_more_iterations_never_cost_more(name, seed, warm, limited, constrained):
    model, context, goal, (low, high) = problem(2, seed=seed)
    rest = {}
    if warm:
        rest["warm_start"] = torch.rand(2, 3, 2, dtype=DOUBLE, generator=seeded(seed))
    if constrained:
        rest["constraints"] = [HalfSpace(torch.eye(4, dtype=DOUBLE)[0], 0.1)]
    space = Box(low, high, problems=2)
    if limited:
        space = rated(low, high, 0.2, previous=torch.zeros(2, 2, dtype=DOUBLE))
    plans = [
        solve(
            build(name, candidates=32, horizon=3, iterations=count),
            model,
            context,
            goal,
            space,
            seed=seed,
            **rest,
        )
        for count in (1, 2, 3, 5)
    ]
    rounding = 1e-12  # the same plan may be rounded otherwise
    for fewer, more in zip(plans, plans[1:], strict=False):
        if not constrained:
            assert (more.cost <= fewer.cost + rounding).all()
            continue
        # What planners minimise: the violation first, but a cost may outweigh 2 TIE of it.
        both = Scored(
            torch.stack([fewer.actions, more.actions], dim=1),
            torch.stack([fewer.cost, more.cost], dim=1),
            torch.stack([fewer.violation, more.violation], dim=1),
        )
        assert (both.rank[:, 1] <= both.rank[:, 0] + rounding).all()
        assert (more.violation <= fewer.violation + 2 * TIE).all()


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
def test_one_candidate_and_horizon_one_work(name):
    model, context, goal, (low, high) = problem(1)
    for warm_start in (None, torch.zeros(1, 1, 2)):
        planner = build(name, candidates=1, horizon=1)
        plan = solve(planner, model, context, goal, Box(low, high), warm_start=warm_start)
        assert plan.actions.shape == (1, 1, 2) and plan.actions.isfinite().all()


@every_planner
def test_a_hold_candidate_lets_the_arm_rest_at_the_goal(name):
    model, _, goal, (low, high) = problem(1, actions=4)
    model.A.data = torch.eye(4, dtype=DOUBLE)
    model.B.data[:, :2] = 0  # a pick alone moves nothing
    space = Choices(low, high, choices=torch.rand(1, 20, 2, dtype=DOUBLE))
    plan = solve(build(name, hold=True), model, goal[:, None], goal, space)
    assert (plan.actions[..., 2:] == 0).all() and (plan.cost == 0).all()


@every_planner
@pytest.mark.parametrize("bounds", [torch.float32, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_finite_plan(name, dtype, bounds):
    model, context, goal, (low, high) = problem(2)
    bounds = bounds or dtype
    previous = torch.zeros(2, 2, dtype=bounds)
    plan = solve(
        build(name, candidates=32, horizon=2, iterations=8),
        model.to(dtype),
        context.to(dtype),
        goal.to(bounds),
        rated(low.to(bounds), high.to(bounds), 0.25, previous=previous),
    )
    assert plan.actions.dtype == bounds and plan.actions.isfinite().all()
    assert plan.cost.isfinite().all()
    assert (plan.actions.abs() <= 1).all() and (change(plan.actions, previous) <= 0.25).all()


@every_planner
def test_what_overflows_in_half_precision_never_wins(name):
    model, context, goal, (low, high) = problem(2, bound=4.0)
    model.B.data *= 6e4 / model.B.abs().max()  # most pushes lead beyond what float16 holds
    planner = build(name, candidates=64, horizon=2, iterations=3, hold=True)
    space = Box(low.float(), high.float(), problems=2)
    plan = solve(planner, model.half(), context.half(), goal.float(), space)
    assert plan.actions.isfinite().all() and plan.cost.isfinite().all()


@every_planner
def test_what_does_not_fit_is_one_clear_error(name):
    model, context, goal, (low, high) = problem(2)
    space = Box(low, high, problems=2)
    planner = build(name, horizon=2)
    for shape in [(2, 3, 2), (1, 2, 2), (2, 2, 5), (2, 2)]:
        with pytest.raises(ShapeError, match="warm_start: found shape"):
            solve(planner, model, context, goal, space, warm_start=torch.zeros(shape))
    for shape in [(2, 1, 9), (2, 2, 4), (2, 4)]:
        with pytest.raises(ShapeError, match="context.latents: found shape"):
            solve(planner, model, torch.zeros(shape), goal, space)
    with pytest.raises(ShapeError, match=r"ActionSpace.sample: found shape \(3"):
        solve(planner, model, context, goal, Box(low, high, problems=3))
    with pytest.raises(ShapeError, match=r"LatentDistance.latents: found shape"):
        solve(planner, model, context, goal[:, :3], space)
    with pytest.raises(ShapeError, match=r"Objective: found shape \(2,\), need \(B=2, N="):
        planner.plan(
            at(context),
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


def test_the_mean_of_the_elites_can_be_the_answer():
    model, context, goal, (low, high) = problem(2)
    space = Box(low, high, problems=2)
    cem = registry.get("planner", "cem")
    plan = solve(cem(cem.Config(answer="mean", iterations=8)), model, context, goal, space)
    best = solve(cem(cem.Config(iterations=8)), model, context, goal, space)
    assert not torch.equal(plan.actions, best.actions)
    torch.testing.assert_close(plan.cost, cost_of(plan, model, context, goal))
    torch.testing.assert_close(plan.cost, best.cost, rtol=0.05, atol=0)
