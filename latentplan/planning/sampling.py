"""What sampling planners share: the first candidates, their costs, the elites, the warm start.

A planner is then a loop: draw, cost, keep the best, draw again. Nothing here waits for the
device inside that loop; `finish` looks once at the end whether the plan is finite.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from latentplan import shapes
from latentplan.errors import PlanningError
from latentplan.protocols import ActionSpace, Dynamics, Objective
from latentplan.types import Plan

BLOCK = 2**15  # latent numbers of one rollout on a CPU: with more, its layers fall out of cache


def draw(
    context: Tensor,
    dynamics: Dynamics,
    *,
    space: ActionSpace,
    candidates: int,
    horizon: int,
    generator: Generator,
    warm_start: Tensor | None = None,
    hold: bool = False,
) -> Tensor:
    """Return the first candidates (B, N, H, A): fixed ones, then draws from the whole space.

    Fixed are the warm start (B, H, A) and, with `hold`, the space's nearest to zero: what leaves
    things as they are where actions are displacements. Raises ShapeError where the context
    (B, T, D), the space or the warm start do not fit the model, the horizon or each other.
    """
    problems, size = len(context), len(space.low)
    shapes.check("Planner.context", context, "B T D", T=dynamics.context, D=dynamics.latent_dim)
    if warm_start is not None:
        shapes.check("Planner.warm_start", warm_start, "B H A", B=problems, H=horizon, A=size)
    drawn = space.sample(candidates, horizon, generator=generator)
    shapes.check(
        "ActionSpace.sample", drawn, "B N H A", B=problems, N=candidates, H=horizon, A=size
    )
    fixed = [] if warm_start is None else [warm_start[:, None].to(drawn)]
    if hold:
        fixed.append(torch.zeros_like(drawn[:, :1]))
    if not fixed:
        return drawn
    return torch.cat([space.project(torch.cat(fixed, dim=1)), drawn], dim=1)[:, :candidates]


def costs(actions: Tensor, context: Tensor, dynamics: Dynamics, *, objective: Objective) -> Tensor:
    """Return the cost (B, N) of candidates (B, N, H, A); NaN and -inf become inf: they never win.

    On a CPU the rollout goes in blocks of candidates, each with all problems.
    """
    problems, candidates = actions.shape[:2]
    on_cpu = actions.device.type == "cpu"
    block = max(1, BLOCK // (problems * dynamics.latent_dim)) if on_cpu else candidates
    latents = [dynamics.rollout(context, part) for part in torch.split(actions, block, dim=1)]
    cost = objective(latents[0] if len(latents) == 1 else torch.cat(latents, dim=1), actions)
    shapes.check("Objective", cost, "B N", B=problems, N=candidates)
    return torch.where(cost.isfinite(), cost, torch.inf)


def elites(actions: Tensor, cost: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` cheapest of (B, N, H, A) and their cost (B, K), the best first.

    Where fewer have a finite cost, the best stands in for the others.
    """
    lowest, index = cost.topk(count, dim=1, largest=False)
    index = torch.where(lowest.isfinite(), index, index[:, :1])
    problem = torch.arange(len(index), device=index.device)[:, None]
    return actions[problem, index], cost[problem, index]


def finish(actions: Tensor, cost: Tensor) -> Plan:
    """Return the plan of actions (B, H, A) and cost (B,); PlanningError unless it is finite."""
    if not bool(cost.isfinite().all() & actions.isfinite().all()):
        bad = int((~cost.isfinite()).sum())
        raise PlanningError(
            f"no candidate has a finite cost in {bad} of {len(cost)} problems: "
            "the model or the objective gives NaN or infinity"
        )
    return Plan(actions, cost)


def shift(actions: Tensor, steps: int) -> Tensor:
    """Return the warm start (B, H, A) after `steps` were sent: the rest, its last one repeated."""
    horizon = actions.shape[1]
    left = actions[:, min(steps, horizon - 1) :]
    return torch.cat([left, left[:, -1:].expand(-1, horizon - left.shape[1], -1)], dim=1)
