"""Objective `goal`: the latent distance to a goal observation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentplan import shapes
from latentplan.errors import ConfigError, ShapeError, check_range
from latentplan.nn.observations import checked, encode
from latentplan.protocols import Dynamics, Objective, SymmetricDynamics
from latentplan.types import Context, Goal


class GoalDistance:
    """`|z - goal|^power`, plus the effort of the actions, reduced over the horizon.

    A `protocols.ObjectiveFactory` for goals that are observations.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        power: float = 1.0  # of the Euclidean distance; 2 for linear-quadratic problems
        reduce: str = "last"  # over the horizon: "last", "mean" or "min"
        effort: tuple[float, ...] = ()  # weight of each action dimension's square; () for none

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            check_range("GoalDistance.power", self.power, 0.1, 8)
            if self.reduce not in ("last", "mean", "min"):
                raise ConfigError(
                    f"GoalDistance.reduce: {self.reduce!r} is not 'last', 'mean' or 'min'"
                )
            for weight in self.effort:
                check_range("GoalDistance.effort", weight, 0)

    def __init__(self, config: Config | None = None) -> None:
        """Take settings."""
        self.config = config or self.Config()
        self._goal: Goal | None = None
        self._latents: dict[Dynamics, Tensor] = {}  # of the goal, by model

    def check(self, goal: Goal, model: Dynamics) -> None:
        """Raise ConfigError without a goal observation, ShapeError if it does not fit the model."""
        self._latent(goal, model)

    def __call__(self, goal: Goal, context: Context, model: Dynamics) -> Objective:
        """Return the distance to the goal, which is encoded once.

        If several latents describe the goal, it is the distance to the nearest of them.
        """
        latent = self._latent(goal, model)
        if not isinstance(model, SymmetricDynamics):
            return LatentDistance(latent, self.config)
        found = [LatentDistance(each, self.config) for each in model.equivalents(latent)]
        return found[0] if len(found) == 1 else Nearest(found)

    def _latent(self, goal: Goal, model: Dynamics) -> Tensor:
        """Return the goal's latent (1, D)."""
        if goal is not self._goal:
            self._goal, self._latents = goal, {}
        if model not in self._latents:
            if goal.observation is None:
                raise ConfigError(
                    "goal.observation: found none, objective goal needs one; a goal in words needs "
                    "objective subgoal, or policy generative, and a model such as videoworld"
                )
            inputs = checked("goal.observation", model, goal.observation)
            self._latents[model] = encode(model, inputs)[:, 0]
        return self._latents[model]


class Nearest:
    """A `protocols.Objective`: the cost of the goal that is the cheapest to reach."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        """Take one objective for each goal."""
        self.objectives = tuple(objectives)

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return cost (B, N) of latents (B, N, H, D) reached by actions (B, N, H, A)."""
        return torch.stack([each(latents, actions) for each in self.objectives]).amin(0)


class LatentDistance:
    """A `protocols.Objective`: the distance of latents to given ones, as `GoalDistance` says."""

    def __init__(self, goal: Tensor, config: GoalDistance.Config | None = None) -> None:
        """Take the goal's latent (B, D), one for each problem."""
        shapes.check("LatentDistance.goal", goal, "B D")
        self.goal = goal
        self.config = config or GoalDistance.Config()
        self._effort = torch.tensor(self.config.effort, dtype=goal.dtype, device=goal.device)

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return cost (B, N) of latents (B, N, H, D) reached by actions (B, N, H, A).

        Effort is the mean over the horizon whatever `reduce` is. Raises ShapeError if the latents
        do not fit the goal or the effort weights do not fit the actions.
        """
        problems, size = self.goal.shape
        shapes.check("LatentDistance.latents", latents, "B N H D", B=problems, D=size)
        if self.config.reduce == "last":
            latents = latents[:, :, -1:]
        squared = (latents - self.goal[:, None, None]).square().sum(-1)  # b n h
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
