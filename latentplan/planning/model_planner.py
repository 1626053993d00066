"""A planner bound to a model, an objective and the precision of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentplan.planning import graph, spaces
from latentplan.planning.history import Histories
from latentplan.planning.precision import Precision
from latentplan.planning.problem import Problem
from latentplan.planning.solver import carry_over
from latentplan.protocols import (
    Constraint,
    Dynamics,
    Objective,
    ObjectiveFactory,
    Planner,
    Proposal,
)
from latentplan.types import Context, Goal, Observation, Plan


@dataclass(frozen=True)
class Prediction:
    """The latents that a model predicts for a plan."""

    latents: Tensor  # (H + 1, D), the start first

    def missed(self, latent: Tensor, step: int, threshold: float) -> bool:
        """Return whether a latent (D,) is further from the prediction than the threshold allows.

        The error is relative to the change predicted from the start to `step`.
        """
        start, predicted = self.latents[0], self.latents[step]
        # Negated, so that a NaN counts as a miss and the plan is dropped.
        return not bool((latent - predicted).norm() <= threshold * (predicted - start).norm())


class ModelPlanner:
    """Planner of one model and objective; its only state is the random generator."""

    def __init__(
        self,
        model: Dynamics,
        planner: Planner,
        objective: ObjectiveFactory,
        *,
        generator: torch.Generator,
        proposals: Sequence[Proposal] = (),
        constraints: Sequence[Constraint] = (),
        dtype: str = "float32",
        cuda_graph: bool = False,
        action_rate_limit: Sequence[float] = (),
    ) -> None:
        """Take the components; ConfigError if a setting does not fit the model or its device."""
        self.model, self.objective, self.generator = model, objective, generator
        self.proposals, self.constraints = proposals, constraints
        self.precision = Precision(model, dtype)
        self.planner = graph.capture(planner, model) if cuda_graph else planner
        self.rate_limit = tuple(action_rate_limit)
        spaces.check_rate_limit("MPC.action_rate_limit", self.rate_limit, model.spec)

    def plan(
        self,
        goal: Goal,
        context: Context,
        observation: Observation,
        *,
        previous: Tensor | None = None,
        warm_start: Tensor | None = None,
        deadline_ms: float | None = None,
    ) -> Plan:
        """Return the plan (B = 1) from a context; the rate limit starts at `previous` (1, A)."""
        space = spaces.from_observation(
            self.model.spec,
            observation,
            device=self.generator.device,
            rate_limit=self.rate_limit,
            previous=previous,
        )
        objective = self._objective(goal, context)
        with self.precision.rounding():
            return self.planner.plan(
                self.precision.context(context),
                self.precision.model,
                objective=objective,
                space=space,
                generator=self.generator,
                warm_start=warm_start,
                proposals=self.proposals,
                constraints=self.constraints,
                deadline_ms=deadline_ms,
            )

    def evaluate(
        self, goal: Goal, context: Context, observation: Observation, actions: Tensor
    ) -> Tensor:
        """Return the predicted cost (N,) of candidates (N, H, A), without drawing numbers."""
        device = self.generator.device
        with torch.no_grad(), self.precision.rounding():
            problem = Problem(
                self.precision.context(context),
                self.precision.model,
                self._objective(goal, context),
                spaces.from_observation(self.model.spec, observation, device=device),
                self.generator,
                actions.shape[1],
            )
            return problem.prepare().score(actions[None].to(device)).cost[0]

    @torch.no_grad()
    def predict(self, context: Context, plan: Plan) -> Prediction:
        """Return the latents predicted for a plan, in full precision."""
        ahead = self.model.rollout(self.model.prepare(context), plan.actions[:, None])
        return Prediction(torch.cat([context.latents[0, -1:], ahead[0, 0]]))

    def warm_up(self, goal: Goal, histories: Histories) -> None:
        """Plan twice from the goal's observation or a blank one, then restore all state."""
        drawn, plan = self.generator.get_state(), None
        observation = histories.blank() | dict(goal.observation or {})
        histories.observe("MPC.warm_up", observation)
        for _ in range(2):  # without a warm start, and with one
            rest, context = carry_over(plan, 1), histories[self.model].context()
            plan = self.plan(goal, context, observation, warm_start=rest)
        histories.clear()
        self.generator.set_state(drawn)

    @torch.no_grad()
    def _objective(self, goal: Goal, context: Context) -> Objective:
        return self.objective(goal, context, self.model)
