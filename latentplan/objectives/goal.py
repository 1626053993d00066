"""The latent distance to a goal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentplan import shapes
from latentplan.errors import ConfigError, ShapeError, check_range


class GoalDistance:
    """`|z - goal|^power`, plus what the actions weigh, reduced over the horizon."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        power: float = 1.0  # of the Euclidean distance; 2 for linear-quadratic problems
        reduce: str = "last"  # over the horizon: "last", "mean" or "min"
        effort: tuple[float, ...] = ()  # weight of each action dimension's square; () for none

        def __post_init__(self) -> None:
            """Raise ConfigError where a setting is out of its range."""
            check_range("GoalDistance.power", self.power, 0.1, 8)
            if self.reduce not in ("last", "mean", "min"):
                raise ConfigError(
                    f"GoalDistance.reduce: {self.reduce!r} is not 'last', 'mean' or 'min'"
                )
            for weight in self.effort:
                check_range("GoalDistance.effort", weight, 0)

    def __init__(self, goal: Tensor, config: Config | None = None) -> None:
        """Take the goal's latent (B, D), one for each problem."""
        shapes.check("GoalDistance.goal", goal, "B D")
        self.goal = goal
        self.config = config or self.Config()
        self._effort = torch.tensor(self.config.effort, dtype=goal.dtype, device=goal.device)

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return cost (B, N) of latents (B, N, H, D) reached by actions (B, N, H, A).

        Effort is the mean over the horizon whatever `reduce` is. Raises ShapeError where the
        latents do not fit the goal or the effort weights do not fit the actions.
        """
        problems, size = self.goal.shape
        shapes.check("GoalDistance.latents", latents, "B N H D", B=problems, D=size)
        if self.config.reduce == "last":
            latents = latents[:, :, -1:]
        squared = (latents - self.goal[:, None, None]).square().sum(-1)  # B N H
        cost = squared if self.config.power == 2 else squared.pow(self.config.power / 2)
        cost = cost.amin(-1) if self.config.reduce == "min" else cost.mean(-1)
        if self.config.effort:
            if actions.shape[-1] != len(self.config.effort):
                raise ShapeError(
                    f"GoalDistance.effort: {len(self.config.effort)} weights for actions of "
                    f"{actions.shape[-1]} numbers"
                )
            cost = cost + (actions.square() @ self._effort).mean(-1)
        return cost
