"""Objective `pessimistic`: the cost of a plan where the members of an ensemble may disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentplan import shapes
from latentplan.errors import check_range
from latentplan.objectives.goal import GoalDistance
from latentplan.protocols import (
    Dynamics,
    EnsembleDynamics,
    GoalChecker,
    Objective,
    ObjectiveFactory,
)
from latentplan.types import Context, Goal

TINY = 1e-24  # a variance: the slope of a root is infinite at zero


class Pessimistic:
    """The mean over an ensemble's members of each member's cost, plus their disagreement.

    cost = mean + weight x standard deviation over the members: a plan that is cheap by one
    member's error costs more than one that all agree on. MOPO (Yu et al., arXiv 2005.13239)
    penalises each imagined step by the ensemble's uncertainty; here it is the members' cost of the
    whole plan, whose deviation has the unit of the cost.
    """

    @dataclass(frozen=True)
    class Config(GoalDistance.Config):
        """Settings: of the distance that each member has to the goal, and these."""

        weight: float = 1.0  # of the standard deviation; 0 is the mean alone

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            super().__post_init__()
            check_range("Pessimistic.weight", self.weight, 0)

    def __init__(
        self, config: Config | None = None, *, objective: ObjectiveFactory | None = None
    ) -> None:
        """Take settings, and the members' objective: by default the distance to the goal."""
        self.config = config or self.Config()
        self.objective = objective or GoalDistance(self.config)

    def check(self, goal: Goal, model: Dynamics) -> None:
        """Raise as the members' objective does."""
        if isinstance(self.objective, GoalChecker):
            for member in _members(model):
                self.objective.check(goal, member)

    def __call__(self, goal: Goal, context: Context, model: Dynamics) -> Disagreement:
        """Return the objective of an ensemble; a model that is none is its only member."""
        members = _members(model)
        whole = context.latents
        parts = model.split(whole) if isinstance(model, EnsembleDynamics) else [whole]
        objectives = [
            self.objective(goal, replace(context, latents=part), member)
            for part, member in zip(parts, members, strict=True)
        ]
        return Disagreement(objectives, weight=self.config.weight)


class Disagreement:
    """A `protocols.Objective`: mean and deviation of the members' objectives."""

    def __init__(self, objectives: Sequence[Objective], *, weight: float) -> None:
        """Take one objective a member."""
        self.objectives, self.weight = list(objectives), weight

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return cost (B, N) of latents (B, N, H, M d) reached by actions (B, N, H, A)."""
        count = len(self.objectives)
        shapes.check("Pessimistic.latents", latents, "B N H D")
        parts = latents.chunk(count, dim=-1)
        costs = torch.stack(
            [each(part, actions) for each, part in zip(self.objectives, parts, strict=True)]
        )  # m b n
        if self.weight == 0 or count == 1:
            return costs.mean(0)
        var, mean = torch.var_mean(costs, dim=0, correction=0)
        return mean + self.weight * var.clamp_min(TINY).sqrt()


def _members(model: Dynamics) -> Sequence[Dynamics]:
    return list(model.members) if isinstance(model, EnsembleDynamics) else [model]
