"""The planner that takes what proposals offer, and the models that propose by themselves."""

import numpy as np
import pytest
import torch
from toy_model import ToyModel, toy_spec
from toy_problem import Scripted, build, cost_of, objective, problem, solve

from latentplan.errors import ConfigError, PlanningError
from latentplan.planning.mpc import MPC
from latentplan.planning.spaces import Box


class Knowing(ToyModel):
    """A toy model that proposes by itself: the task is the number that all of its actions are."""

    def proposal(self, task=""):
        if not task:
            raise ConfigError("task '': was not trained on")
        return Scripted(torch.full((1, 1, 4, 2), float(task)))


def test_the_plan_is_the_cheapest_of_what_is_proposed_inside_the_space():
    model, context, goal, (low, high) = problem()
    offered = 2 * torch.randn(3, 5, 2, 2, dtype=torch.float64)
    plan = solve(
        build("generate", horizon=2, candidates=5),
        model,
        context,
        goal,
        Box(low, high, problems=3),
        proposals=[Scripted(offered)],
        warm_start=torch.zeros(3, 2, 2, dtype=torch.float64),
    )
    inside = offered.clamp(low, high)
    costs = objective(goal)(model.rollout(context, inside), inside)
    torch.testing.assert_close(plan.cost, costs.min(dim=1).values)
    torch.testing.assert_close(plan.cost, cost_of(plan, model, context, goal))
    assert (plan.actions[:, None] == inside).flatten(2).all(-1).any(1).all()


def test_nothing_proposed_is_an_error():
    model, context, goal, (low, high) = problem()
    with pytest.raises(PlanningError, match="generate: needs a model that proposes"):
        solve(build("generate"), model, context, goal, Box(low, high, problems=3))


def test_a_model_proposes_for_the_task_at_hand():
    spec = toy_spec(4, 2, 1.0)
    mpc = MPC(Knowing(spec), build("generate"), objective=lambda z: objective(z))
    seen = {key: np.zeros(a.shape, a.dtype) for key, a in spec.observation.items()}
    mpc.goal(seen, task="0.25")
    assert mpc.act(seen).tolist() == [0.25, 0.25]
    mpc.goal(seen, task="-0.5")
    assert mpc.act(seen).tolist() == [-0.5, -0.5]
    with pytest.raises(ConfigError, match="not trained on"):
        mpc.goal(seen)


def test_with_cem_they_compete():
    spec = toy_spec(4, 2, 1.0)
    planner = build("cem", candidates=8, iterations=1, horizon=4)
    config = MPC.Config(propose=True)
    mpc = MPC(Knowing(spec), planner, objective=lambda z: objective(z), config=config)
    seen = {key: np.zeros(a.shape, a.dtype) for key, a in spec.observation.items()}
    mpc.goal(seen, task="0.0")  # stays at the goal: nothing beats it
    np.testing.assert_allclose(mpc.act(seen), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("planner", "config"), [("generate", MPC.Config()), ("cem", MPC.Config(propose=True))]
)
def test_a_model_that_proposes_nothing_is_refused(planner, config):
    model = ToyModel(toy_spec(4, 2, 1.0))
    with pytest.raises(ConfigError, match="needs a model that proposes actions.*ToyModel"):
        MPC(model, build(planner), objective=lambda z: objective(z), config=config)
