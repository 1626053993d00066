"""Policy `generative`: the actions that a model generates, without a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from latentplan import registry
from latentplan.errors import ConfigError, PlanningError, check_range
from latentplan.planning.mpc import MPC
from latentplan.planning.problem import Problem, Scored
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
from latentplan.types import Context, Goal, Part, Spec


class GenerativePolicy(MPC):
    """The cheapest of the action sequences that a model proposes; of one candidate, its likeliest.

    How VideoWorld acts (Ren et al., arXiv 2501.09781): codes are generated, actions are decoded
    from them, nothing is searched. With more candidates the model's own rollout and the objective
    choose among them; for a goal in words alone, the first is best. The model is a
    `protocols.ActionProposer`, or others propose in its stead.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        candidates: int = 1  # sequences that are proposed for a plan
        horizon: int = 4  # H, actions of a plan
        chunk: int = 1  # actions sent before the model is asked again; at most the horizon
        deadline_ms: float | None = None  # of `act`, encoding included
        action_rate_limit: tuple[float, ...] = ()  # most that each number changes; () for any
        replan_threshold: float | None = None  # see MPC.Config
        dtype: str = "float32"  # of rollouts, see MPC.Config
        proposer: Part = Part("model")  # {run: RUN}: another model that proposes

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            check_range("GenerativePolicy.candidates", self.candidates, 1)
            check_range("GenerativePolicy.horizon", self.horizon, 1)
            self.loop()

        def loop(self) -> MPC.Config:
            """Return the settings of the control loop."""
            return MPC.Config(
                chunk=self.chunk,
                warm_start=False,
                deadline_ms=self.deadline_ms,
                action_rate_limit=self.action_rate_limit,
                replan_threshold=self.replan_threshold,
                dtype=self.dtype,
            )

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
        """Take a model, what compares candidates (by default goal), and who else proposes.

        Raises ConfigError if the model proposes nothing and nothing else does.
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
    """The best so far."""

    best: Scored  # (B, 1)


class Proposed(Solver):
    """The cheapest of the proposals alone: neither draws nor a warm start compete."""

    @dataclass(frozen=True)
    class Config(Solver.Config):
        """Settings."""

        candidates: int = 1
        iterations: int = 1

    def first(self, problem: Problem) -> State:
        """Ask the proposals, and keep the best; PlanningError without any."""
        if not problem.proposals:
            raise PlanningError("policy generative: found no proposals, need one at least")
        return State(problem.score(problem.propose(self.config.candidates)).best(1))

    def next(self, problem: Problem, state: State, index: int) -> State:
        """Ask again, and keep the best of all."""
        asked = problem.score(problem.propose(self.config.candidates))
        return State(state.best.join(asked).best(1))


class InOrder:
    """An objective, but for a goal in words alone the order of the candidates."""

    def __init__(self, objective: ObjectiveFactory) -> None:
        """Take the objective of other goals."""
        self.objective = objective

    def check(self, goal: Goal, model: Dynamics) -> None:
        """Raise as the objective does, unless the goal is in words."""
        if not _in_words(goal) and isinstance(self.objective, GoalChecker):
            self.objective.check(goal, model)

    def __call__(self, goal: Goal, context: Context, model: Dynamics) -> Objective:
        """Return the objective."""
        return _place if _in_words(goal) else self.objective(goal, context, model)


def _in_words(goal: Goal) -> bool:
    return bool(goal.text) and goal.observation is None and goal.mask is None


def _place(latents: Tensor, actions: Tensor) -> Tensor:
    """Return the place of each candidate as its cost (B, N)."""
    place = torch.arange(actions.shape[1], dtype=latents.dtype, device=latents.device)
    return place.expand(len(actions), -1)
