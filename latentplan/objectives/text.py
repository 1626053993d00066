"""Objective `text`: the distance to what a text says, in a space that latents and texts share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latentplan import shapes
from latentplan.errors import ConfigError, check_range
from latentplan.protocols import Dynamics, Objective, TextSpace
from latentplan.types import Context, Goal, Part


class TextGoal:
    """1 - cosine between latents and the goal's text, reduced over the horizon.

    A `protocols.ObjectiveFactory` for goals in words. The space is given, or the model's own
    (`protocols.TextSpace`); `latentplan.load` fits one to the labels of `data`.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings: of the cost, and of the space that `latentplan.load` fits."""

        reduce: str = "last"  # over the horizon: "last", "mean" or "min"
        data: str = ""  # store whose labels relate latents to texts; "" for the model's own space
        shots: int = 10  # labelled episodes a task that are used; 0 for all
        tokenizer: Part = Part("tokenizer")  # {run: RUN}: an LQAE that reads decoded latents
        ridge: float = 0.1  # weight decay of the linear map, as a share of the features' variance

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            if self.reduce not in ("last", "mean", "min"):
                raise ConfigError(f"TextGoal.reduce: {self.reduce!r} is not 'last', 'mean', 'min'")
            check_range("TextGoal.shots", self.shots, 0)
            check_range("TextGoal.ridge", self.ridge, 1e-6)
            if self.tokenizer.run and not self.data:
                raise ConfigError(
                    "TextGoal.data: found none, a tokenizer needs labels; name a store with some"
                )

    def __init__(self, config: Config | None = None, *, space: TextSpace | None = None) -> None:
        """Take settings, and the space of latents and texts (default: the model's own)."""
        self.config = config or self.Config()
        self.space = space

    def check(self, goal: Goal, model: Dynamics) -> None:
        """Raise ConfigError without a text, or without a space in which it means something."""
        self._space(goal, model).text_vector(goal.text)

    def __call__(self, goal: Goal, context: Context, model: Dynamics) -> Objective:
        """Return the distance of latents to the goal's text."""
        space = self._space(goal, model)
        return TextDistance(space, goal.text, problems=len(context.latents), config=self.config)

    def _space(self, goal: Goal, model: Dynamics) -> TextSpace:
        if not goal.text:
            raise ConfigError("goal.text: found none, objective text needs one: goal(text=...)")
        if self.space is not None:
            return self.space
        if not isinstance(model, TextSpace):
            raise ConfigError(
                f"objective text: {type(model).__name__} has no space of texts; fit one to a store "
                "with labels: objective.data=DATA.zarr"
            )
        return model


class TextDistance:
    """A `protocols.Objective`: the distance of latents to one text."""

    def __init__(
        self, space: TextSpace, text: str, *, problems: int, config: TextGoal.Config
    ) -> None:
        """Take the space, the text, and the number of problems that are solved at once."""
        self.space, self.problems, self.config = space, problems, config
        self.target = F.normalize(space.text_vector(text), dim=-1)

    @torch.no_grad()
    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return cost (B, N) of latents (B, N, H, D) reached by actions (B, N, H, A).

        Raises ShapeError if the latents do not fit. It has no gradient: words are discrete.
        """
        shapes.check("TextGoal.latents", latents, "B N H D", B=self.problems)
        if self.config.reduce == "last":
            latents = latents[:, :, -1:]
        vectors = F.normalize(self.space.describe(latents), dim=-1)
        cost = 1 - vectors @ self.target.to(vectors)  # b n h
        return cost.amin(-1) if self.config.reduce == "min" else cost.mean(-1)
