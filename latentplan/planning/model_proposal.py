"""Actions that a model generates for a task, as candidates of any planner."""

from __future__ import annotations

import torch
from torch import Tensor

from latentplan.errors import ConfigError, PlanningError
from latentplan.planning.history import ObservationHistory
from latentplan.protocols import ActionProposer, Dynamics, Proposal
from latentplan.types import Context


class ModelProposal:
    """A `protocols.Proposal` of a model, from that model's own history.

    The planning model may be another one: CFM can score the actions that VideoWorld generates,
    though their latents differ.
    """

    def __init__(self, model: Dynamics, history: ObservationHistory) -> None:
        """Take a model and its history; ConfigError if the model proposes no actions."""
        if not isinstance(model, ActionProposer):
            raise ConfigError(
                "MPC.propose: needs a model that proposes actions, such as videoworld, found "
                f"{type(model).__name__}"
            )
        self.model: ActionProposer = model
        self.history = history
        self.proposal: Proposal | None = None  # `model.proposal(task)` of the current task

    def sample(
        self, context: Context, count: int, *, horizon: int, generator: torch.Generator
    ) -> Tensor:
        """Return actions (1, n, H, A) from the model's own history; `context` is not used."""
        if self.proposal is None:
            raise PlanningError("MPC.proposers: found no task; call goal first")
        own = self.history.context()
        return self.proposal.sample(own, count, horizon=horizon, generator=generator)
