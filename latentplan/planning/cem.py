"""The cross-entropy method: draw, keep the elites, draw again nearer to them."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Generator, Tensor

from latentplan.errors import ConfigError, check_range
from latentplan.planning import sampling
from latentplan.protocols import ActionSpace, Dynamics, Objective
from latentplan.types import Plan


class CEM:
    """The best sequence that a distribution, refitted to its elites each round, has drawn.

    Rubinstein & Kroese, "The Cross-Entropy Method" (2004), with the elites kept from round to
    round (iCEM, Pinneri et al., arXiv 2008.06389). The textbook refits one Gaussian. Here a draw
    is the kernel-smoothed elites of Liu & West, "Combined Parameter and State Estimation in
    Simulation-Based Filtering" (2001), eq. 10.3.7:

        a = mean + l (elite - mean) + sqrt(1 - l^2) std * noise,    l = locality

    Its mean and its variance are those of the elites for any l, so it narrows as the textbook
    does (l = 0 is the textbook), but it keeps apart elites that lie in several places, as
    picks on an object do: their mean is a bad pick.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        candidates: int = 256  # N, sequences drawn in a round
        iterations: int = 2  # rounds
        elites: int = 16  # K, the best so far, from which the next round is drawn
        horizon: int = 1  # H, actions of one sequence
        locality: float = 0.7  # l: 0 draws round the elites' mean, towards 1 round each elite
        momentum: float = 0.1  # share of the last round's mean and std that is kept
        std_init: float = 0.3  # round the warm start in the first round; 1 = half the action range
        std_min: float = 0.03  # floor in later rounds; 1 = half the action range
        hold: bool = True  # whether the action nearest to zero always competes
        answer: str = "best"  # the best sequence ever drawn, or the "mean" of the last elites

        def __post_init__(self) -> None:
            """Raise ConfigError where a setting is out of its range."""
            check_range("CEM.candidates", self.candidates, 1)
            check_range("CEM.iterations", self.iterations, 1)
            check_range("CEM.elites", self.elites, 1, self.candidates)
            check_range("CEM.horizon", self.horizon, 1)
            check_range("CEM.locality", self.locality, 0, 1)
            check_range("CEM.momentum", self.momentum, 0, 1)
            check_range("CEM.std_init", self.std_init, 0)
            check_range("CEM.std_min", self.std_min, 0)
            if self.answer not in ("best", "mean"):
                raise ConfigError(f"CEM.answer: {self.answer!r} is not 'best' or 'mean'")

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
        """Return the best sequence (B, H, A) for context (B, T, D) and its cost (B,).

        With a warm start (B, H, A), it and draws round it are half of the first round. Raises
        ShapeError where shapes do not fit and PlanningError where no cost is finite.
        """
        c = self.config
        half = (space.high - space.low) / 2  # (A,)

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
        if warm_start is not None:
            near = c.candidates // 2
            centre = warm_start[:, None].to(actions).expand(-1, near, -1, -1)
            around = space.project(_scatter(centre, c.std_init * half, generator))
            actions = torch.cat([actions[:, : c.candidates - near], around], dim=1)
        cost = sampling.costs(actions, context, dynamics, objective=objective)
        best, best_cost = sampling.elites(actions, cost, c.elites)  # B K H A, B K
        mean, std = best.mean(1, keepdim=True), best.std(1, correction=0, keepdim=True)

        parent = torch.arange(c.candidates, device=actions.device) % c.elites
        for _ in range(c.iterations - 1):
            centre = mean.lerp(best, c.locality)[:, parent]
            spread = (sqrt(1 - c.locality**2) * std).maximum(c.std_min * half)
            actions = space.project(_scatter(centre, spread, generator))
            cost = sampling.costs(actions, context, dynamics, objective=objective)
            actions, cost = torch.cat([best, actions], 1), torch.cat([best_cost, cost], 1)
            best, best_cost = sampling.elites(actions, cost, c.elites)
            mean = best.mean(1, keepdim=True).lerp(mean, c.momentum)
            std = best.std(1, correction=0, keepdim=True).lerp(std, c.momentum)

        if c.answer == "mean":
            best = space.project(mean)
            best_cost = sampling.costs(best, context, dynamics, objective=objective)
        return sampling.finish(best[:, 0], best_cost[:, 0])


def _scatter(centre: Tensor, std: Tensor, generator: Generator) -> Tensor:
    """Return (B, N, H, A) normal draws round `centre`, with the same noise for all problems."""
    noise = torch.randn(
        centre.shape[1:], generator=generator, dtype=centre.dtype, device=centre.device
    )
    return centre + std * noise
