"""Hybrid planning: sampling finds the valleys, gradients go down into them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from latentplan.planning import cem, gradient
from latentplan.planning.problem import Problem, Scored
from latentplan.planning.solver import Solver


class Hybrid(Solver):
    """Rounds of the cross-entropy method, then Adam on its elites, each keeping its best point.

    As in Huang et al., "CEM-GD" (arXiv 2112.07746): few samples find where to descend, and the
    gradient of the model replaces many further draws. There one sequence of the first solve is
    descended; here the best `polished` of every solve and the elites' mean: so a step more never
    costs more than what the rounds alone would have answered.

    On linear-quadratic problems: within 0.1 % of the optimum, 2 % where a constraint binds.
    """

    closing = 1

    @dataclass(frozen=True)
    class Config(cem.CEM.Config):
        """Settings: of the cross-entropy method, and of the descent after it."""

        iterations: int = 12  # rounds and steps
        sampled: int = 2  # rounds among them; the others are steps of Adam
        polished: int = 8  # R, elites that go down at once
        rate: float = 0.1  # of the first step; 1 = half the action range
        decay: float = 0.9  # of the rate, each step

        def __post_init__(self) -> None:
            """Raise ConfigError where a setting is out of its range."""
            super().__post_init__()
            self._check("sampled", 1)
            self._check("polished", 1)
            self._check("rate", 0)
            self._check("decay", 0, 1)

    def __init__(self, config: Config | None = None) -> None:
        """Take settings; the defaults where there are none."""
        super().__init__(config)
        self._sampler = cem.CEM(self.config)

    def first(self, problem: Problem) -> cem.State:
        """Draw over the whole space."""
        return self._sampler.first(problem)

    def next(
        self, problem: Problem, state: cem.State | gradient.State, index: int
    ) -> cem.State | gradient.State:
        """Draw again; once all rounds are drawn, take one step."""
        c = self.config
        taken = index - c.sampled
        if isinstance(state, cem.State):
            if taken < 0:
                return self._sampler.next(problem, state, index)
            start, mean = state.best.first(min(c.polished, c.elites)), state.best.first(1)
            unknown = torch.full_like(mean.cost, torch.inf)  # the first step asks the model
            missed = None if mean.violation is None else torch.full_like(unknown, torch.inf)
            centre = Scored(problem.space.project(state.mean), unknown, missed)
            state = gradient.begin(start.join(centre))
        return gradient.step(problem, state, taken + 1, rate=c.rate * c.decay**taken)

    def answer(self, problem: Problem, state: cem.State | gradient.State) -> Scored:
        """Return the best point of all, or what the cross-entropy method answers without steps."""
        if isinstance(state, cem.State):
            return self._sampler.answer(problem, state)
        return gradient.arrive(problem, state).best(1)
