"""A plan in execution: which of its actions comes next, and until when they are sent."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from latentplan.planning.solver import carry_over
from latentplan.types import Context, Plan


@dataclass(frozen=True)
class Prediction:
    """The latents that a model predicts for a plan."""

    latents: Tensor  # (H + 1, D), the start first
    threshold: float  # largest error, as a share of the change predicted from the start

    def missed(self, latent: Tensor, step: int) -> bool:
        """Return whether a latent (D,) after `step` actions is too far from the prediction."""
        start, predicted = self.latents[0], self.latents[step]
        # Negated, so that a NaN counts as a miss and the plan is dropped.
        return not bool((latent - predicted).norm() <= self.threshold * (predicted - start).norm())


@dataclass
class Execution:
    """A plan (B = 1) and how much of its first chunk was sent."""

    plan: Plan
    chunk: int  # actions sent before planning again
    prediction: Prediction | None = None  # what ends the chunk early if it is missed
    sent: int = field(default=0, init=False)  # number of actions

    def done(self, context: Context) -> bool:
        """Return whether to plan again: the chunk was sent, or the context is not as predicted."""
        if self.sent == self.chunk:
            return True
        return self.prediction is not None and self.prediction.missed(
            context.latents[0, -1], self.sent
        )

    def next(self) -> Tensor:
        """Return the next action (1, A) and count it as sent."""
        action = self.plan.actions[:, self.sent]
        self.sent += 1
        return action

    def rest(self) -> Tensor | None:
        """Return the warm start (1, W, H, A) of the next search; None if all actions were sent."""
        return carry_over(self.plan, self.sent)
