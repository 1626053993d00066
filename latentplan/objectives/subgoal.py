"""Objective `subgoal`: the distance to where the model predicts that a task leads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from latentplan.errors import ConfigError, check_range
from latentplan.objectives.goal import GoalDistance, LatentDistance
from latentplan.protocols import Dynamics, SubgoalModel
from latentplan.types import Context, Goal


class Subgoal:
    """The distance to the latent that the model predicts a few steps ahead, for each plan again.

    A goal in words is enough. The model is a `protocols.SubgoalModel`, such as videoworld.
    """

    @dataclass(frozen=True)
    class Config(GoalDistance.Config):
        """Settings: of the distance, and how far ahead."""

        steps: int | None = None  # ahead; None: the planner's horizon (`latentplan.load`), else 1

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            super().__post_init__()
            if self.steps is not None:
                check_range("Subgoal.steps", self.steps, 1)

    def __init__(self, config: Config | None = None) -> None:
        """Take settings."""
        self.config = config or self.Config()
        self._goal: Goal | None = None
        self._predict: Callable[[Context, int], Tensor] | None = None

    def check(self, goal: Goal, model: Dynamics) -> None:
        """Raise ConfigError unless the model predicts where the task leads."""
        self._goal, self._predict = goal, _predictor(goal, model)

    def __call__(self, goal: Goal, context: Context, model: Dynamics) -> LatentDistance:
        """Return the distance to the latent predicted from the context."""
        if goal is not self._goal or self._predict is None:
            self.check(goal, model)
        assert self._predict is not None
        return LatentDistance(self._predict(context, self.config.steps or 1), self.config)


def _predictor(goal: Goal, model: Dynamics) -> Callable[[Context, int], Tensor]:
    if not isinstance(model, SubgoalModel):
        raise ConfigError(
            "objective subgoal: needs a model that predicts where a task leads, such as "
            f"videoworld, found {type(model).__name__}"
        )
    return model.subgoal(goal.text)
