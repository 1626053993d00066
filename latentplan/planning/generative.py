"""What a model generates is the plan: a policy behind a planner's face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from latentplan.errors import PlanningError
from latentplan.planning.problem import Problem, Scored
from latentplan.planning.solver import Solver


class State(NamedTuple):
    """The best so far."""

    best: Scored  # (B, 1)


class Generate(Solver):
    """The cheapest of what proposals offer; with one candidate, what they hold likeliest.

    How VideoWorld acts (Ren et al., arXiv 2501.09781): codes are generated, actions are read off
    them, nothing is searched. With more candidates the model's own rollout and the objective
    choose among several such plans. A plan comes from proposals alone: neither from draws, nor
    from a warm start.
    """

    needs_proposals = True

    @dataclass(frozen=True)
    class Config(Solver.Config):
        """Settings."""

        candidates: int = 1
        iterations: int = 1
        horizon: int = 4
        hold: bool = False
        proposed: float = 1.0

    def first(self, problem: Problem) -> State:
        """Ask the proposals, and keep the best; PlanningError without any."""
        if not problem.proposals:
            raise PlanningError(
                "generate: needs a model that proposes actions, such as videoworld, or proposals; "
                "give them, or another planner"
            )
        return State(problem.score(problem.propose(self.config.candidates)).best(1))

    def next(self, problem: Problem, state: State, index: int) -> State:
        """Ask again, and keep the best of all."""
        asked = problem.score(problem.propose(self.config.candidates))
        return State(state.best.join(asked).best(1))
