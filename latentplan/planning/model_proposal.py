"""What a model generates for a task, as candidates of any planner."""

from __future__ import annotations

import torch
from torch import Tensor

from latentplan.errors import ConfigError, PlanningError
from latentplan.planning.history import ObservationHistory
from latentplan.protocols import ActionProposer, Dynamics, Proposal
from latentplan.types import Context


class ModelProposal:
    """A `protocols.Proposal` of a model with a history of its own observations and actions.

    So what VideoWorld generates competes in plans that CFM scores, though their latents differ.
    """

    def __init__(self, model: Dynamics, history: ObservationHistory) -> None:
        """Take the model and the history of the planning model, which may be the same one.

        ConfigError if the model proposes nothing.
        """
        if not isinstance(model, ActionProposer):
            raise ConfigError(
                "MPC.propose: needs a model that proposes actions, such as calibrated or "
                f"videoworld, found {type(model).__name__}"
            )
        self.model: ActionProposer = model
        self.history = history if history.model is model else ObservationHistory(model)
        self.proposal: Proposal | None = None  # for the goal, `model.proposal(goal)`

    def sample(
        self, context: Context, count: int, *, horizon: int, generator: torch.Generator
    ) -> Tensor:
        """Return (1, n, H, A) from the model's own context; `context` is another model's."""
        if self.proposal is None:
            raise PlanningError("MPC.proposers: found no goal; call goal first")
        own = self.history.context()
        return self.proposal.sample(own, count, horizon=horizon, generator=generator)


class OwnProposal(ModelProposal):
    """A `protocols.StepProposal` of the planning model itself: any of its latents is a start."""

    def sample(
        self, context: Context, count: int, *, horizon: int, generator: torch.Generator
    ) -> Tensor:
        """Return (B, n, H, A) from B contexts."""
        if self.proposal is None:
            raise PlanningError("MPC.propose: found no goal; call goal first")
        return self.proposal.sample(context, count, horizon=horizon, generator=generator)

    def extend(self, context: Context, count: int, *, generator: torch.Generator) -> Tensor:
        """Return next actions (B, n, A) from B contexts, whose latents may be predicted ones."""
        return self.sample(context, count, horizon=1, generator=generator)[:, :, 0]
