"""Actions that a model generates for a task, as candidates of any planner."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentplan.errors import ConfigError, PlanningError
from latentplan.planning.history import Histories, ObservationHistory
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
                "MPC.propose: needs a model that proposes actions, such as calibrated or "
                f"videoworld, found {type(model).__name__}; set mpc.propose=false"
            )
        self.model: ActionProposer = model
        self.history = history
        self.proposal: Proposal | None = None  # `model.proposal(goal)` of the current goal

    def sample(
        self, context: Context, count: int, *, horizon: int, generator: torch.Generator
    ) -> Tensor:
        """Return actions (1, n, H, A) from the model's own history; `context` is not used."""
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


def proposers(
    model: Dynamics, others: Sequence[Dynamics], *, own: bool | str
) -> Sequence[Dynamics]:
    """Return the models that propose: `others`, and with `own` the planning model before them.

    With "auto", the planning model is one if it proposes actions.
    """
    proposes = isinstance(model, ActionProposer) if own == "auto" else own
    return [model, *others] if proposes and model not in others else others


def of_models(
    models: Sequence[Dynamics], histories: Histories, planning: Dynamics
) -> list[ModelProposal]:
    """Return the proposal of each model; ConfigError if one proposes no actions."""
    kinds = [OwnProposal if each is planning else ModelProposal for each in models]
    return [kind(each, histories[each]) for kind, each in zip(kinds, models, strict=True)]
