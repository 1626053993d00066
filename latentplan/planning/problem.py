"""A planning problem: how its candidates are drawn, scored and compared.

Every planner loops over these operations: draw, score, keep the best, draw again. None of them
synchronises with the device, so that a whole solve can be one CUDA graph. All problems share the
same random numbers (common random numbers), so that a plan does not depend on the rest of the
batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any

import torch
from torch import Generator, Tensor

from latentplan import shapes
from latentplan.errors import ConfigError, LatentplanError, PlanningError
from latentplan.protocols import (
    ActionSpace,
    Constraint,
    Dynamics,
    ElasticDynamics,
    Objective,
    Proposal,
    StepProposal,
)
from latentplan.types import Context

ROWS = 1024  # rows of a rollout per CPU thread; activations of more do not fit into the cache
TIE = 5e-7  # half of the largest difference in violation that cost can outweigh


@dataclass(frozen=True)
class Scored:
    """Action sequences with their predicted cost and constraint violation."""

    actions: Tensor  # (B, N, H, A)
    cost: Tensor  # (B, N); inf if the model or the objective returns NaN or infinity
    violation: Tensor | None = None  # (B, N), 0 if all constraints hold; None without any

    @property
    def rank(self) -> Tensor:
        """The rank (B, N) that candidates are compared by: lower is better, feasibility first.

        Deb, "An efficient constraint handling method for genetic algorithms" (2000): feasible
        candidates come first, ordered by cost; infeasible ones follow, ordered by violation, and by
        cost if violations are equal, as they can be from an infeasible start.
        """
        if self.violation is None:
            return self.cost
        cost, violation = self.cost.double(), self.violation.double()
        feasible = (violation == 0) & cost.isfinite()
        worst = cost.detach().masked_fill(~feasible, -torch.inf).amax(1, keepdim=True)
        tie = cost / (1 + cost.abs()) + 1  # within (0, 2)
        infeasible = torch.where(worst.isfinite(), worst, 0) + violation + TIE * tie
        return torch.where(feasible, cost, torch.where(cost.isfinite(), infeasible, torch.inf))

    def best(self, count: int) -> Scored:
        """Return the `count` best candidates, the best first.

        If fewer have a finite cost, the best is repeated.
        """
        lowest, index = self.rank.topk(count, dim=1, largest=False)
        return self.take(torch.where(lowest < torch.inf, index, index[:, :1]))

    def take(self, index: Tensor) -> Scored:
        """Return the candidates of `index` (B, K)."""
        violation = None if self.violation is None else self.violation.gather(1, index)
        return Scored(pick(self.actions, index), self.cost.gather(1, index), violation)

    def first(self, count: int) -> Scored:
        """Return the first `count` candidates."""
        violation = None if self.violation is None else self.violation[:, :count]
        return Scored(self.actions[:, :count], self.cost[:, :count], violation)

    def detach(self) -> Scored:
        """Return the same values, detached from the autograd graph."""
        violation = None if self.violation is None else self.violation.detach()
        return Scored(self.actions.detach(), self.cost.detach(), violation)

    def join(self, other: Scored) -> Scored:
        """Return these candidates followed by those of `other`."""
        violation = None
        if self.violation is not None and other.violation is not None:
            violation = torch.cat([self.violation, other.violation], dim=1)
        return Scored(
            torch.cat([self.actions, other.actions], dim=1),
            torch.cat([self.cost, other.cost], dim=1),
            violation,
        )


@dataclass(frozen=True)
class Problem:
    """A batch of B planning problems: their contexts, model, objective and action space."""

    context: Context  # latents (B, T, D)
    dynamics: Dynamics
    objective: Objective
    space: ActionSpace
    generator: Generator
    horizon: int  # H
    warm_start: Tensor | None = None  # (B, W, H, A), the best first
    proposals: Sequence[Proposal] = ()
    constraints: Sequence[Constraint] = ()
    prepared: Any = None  # result of the model's `prepare`; set by `prepare`
    half: Tensor = field(init=False)  # (A,), half the range of each action: the unit of std

    def __post_init__(self) -> None:
        """Raise ShapeError if context or warm start do not fit the model or each other."""
        object.__setattr__(self, "half", (self.space.high - self.space.low) / 2)
        d = self.dynamics
        latents, t = self.context.latents, d.context
        shapes.check("Planner.context.latents", latents, "B T D", T=t, D=d.latent_dim)
        sizes = {"B": len(latents), "T": t - 1, "A": len(self.space.low)}
        shapes.check("Planner.context.actions", self.context.actions, "B T A", **sizes)
        if self.warm_start is not None:
            sizes = {"B": len(latents), "H": self.horizon, "A": len(self.space.low)}
            axes = "B H A" if self.warm_start.ndim != 4 else "B W H A"
            shapes.check("Planner.warm_start", self.warm_start, axes, **sizes)
            if self.warm_start.ndim == 3:
                object.__setattr__(self, "warm_start", self.warm_start[:, None])

    @property
    def problems(self) -> int:
        """The number of problems, B."""
        return len(self.context.latents)

    def prepare(self, tokens: int | None = None) -> Problem:
        """Return the problem with its context prepared by the model, as `score` needs it.

        With `tokens`, rollouts predict that many of each frame; ConfigError unless the model is a
        `protocols.ElasticDynamics` with as many.
        """
        d = self.dynamics
        if tokens is None:
            with _raised_by(d, "prepare"):
                return replace(self, prepared=d.prepare(self.context))
        with _raised_by(d, "prepare_prefix"):
            return replace(self, prepared=elastic(d, tokens).prepare_prefix(self.context, tokens))

    def first(self, count: int, *, hold: bool, proposed: float, near: float) -> Tensor:
        """Return the candidates (B, N, H, A) of the first round.

        In this order: the warm start; with `hold`, the action nearest to zero, which stands still
        if actions are displacements; the share `proposed` from the proposals; draws from the whole
        space; and, if there is a warm start, as many around it with std `near` (1 = half the
        range).
        """
        low, problems = self.space.low, self.problems
        given: list[Tensor] = []
        if self.warm_start is not None:
            given.append(self.warm_start.to(low))
        if hold:
            given.append(low.new_zeros(problems, 1, self.horizon, len(low)))
        for proposal in self.proposals:
            share = max(1, int(proposed * count) // len(self.proposals))
            given.append(self._propose(proposal, share))
        fixed = torch.cat(given, dim=1)[:, :count] if given else None
        free = count - (0 if fixed is None else fixed.shape[1])
        parts = [] if fixed is None else [self.space.project(fixed)]
        if self.warm_start is None:
            parts.append(self.draw(free))
        else:
            around = min(free, count // 2)
            parts.append(self.draw(free - around))
            centre = self.warm_start[:, :1].to(low).expand(-1, around, -1, -1)
            parts.append(self.scatter(centre, near * self.half))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def propose(self, count: int) -> Tensor:
        """Return about `count` actions (B, N, H, A) of the proposals, projected onto the space."""
        share = max(1, count // len(self.proposals))
        parts = [self._propose(proposal, share) for proposal in self.proposals]
        return self.space.project(torch.cat(parts, dim=1))

    def extend(self, proposal: StepProposal, context: Context, count: int) -> Tensor:
        """Return next actions (B, n, A) of a proposal from other contexts than the start's."""
        with _raised_by(proposal, "extend"):
            actions = proposal.extend(context, count, generator=self.generator)
        sizes = {"B": len(context.latents), "A": len(self.space.low)}
        shapes.check("StepProposal.extend", actions, "B n A", **sizes)
        return actions.to(self.space.low).nan_to_num(0.0, 0.0, 0.0)

    def draw(self, count: int) -> Tensor:
        """Return draws (B, N, H, A) from the whole space; ShapeError if their shape is wrong."""
        drawn = self.space.sample(count, self.horizon, generator=self.generator)
        sizes = {"B": self.problems, "N": count, "H": self.horizon, "A": len(self.space.low)}
        shapes.check("ActionSpace.sample", drawn, "B N H A", **sizes)
        return drawn

    def scatter(self, centre: Tensor, std: Tensor, basis: Tensor | None = None) -> Tensor:
        """Return normal draws (B, N, H, A) around `centre`, projected onto the space."""
        return self.space.project(self.noisy(centre, std, basis))

    def noisy(self, centre: Tensor, std: Tensor, basis: Tensor | None = None) -> Tensor:
        """Return `centre` (B, N, H, A) plus std times normal noise, which all B problems share.

        A `basis` (H, P) from `noise` correlates the noise over the horizon.
        """
        _, count, horizon, size = centre.shape
        steps = horizon if basis is None else basis.shape[1]
        noise = torch.randn(
            (count, steps, size),
            generator=self.generator,
            dtype=centre.dtype,
            device=centre.device,
        )
        if basis is not None:
            noise = basis @ noise
        return torch.addcmul(centre, std, noise)

    def score(self, actions: Tensor) -> Scored:
        """Return candidates (B, N, H, A) with their predicted cost and violation.

        On a CPU they are rolled out in blocks. Raises PlanningError if the model, the objective or
        a constraint raises, and ShapeError if the shape of what they return is wrong.
        """
        problems, count = actions.shape[:2]
        block = count
        if actions.device.type == "cpu":
            block = max(1, ROWS * torch.get_num_threads() // problems)
        if count <= block:
            return Scored(actions, *self._score(actions))
        parts = [self._score(part) for part in torch.split(actions, block, dim=1)]
        cost = torch.cat([cost for cost, _ in parts], dim=1)
        missed = [violation for _, violation in parts if violation is not None]
        return Scored(actions, cost, torch.cat(missed, dim=1) if missed else None)

    def _score(self, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        problems, count = actions.shape[:2]
        with _raised_by(self.dynamics, "rollout"):
            latents = self.dynamics.rollout(self.prepared, actions.to(self.context.latents.dtype))
        sizes = {"B": problems, "N": count, "H": self.horizon, "D": self.dynamics.latent_dim}
        shapes.check("Dynamics.rollout", latents, "B N H D", **sizes)
        latents = latents.to(actions.dtype)  # costs are computed in full precision
        with _raised_by(self.objective):
            cost = self.objective(latents, actions)
        shapes.check("Objective", cost, "B N", B=problems, N=count)
        cost = cost.nan_to_num(torch.inf, torch.inf, torch.inf)
        violation: Tensor | None = None
        for constraint in self.constraints:
            with _raised_by(constraint):
                excess = constraint(latents, actions)
            shapes.check("Constraint", excess, "B N", B=problems, N=count)
            excess = torch.where(excess.isnan(), torch.inf, excess.relu())
            violation = excess if violation is None else violation + excess
        return cost, violation

    def _propose(self, proposal: Proposal, count: int) -> Tensor:
        with _raised_by(proposal, "sample"):
            actions = proposal.sample(
                self.context, count, horizon=self.horizon, generator=self.generator
            )
        sizes = {"B": self.problems, "H": self.horizon, "A": len(self.space.low)}
        shapes.check("Proposal.sample", actions, "B n H A", **sizes)
        actions = actions.to(self.space.low)
        # A random draw replaces a whole sequence if any of its numbers is not finite.
        finite = actions.isfinite().all(-1).all(-1)[..., None, None]
        return torch.where(finite, actions, self.draw(actions.shape[1]))


class _raised_by:
    """Context that turns any exception into a PlanningError that names the component."""

    def __init__(self, part: object, method: str = "") -> None:
        self.part, self.method = part, method

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, LatentplanError):
            named = self.part if isinstance(self.part, FunctionType) else type(self.part)
            name = named.__name__
            where = f"{name}.{self.method}" if self.method else name
            raise PlanningError(f"{where} raised {type(error).__name__}: {error}") from error


def elastic(model: Dynamics, tokens: int) -> ElasticDynamics:
    """Return the model; ConfigError unless its rollouts can predict so many tokens of a frame."""
    if not isinstance(model, ElasticDynamics):
        raise ConfigError(
            "planner.budget: needs a model that can predict the first tokens of a frame alone, "
            f"such as elastic, found {type(model).__name__}; leave it out"
        )
    if tokens > model.tokens:
        raise ConfigError(
            f"planner.budget: {tokens} is more than the {model.tokens} tokens of a frame"
        )
    return model


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Return the rows `index` (B, K) of values (B, N, ...) as (B, K, ...)."""
    rest = values.shape[2:]
    rows = index.view(*index.shape, *[1] * len(rest)).expand(*index.shape, *rest)
    return values.gather(1, rows)
