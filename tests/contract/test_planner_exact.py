"""Linear-quadratic problems have exact answers; every planner comes within what it states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, lsq_linear, minimize
from toy_model import ToyModel, lq_optimum, lq_residuals, toy_spec
from toy_problem import DOUBLE, PLANNERS, HalfSpace, at, build, rated, seeded

from latentplan.objectives.goal import GoalDistance, LatentDistance
from latentplan.planning.spaces import Box

STATES, ACTIONS, HORIZON, PROBLEMS, EFFORT = 4, 2, 5, 4, 0.05
BUDGETS = {  # what a planner needs for its tolerance; a planner that is not here gets OTHERS
    "gradient": {"candidates": 64, "iterations": 150, "decay": 0.97},
    "hybrid": {"candidates": 256, "iterations": 100, "sampled": 8, "decay": 0.97},
    "icem": {"candidates": 512, "iterations": 40, "elites": 32, "beta": 1.0, "decay": 1.02},
    "predictive": {"candidates": 512, "iterations": 40, "knots": HORIZON, "decay": 0.8},
}
OTHERS = {"candidates": 512, "iterations": 30, "elites": 32}
TOLERANCES = {"gradient": 0.001, "hybrid": 0.001}  # of the optimal cost; others 1 %

# At a wall, which rejects half of what is drawn near the optimum, all need more rounds.
WALL_BUDGETS = {
    "gradient": BUDGETS["gradient"],
    "hybrid": BUDGETS["hybrid"],
    "icem": {**OTHERS, "iterations": 60, "beta": 0.5, "decay": 1.0, "kept": 1.0, "locality": 0.7},
    "predictive": {"candidates": 512, "iterations": 60, "knots": HORIZON, "decay": 0.9},
}
WALL_OTHERS = {**OTHERS, "iterations": 60}
WALL_TOLERANCES = {"gradient": 0.02, "hybrid": 0.02}  # others 5 %


class Case:
    """Reach the origin with little effort, in a box, as seen by planners and by QP solvers."""

    def __init__(self, bound: float, *, horizon: int = HORIZON) -> None:
        self.model = ToyModel(toy_spec(STATES, ACTIONS, bound), ToyModel.Config(dtype="float64"))
        self.context = torch.randn(PROBLEMS, 1, STATES, generator=seeded(1), dtype=DOUBLE)
        self.horizon, self.bound = horizon, bound
        self.high = torch.full((ACTIONS,), bound, dtype=DOUBLE)
        self.low = -self.high
        self.objective = LatentDistance(
            torch.zeros(PROBLEMS, STATES, dtype=DOUBLE),
            GoalDistance.Config(power=2, reduce="mean", effort=(EFFORT,) * ACTIONS),
        )

    def plan(self, planner, space=None, **rest):
        space = space or Box(self.low, self.high, problems=PROBLEMS)
        return planner.plan(
            at(self.context),
            self.model,
            objective=self.objective,
            space=space,
            generator=seeded(),
            **rest,
        )

    def residuals(self):
        for start in self.context[:, 0]:
            yield lq_residuals(self.model, start, horizon=self.horizon, effort=EFFORT)

    def boxed(self):
        """Return the least cost in the box (B,), by bounded least squares."""
        return [
            2 * lsq_linear(r.M, -r.c, (-self.bound, self.bound), tol=1e-12).cost
            for r in self.residuals()
        ]

    def limited(self, rows):
        """Return the least cost (B,) in the box where low <= rows(residuals) @ a <= high."""
        found = []
        for r in self.residuals():
            best = minimize(
                lambda a, r=r: ((r.M @ a + r.c) ** 2).sum(),
                np.zeros(r.M.shape[1]),
                jac=lambda a, r=r: 2 * r.M.T @ (r.M @ a + r.c),
                bounds=[(-self.bound, self.bound)] * r.M.shape[1],
                constraints=LinearConstraint(*rows(r)),
                method="SLSQP",
                options={"ftol": 1e-12, "maxiter": 1000},
            )
            assert best.success
            found.append(best.fun)
        return found


def planner(name: str):
    return build(name, horizon=HORIZON, **BUDGETS.get(name, OTHERS))


def check(plan, optimum, tolerance: float) -> None:
    optimum = torch.as_tensor(optimum)
    assert (plan.cost >= optimum * (1 - 1e-6)).all()
    assert (plan.cost <= optimum * (1 + tolerance)).all()


@pytest.fixture(params=[n for n in PLANNERS if n not in ("beam", "shooting")])
def name(request):
    """Every planner that converges: beam and shooting draw, and would need unfairly many draws."""
    return request.param


def test_a_wide_box_gives_the_optimum_of_riccati(name):
    case = Case(bound=4)
    plan = case.plan(planner(name))
    assert (plan.actions.abs() < 3.9).all()  # the box does not bind: Riccati holds
    optimum = lq_optimum(case.model, case.context[:, 0], horizon=HORIZON, effort=EFFORT)
    check(plan, optimum, TOLERANCES.get(name, 0.01))


def test_a_box_that_binds_gives_the_optimum_of_bounded_least_squares(name):
    case = Case(bound=0.5)
    plan = case.plan(planner(name))
    assert (plan.actions.abs() == 0.5).any()
    check(plan, case.boxed(), TOLERANCES.get(name, 0.01))


def test_a_rate_that_binds_gives_the_optimum_of_the_quadratic_program(name):
    rate, case = 0.3, Case(bound=4)
    previous = torch.zeros(PROBLEMS, ACTIONS, dtype=DOUBLE)
    plan = case.plan(planner(name), rated(case.low, case.high, rate, previous=previous))
    size = HORIZON * ACTIONS
    steps = np.eye(size) - np.eye(size, k=-ACTIONS)
    check(plan, case.limited(lambda _: (steps, -rate, rate)), TOLERANCES.get(name, 0.01))


def test_a_wall_gives_the_optimum_of_the_quadratic_program(name):
    case = Case(bound=4)
    normal = torch.tensor([1.0, -0.5, 0.0, 0.5], dtype=DOUBLE)
    wall = HalfSpace(normal, offset=0.1)
    plan = case.plan(
        build(name, horizon=HORIZON, **WALL_BUDGETS.get(name, WALL_OTHERS)), constraints=[wall]
    )
    rows = np.kron(np.eye(HORIZON), normal.numpy())
    optimum = case.limited(lambda r: (rows @ r.reached, -np.inf, wall.offset - rows @ r.drift))
    assert max(np.array(optimum) / case.boxed()) > 1.1  # the wall is in the way
    assert (plan.violation == 0).all()
    check(plan, optimum, WALL_TOLERANCES.get(name, 0.05))


@pytest.mark.parametrize("horizon", [1, HORIZON])
@pytest.mark.parametrize("locality", [0.0, 0.7])
def test_the_textbook_and_the_smoothed_elites_both_converge(horizon, locality):
    case = Case(bound=4, horizon=horizon)
    plan = case.plan(build("cem", horizon=horizon, locality=locality, **OTHERS))
    optimum = lq_optimum(case.model, case.context[:, 0], horizon=horizon, effort=EFFORT)
    check(plan, optimum, 0.01)


def test_shooting_is_within_a_tenth_of_the_optimum_for_one_action():
    case = Case(bound=4, horizon=1)
    plan = case.plan(build("shooting", horizon=1, candidates=4096))
    optimum = lq_optimum(case.model, case.context[:, 0], horizon=1, effort=EFFORT)
    check(plan, optimum, 0.1)


def test_the_references_agree_without_active_constraints():
    case = Case(bound=9)
    riccati = lq_optimum(case.model, case.context[:, 0], horizon=HORIZON, effort=EFFORT)
    size = HORIZON * ACTIONS
    np.testing.assert_allclose(case.boxed(), riccati, rtol=1e-9)
    np.testing.assert_allclose(case.limited(lambda _: (np.eye(size), -9, 9)), riccati, rtol=1e-6)
