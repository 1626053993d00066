"""Policy `generative`: execute actions that a model generates, without search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from latentplan import registry
from latentplan.errors import ConfigError, PlanningError, check_range
from latentplan.planning.mpc import MPC
from latentplan.planning.problem import Problem, Scored
from latentplan.planning.receding_horizon import RecedingHorizonConfig
from latentplan.planning.solver import Solver
from latentplan.protocols import (
    ActionProposer,
    Constraint,
    Dynamics,
    GoalChecker,
    Objective,
    ObjectiveFactory,
    Proposal,
)
from latentplan.types import Context, Goal, Spec


class GenerativePolicy(MPC):
    """Policy that executes the proposed action sequence of the lowest predicted cost.

    This is how VideoWorld acts (Ren et al., arXiv 2501.09781): it generates codes and decodes
    actions from them; nothing is optimised. With one candidate, the sequence is the most likely
    one. With several, the model's rollout and the objective rank them; if the goal is only a text,
    the first is taken. The model is a `protocols.ActionProposer` unless proposals or proposers are
    given.
    """

    @dataclass(frozen=True)
    class Config(RecedingHorizonConfig):
        """Settings."""

        candidates: int = 1  # action sequences generated for a plan
        horizon: int = 4  # H, actions of a plan; at least the chunk

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            super().__post_init__()
            check_range("GenerativePolicy.candidates", self.candidates, 1)
            check_range("GenerativePolicy.horizon", self.horizon, 1)

        def loop(self) -> MPC.Config:
            """Return the settings of the MPC loop, which does not search from the last plan."""
            shared = {each.name: getattr(self, each.name) for each in fields(RecedingHorizonConfig)}
            return MPC.Config(**shared, warm_start=False)

    def __init__(
        self,
        model: Dynamics,
        config: Config | None = None,
        *,
        objective: ObjectiveFactory | None = None,
        seed: int = 0,
        proposals: Sequence[Proposal] = (),
        proposers: Sequence[Dynamics] = (),
        constraints: Sequence[Constraint] = (),
    ) -> None:
        """Take a model, an objective (by default goal) that ranks candidates, and other proposers.

        Raises ConfigError if the model proposes no actions and no proposal or proposer is given.
        """
        c = config or self.Config()
        if not (proposals or proposers):
            if not isinstance(model, ActionProposer | Spec):
                raise ConfigError(
                    "policy generative: needs a model that proposes actions, such as videoworld, "
                    f"or proposals, found {type(model).__name__}"
                )
            proposers = [model]
        super().__init__(
            model,
            Proposed(Proposed.Config(candidates=c.candidates, horizon=c.horizon)),
            objective=InOrder(objective or registry.get("objective", "goal")()),
            seed=seed,
            config=c.loop(),
            proposals=proposals,
            proposers=proposers,
            constraints=constraints,
        )


class State(NamedTuple):
    """The best candidate so far."""

    best: Scored  # (B, 1)


class Proposed(Solver):
    """Solver that ranks proposals alone, without random draws or a warm start."""

    @dataclass(frozen=True)
    class Config(Solver.Config):
        """Settings."""

        candidates: int = 1
        iterations: int = 1

    def first(self, problem: Problem) -> State:
        """Sample the proposals and keep the best; PlanningError if there are none."""
        if not problem.proposals:
            raise PlanningError("policy generative: found no proposals, need one at least")
        return State(problem.score(problem.propose(self.config.candidates)).best(1))

    def next(self, problem: Problem, state: State, index: int) -> State:
        """Sample the proposals again, and keep the best of all."""
        proposed = problem.score(problem.propose(self.config.candidates))
        return State(state.best.join(proposed).best(1))


class InOrder:
    """Objective factory that ranks candidates by their order if the goal is only a text."""

    def __init__(self, objective: ObjectiveFactory) -> None:
        """Take the objective used for all other goals."""
        self.objective = objective

    def check(self, goal: Goal, model: Dynamics) -> None:
        """Raise as the objective does, unless the goal is only a text."""
        if not _is_text(goal) and isinstance(self.objective, GoalChecker):
            self.objective.check(goal, model)

    def __call__(self, goal: Goal, context: Context, model: Dynamics) -> Objective:
        """Return the objective for a goal."""
        return _order if _is_text(goal) else self.objective(goal, context, model)


def _is_text(goal: Goal) -> bool:
    return bool(goal.text) and goal.observation is None and goal.mask is None


def _order(latents: Tensor, actions: Tensor) -> Tensor:
    """Return the index of each candidate as its cost (B, N)."""
    order = torch.arange(actions.shape[1], dtype=latents.dtype, device=latents.device)
    return order.expand(len(actions), -1)
