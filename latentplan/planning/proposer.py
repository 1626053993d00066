"""A model that proposes actions for plans in another model's latents."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from latentplan.errors import ConfigError, PlanningError
from latentplan.planning.history import ObservationHistory
from latentplan.protocols import ActionProposer, Dynamics, Proposal
from latentplan.types import Context


class Proposer:
    """A `protocols.Proposal` that sees the observations itself, through the eyes of its own model.

    So what VideoWorld generates competes in plans that CFM scores, though their latents differ.
    """

    def __init__(self, model: ActionProposer) -> None:
        """Take the model, a `protocols.Dynamics` as well; ConfigError where it cannot propose."""
        if not isinstance(model, ActionProposer):
            name = type(model).__name__
            raise ConfigError(
                "MPC.proposer: needs a model that proposes actions, such as videoworld, found "
                f"{name}"
            )
        self.model = model
        self.history = ObservationHistory(cast(Dynamics, model))
        self._proposal: Proposal | None = None

    def goal(self, task: str) -> None:
        """Take what to do; ConfigError for a task that the model does not know."""
        self._proposal = self.model.proposal(task)

    def sample(
        self, context: Context, count: int, *, horizon: int, generator: torch.Generator
    ) -> Tensor:
        """Return (1, n, H, A) for what was seen; `context`, of the other model, is not read."""
        if self._proposal is None:
            raise PlanningError("MPC.proposer: has no task; call goal first")
        own = self.history.context()
        return self._proposal.sample(own, count, horizon=horizon, generator=generator)
