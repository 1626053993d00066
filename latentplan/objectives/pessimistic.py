"""What a plan costs where the models of an ensemble may disagree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentplan import shapes
from latentplan.errors import ShapeError, check_range
from latentplan.objectives.goal import GoalDistance
from latentplan.protocols import Objective

TINY = 1e-24  # a variance: the slope of a root is infinite at nought


class Pessimistic:
    """The mean over an ensemble's members of what each says a plan costs, plus their disagreement.

    cost = mean + weight x standard deviation over the members: a plan that looks good by one
    member's error costs more than one that all agree on. MOPO (Yu et al., arXiv 2005.13239)
    penalises each imagined step by the ensemble's uncertainty; here what counts is how far the
    members disagree on the cost of the whole plan, which has the unit of the cost.
    """

    @dataclass(frozen=True)
    class Config(GoalDistance.Config):
        """Settings: of the distance that each member has to the goal, and these."""

        members: int = 1  # M, of the ensemble; `latentplan.load` counts the runs
        weight: float = 1.0  # of the standard deviation; 0 is the mean alone

        def __post_init__(self) -> None:
            """Raise ConfigError where a setting is out of its range."""
            super().__post_init__()
            check_range("Pessimistic.members", self.members, 1)
            check_range("Pessimistic.weight", self.weight, 0)

    def __init__(
        self,
        goal: Tensor,
        config: Config | None = None,
        *,
        objective: Callable[[Tensor], Objective] | None = None,
    ) -> None:
        """Take the goal's latent (B, M d), and what makes an objective of a member's (B, d).

        Without the latter it is the distance to the goal. Raises ShapeError where the latent is
        not that of M members.
        """
        shapes.check("Pessimistic.goal", goal, "B D")
        self.config = c = config or self.Config()
        if goal.shape[1] % c.members:
            raise ShapeError(
                f"Pessimistic.goal: found {goal.shape[1]} numbers, need a multiple of "
                f"members={c.members}"
            )
        each = goal.chunk(c.members, dim=-1)
        self.objectives = [
            GoalDistance(part, c) if objective is None else objective(part) for part in each
        ]
        self.latent_dim = goal.shape[1]

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return cost (B, N) of latents (B, N, H, M d) reached by actions (B, N, H, A)."""
        shapes.check("Pessimistic.latents", latents, "B N H D", D=self.latent_dim)
        parts = latents.chunk(len(self.objectives), dim=-1)
        costs = torch.stack(
            [each(part, actions) for each, part in zip(self.objectives, parts, strict=True)]
        )  # m b n
        if self.config.weight == 0 or len(costs) == 1:
            return costs.mean(0)
        var, mean = torch.var_mean(costs, dim=0, correction=0)
        return mean + self.config.weight * var.clamp_min(TINY).sqrt()
