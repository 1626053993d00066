"""A planner bound to a model, an objective and the precision of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentplan import shapes
from latentplan.errors import ConfigError, PlanningError
from latentplan.nn.observations import device_of
from latentplan.planning import graph, spaces
from latentplan.planning.execution import Prediction
from latentplan.planning.history import Histories
from latentplan.planning.model_proposal import ModelProposal
from latentplan.planning.precision import Precision
from latentplan.planning.problem import Problem
from latentplan.planning.solver import carry_over
from latentplan.protocols import (
    Constraint,
    Dynamics,
    GoalChecker,
    Objective,
    ObjectiveFactory,
    Planner,
    Proposal,
)
from latentplan.types import Array, Context, Goal, Observation, Plan


class ModelPlanner:
    """Planner of one model and objective; its only state is the goal and the random generator."""

    def __init__(
        self,
        model: Dynamics,
        planner: Planner,
        objective: ObjectiveFactory,
        *,
        seed: int = 0,
        proposals: Sequence[Proposal] = (),
        constraints: Sequence[Constraint] = (),
        dtype: str = "float32",
        cuda_graph: bool = False,
        action_rate_limit: Sequence[float] = (),
    ) -> None:
        """Take the components; ConfigError if a setting does not fit the model or its device."""
        self.model, self.objective = model, objective
        self.generator = torch.Generator(device_of(model)).manual_seed(seed)
        self.proposals, self.constraints = tuple(proposals), tuple(constraints)
        self._of_models = [each for each in self.proposals if isinstance(each, ModelProposal)]
        if cuda_graph and self._of_models:
            raise ConfigError(graph.INDIVISIBLE)
        self.precision = Precision(model, dtype)
        self.planner = graph.capture(planner, model) if cuda_graph else planner
        self.goal: Goal | None = None
        self.rate_limit = tuple(action_rate_limit)
        spaces.check_rate_limit("MPC.action_rate_limit", self.rate_limit, model.spec)

    def seed(self, seed: Any) -> None:
        """Restart the random numbers; from a SeedSequence or Generator, an int is drawn."""
        if not isinstance(seed, int | np.integer):
            seed = np.random.default_rng(seed).integers(2**63)
        self.generator.manual_seed(int(seed))

    def aim(self, goal: Goal) -> None:
        """Set the goal, also of the models that propose actions.

        Raises ConfigError or ShapeError, and keeps the previous one, if the objective or a model
        cannot use it.
        """
        made = [each.model.proposal(goal) for each in self._of_models]
        if isinstance(self.objective, GoalChecker):
            self.objective.check(goal, self.model)
        for each, proposal in zip(self._of_models, made, strict=True):
            each.proposal = proposal
        self.goal = goal

    def need_goal(self) -> Goal:
        """Return the goal; PlanningError unless one is set."""
        if self.goal is None:
            raise PlanningError("no goal is set: call goal(observation) first")
        return self.goal

    def plan(
        self,
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
        objective = self._objective(context)
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

    def evaluate(self, context: Context, observation: Observation, actions: Array) -> Array:
        """Return the predicted cost (N,) of actions (N, A) or (N, H, A), without drawing numbers.

        Raises ShapeError for another shape.
        """
        device = self.generator.device
        candidates = torch.as_tensor(np.asarray(actions), dtype=torch.float32)
        candidates = candidates[:, None] if candidates.ndim == 2 else candidates
        shapes.check("MPC.evaluate.actions", candidates, "N H A", A=self.model.spec.action.size)
        with torch.no_grad(), self.precision.rounding():
            problem = Problem(
                self.precision.context(context),
                self.precision.model,
                self._objective(context),
                spaces.from_observation(self.model.spec, observation, device=device),
                self.generator,
                candidates.shape[1],
            )
            cost: Array = problem.prepare().score(candidates[None].to(device)).cost[0].cpu().numpy()
        return cost

    @torch.no_grad()
    def predict(self, context: Context, plan: Plan, *, threshold: float) -> Prediction:
        """Return the latents predicted for a plan, in full precision."""
        ahead = self.model.rollout(self.model.prepare(context), plan.actions[:, None])
        return Prediction(torch.cat([context.latents[0, -1:], ahead[0, 0]]), threshold)

    def warm_up(self, histories: Histories) -> None:
        """Plan twice from the goal's observation or a blank one, then restore all state.

        Within an episode it does nothing.
        """
        goal = self.need_goal()
        if histories[self.model].started:
            return
        drawn, plan = self.generator.get_state(), None
        observation = histories.blank() | dict(goal.observation or {})
        histories.observe("MPC.warm_up", observation)
        for _ in range(2):  # without a warm start, and with one
            rest, context = carry_over(plan, 1), histories[self.model].context()
            plan = self.plan(context, observation, warm_start=rest)
        histories.clear()
        self.generator.set_state(drawn)

    @torch.no_grad()
    def _objective(self, context: Context) -> Objective:
        return self.objective(self.need_goal(), context, self.model)
