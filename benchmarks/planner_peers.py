"""Planners of other packages on our toy problem.

Both are optional: `pip install "latentplan[benchmarks]"`. A peer draws from a normal distribution
of std 1 without bounds; the cost of its result is not corrected for that, which favours it. It
calls the model step by step, as a cost function of a user would, or, with `fast`, our unrolled
rollout, which isolates the time of the planner itself.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from planner_toy import ACTION, LATENT, Toy
from torch import Tensor

Solve = Callable[[int], Tensor]  # seed -> actions (B, H, A)


def installed() -> dict[str, str]:
    """Return the installed peers with their versions."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("stable-worldmodel", "pytorch-mppi"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def stable_worldmodel(
    kind: str,
    toy: Toy,
    *,
    candidates: int,
    iterations: int,
    batch_size: int,
    fast: bool,
    warm_start: Tensor | None = None,
) -> Solve:
    """Return a solve by its solver "cem", "icem" or "mppi", with 10 % elites.

    It solves `batch_size` problems at once, one batch after another.
    """
    import gymnasium

    with _bare("stable_worldmodel"):
        from stable_worldmodel import solver
    classes = {"cem": solver.CEMSolver, "icem": solver.ICEMSolver, "mppi": solver.MPPISolver}
    made = classes[kind](
        _Cost(toy, fast=fast),
        batch_size=batch_size,
        num_samples=candidates,
        n_steps=iterations,
        topk=max(1, candidates // 10),
        device=str(toy.start.device),
    )
    made.configure(
        action_space=gymnasium.spaces.Box(-1, 1, (1, ACTION)),
        n_envs=len(toy.start),
        config=SimpleNamespace(horizon=toy.horizon, action_block=1, warm_start=False),
    )
    info = {"z": toy.start, "goal": toy.goal}

    def solve(seed: int) -> Tensor:
        made.torch_gen.manual_seed(seed)
        with redirect_stdout(io.StringIO()), torch.inference_mode():  # it prints every solve
            actions: Tensor = made.solve(dict(info), init_action=warm_start)["actions"]
        return actions

    return solve


def pytorch_mppi(
    toy: Toy, *, candidates: int, iterations: int, warm_start: Tensor | None = None
) -> Solve:
    """Return a solve: one command per iteration, without shifting, one problem after another."""
    from pytorch_mppi import MPPI

    start = torch.zeros(toy.horizon, ACTION, device=toy.start.device)
    made = [
        MPPI(
            toy.model.step,
            lambda state, action, goal=goal: (state - goal).square().sum(-1),
            nx=LATENT,
            noise_sigma=torch.eye(ACTION, device=goal.device),
            num_samples=candidates,
            horizon=toy.horizon,
            device=goal.device,
            U_init=start,
        )
        for goal in toy.goal
    ]

    starts = start.expand(len(made), -1, -1) if warm_start is None else warm_start

    def solve(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.inference_mode():
            for each, z, first in zip(made, toy.start, starts, strict=True):
                each.U = first.clone()
                for _ in range(iterations):
                    each.command(z, shift_nominal_trajectory=False)
        plans: list[Tensor] = [each.U for each in made]
        return torch.stack(plans)

    return solve


class _Cost:
    """A cost model of stable-worldmodel: costs (B, S) of candidates (B, S, H, A)."""

    def __init__(self, toy: Toy, *, fast: bool) -> None:
        self._toy, self._fast = toy, fast

    def get_cost(self, info: dict[str, Any], candidates: Tensor) -> Tensor:
        z, goal = info["z"], info["goal"]  # each (B, S, D)
        if self._fast:
            latents = self._toy.model.rollout(z[:, 0], candidates)
            squared: Tensor = (latents - goal[:, :, None]).square().sum(-1)
            return squared.mean(-1)
        cost = torch.zeros(candidates.shape[:2], device=candidates.device)
        for action in candidates.unbind(2):
            z = self._toy.model.step(z, action)
            cost = cost + (z - goal).square().sum(-1)
        return cost / candidates.shape[2]


@contextmanager
def _bare(name: str) -> Iterator[None]:
    """Import sub-packages of `name` without running its __init__, which has more dependencies."""
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations is not None
        package = ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[name] = package
    yield
