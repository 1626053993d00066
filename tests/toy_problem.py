"""Planning problems on the toy model, and planners built for them."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor
from toy_model import ToyModel, toy_spec

from latentplan import registry
from latentplan.objectives.goal import GoalDistance, LatentDistance
from latentplan.planning.solver import Solver
from latentplan.planning.spaces import Box
from latentplan.types import Context

PLANNERS = sorted(registry.names("planner"))
DOUBLE = torch.float64  # so that a batch and its rows break ties alike

every_planner = pytest.mark.parametrize("name", PLANNERS)


def build(name: str, **values) -> Solver:
    """Return a planner; settings that it does not have are left out."""
    planner = registry.get("planner", name)
    fields = planner.Config.__dataclass_fields__
    if "elites" in fields and "candidates" in values:
        values.setdefault("elites", min(16, values["candidates"]))
    return planner(planner.Config(**{k: v for k, v in values.items() if k in fields}))


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def problem(problems=3, states=4, actions=2, bound=1.0, seed=0):
    """Return model, context, goal and bounds, all in float64."""
    model = ToyModel(toy_spec(states, actions, bound), ToyModel.Config(dtype="float64"))
    draw = seeded(seed)
    context = torch.randn(problems, 1, states, generator=draw, dtype=DOUBLE)
    goal = torch.randn(problems, states, generator=draw, dtype=DOUBLE)
    limit = torch.full((actions,), bound, dtype=DOUBLE)
    return model, context, goal, (-limit, limit)


def objective(goal: Tensor) -> LatentDistance:
    return LatentDistance(goal, GoalDistance.Config(power=2, reduce="mean"))


def at(latents: Tensor, size: int = 2) -> Context:
    """Return the context of latents (B, T, D), between which no force of `size` acted."""
    return Context(latents, latents.new_zeros(len(latents), max(0, latents.shape[1] - 1), size))


def solve(planner, model, context, goal, space, *, seed=0, **rest):
    return planner.plan(
        at(context, len(space.low)),
        model,
        objective=objective(goal),
        space=space,
        generator=seeded(seed),
        **rest,
    )


def imagined(model, latents: Tensor, actions: Tensor) -> Tensor:
    """Return what the model imagines from latents (B, T, D) under actions (B, N, H, A)."""
    return model.rollout(model.prepare(at(latents, actions.shape[-1])), actions)


@torch.no_grad()
def cost_of(plan, model, context, goal) -> Tensor:
    latents = imagined(model, context, plan.actions[:, None])
    return objective(goal)(latents, plan.actions[:, None])[:, 0]


def rated(low: Tensor, high: Tensor, rate: Tensor | float, *, previous: Tensor) -> Box:
    """Return a box with a rate limit, for as many problems as there are previous actions."""
    limit = torch.as_tensor(rate, dtype=low.dtype).expand_as(low)
    return Box(low, high, problems=len(previous), rate=limit, previous=previous)


def change(actions: Tensor, previous: Tensor) -> Tensor:
    """Return how much each action (B, H, A) differs from the one before, exactly."""
    return torch.cat([previous[:, None], actions], dim=1).double().diff(dim=1).abs()


class Scripted:
    """A proposal of given actions (B, n, H, A), whatever the context."""

    def __init__(self, actions: Tensor) -> None:
        self.actions = actions
        self.asked: list[int] = []

    def sample(self, context, count, *, horizon, generator):
        self.asked.append(count)
        return self.actions


class HalfSpace:
    """The constraint that every latent's product with `normal` (D,) is at most `offset`."""

    def __init__(self, normal: Tensor, offset: float) -> None:
        self.normal, self.offset = normal, offset

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        return (latents @ self.normal - self.offset).amax(-1)
