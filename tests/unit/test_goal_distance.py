from __future__ import annotations

import pytest
import torch

from latentplan.errors import ConfigError, ShapeError
from latentplan.objectives.goal import GoalDistance, LatentDistance

# One problem, two candidates, two steps: distances 5, 0 and 3, 4 from the goal (1, 1).
GOAL = torch.tensor([[1.0, 1.0]])
LATENTS = torch.tensor([[[[4.0, 5.0], [1.0, 1.0]], [[1.0, 4.0], [5.0, 1.0]]]])
ACTIONS = torch.tensor([[[[1.0, 0.0], [3.0, 0.0]], [[9.0, 2.0], [9.0, 0.0]]]])


@pytest.mark.parametrize(
    ("settings", "cost"),
    [
        ({}, [0.0, 4.0]),
        ({"power": 2}, [0.0, 16.0]),
        ({"reduce": "mean"}, [2.5, 3.5]),
        ({"reduce": "mean", "power": 2}, [12.5, 12.5]),
        ({"reduce": "min"}, [0.0, 3.0]),
        ({"effort": (0.0, 0.5)}, [0.0, 5.0]),
        ({"effort": (1.0, 0.0), "reduce": "mean"}, [7.5, 84.5]),
    ],
)
def test_cost(settings, cost):
    objective = LatentDistance(GOAL, GoalDistance.Config(**settings))
    torch.testing.assert_close(objective(LATENTS, ACTIONS), torch.tensor([cost]))


def test_each_problem_has_its_own_goal():
    objective = LatentDistance(torch.tensor([[1.0, 1.0], [1.0, 4.0]]))
    cost = objective(LATENTS.expand(2, -1, -1, -1), ACTIONS.expand(2, -1, -1, -1))
    torch.testing.assert_close(cost, torch.tensor([[0.0, 4.0], [3.0, 5.0]]))


def test_the_gradient_is_finite_where_it_matters():
    latents = LATENTS.clone().requires_grad_()
    LatentDistance(GOAL, GoalDistance.Config(power=2))(latents, ACTIONS).sum().backward()
    torch.testing.assert_close(latents.grad[0, 1, 1], torch.tensor([8.0, 0.0]))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match=r"LatentDistance.goal: found shape \(2,\), need \(B, D\)"):
        LatentDistance(GOAL[0])
    with pytest.raises(
        ShapeError, match=r"latents: found shape \(1, 2, 2, 2\), need \(B=1, N, H, D=3\)"
    ):
        LatentDistance(torch.zeros(1, 3))(LATENTS, ACTIONS)
    with pytest.raises(ShapeError, match="effort: 3 weights for actions of 2 numbers"):
        LatentDistance(GOAL, GoalDistance.Config(effort=(1.0, 1.0, 1.0)))(LATENTS, ACTIONS)


@pytest.mark.parametrize(
    "settings", [{"power": 0}, {"power": float("nan")}, {"reduce": "sum"}, {"effort": (-1.0,)}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=f"GoalDistance.{next(iter(settings))}: "):
        GoalDistance.Config(**settings)
