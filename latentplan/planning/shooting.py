"""Random shooting: draw action sequences, imagine them, take the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from latentplan.planning.problem import Problem, Scored
from latentplan.planning.solver import Solver


class State(NamedTuple):
    """The best so far."""

    best: Scored  # (B, 1)


class Shooting(Solver):
    """The cheapest of independent draws; with horizon 1, how CFM plans.

    Yan et al., "Learning Predictive Representations for Deformable Objects Using Contrastive
    Estimation" (arXiv 2003.05436): 100 draws, picks uniform over the segmented object, drags
    uniform in the box, the smallest latent distance to the goal. The warm start competes too
    where one is given; the paper has none.

    On linear-quadratic problems of one action of two numbers: within 10 % by 4096 draws; of more
    numbers, no fair count of draws comes near.
    """

    @dataclass(frozen=True)
    class Config(Solver.Config):
        """Settings."""

        candidates: int = 100
        iterations: int = 1
        hold: bool = False

    def first(self, problem: Problem) -> State:
        """Draw, and keep the best."""
        return State(self.opening(problem).best(1))

    def next(self, problem: Problem, state: State, index: int) -> State:
        """Draw again, and keep the best of all."""
        drawn = problem.score(problem.draw(self.config.candidates))
        return State(state.best.join(drawn).best(1))
