"""Random shooting: draw action sequences, imagine them, take the best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from latentplan.errors import check_range
from latentplan.planning import sampling
from latentplan.protocols import ActionSpace, Dynamics, Objective
from latentplan.types import Plan


class Shooting:
    """The cheapest of independent draws; with horizon 1, how CFM plans.

    Yan et al., "Learning Predictive Representations for Deformable Objects Using Contrastive
    Estimation" (arXiv 2003.05436): 100 draws, picks uniform over the segmented object, drags
    uniform in the box, the smallest latent distance to the goal. The warm start competes too
    where one is given; the paper has none.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        candidates: int = 100  # N, action sequences drawn
        horizon: int = 1  # H, actions of one sequence
        hold: bool = False  # whether the action nearest to zero always competes

        def __post_init__(self) -> None:
            """Raise ConfigError where a setting is out of its range."""
            check_range("Shooting.candidates", self.candidates, 1)
            check_range("Shooting.horizon", self.horizon, 1)

    def __init__(self, config: Config | None = None) -> None:
        """Take settings; the defaults where there are none."""
        self.config = config or self.Config()

    @torch.no_grad()
    def plan(
        self,
        context: Tensor,
        dynamics: Dynamics,
        *,
        objective: Objective,
        space: ActionSpace,
        generator: Generator,
        warm_start: Tensor | None = None,
    ) -> Plan:
        """Return the cheapest sequence (B, H, A) for context (B, T, D) and its cost (B,).

        Raises ShapeError where shapes do not fit and PlanningError where no cost is finite.
        """
        c = self.config
        actions = sampling.draw(
            context,
            dynamics,
            space=space,
            candidates=c.candidates,
            horizon=c.horizon,
            generator=generator,
            warm_start=warm_start,
            hold=c.hold,
        )
        cost = sampling.costs(actions, context, dynamics, objective=objective)
        actions, cost = sampling.elites(actions, cost, 1)
        return sampling.finish(actions[:, 0], cost[:, 0])
