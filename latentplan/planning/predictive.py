"""Predictive sampling: perturb the best plan at the knots of a spline, and keep the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from latentplan.planning import noise
from latentplan.planning.problem import Problem, Scored
from latentplan.planning.solver import Solver


class State(NamedTuple):
    """The best candidate so far."""

    best: Scored  # (B, 1)


class PredictiveSampling(Solver):
    """Random local search around the best plan so far, the nominal plan.

    Howell et al., "Predictive Sampling: Real-time Behaviour Synthesis with MuJoCo" (arXiv
    2212.00541), section 3: the nominal plan is a spline whose knots are perturbed with Gaussian
    noise; the best candidate, the nominal plan included, becomes the next nominal plan. Here only
    the perturbation is a spline, so that a warm start keeps its shape; the noise falls by `decay`
    from round to round, and the first round covers the whole space.

    Accuracy on linear-quadratic problems with as many knots as steps: within 1 % of the optimum,
    within 5 % with active constraints. Fewer knots give smoother plans of a higher cost.
    """

    @dataclass(frozen=True)
    class Config(Solver.Config):
        """Settings."""

        knots: int = 4  # P, knots of the spline; at most the horizon
        degree: str = "cubic"  # zero, linear or cubic
        std: float = 0.3  # std of the noise at a knot; 1 = half the action range
        decay: float = 0.7  # factor of the std in each round

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            super().__post_init__()
            self._check("knots", 1)
            self._choose("degree", *noise.DEGREES)
            self._check("std", 0)
            self._check("decay", 0, 1)

    def first(self, problem: Problem) -> State:
        """Draw over the whole space, and keep the best."""
        return State(self.opening(problem).best(1))

    def next(self, problem: Problem, state: State, index: int) -> State:
        """Perturb the best candidate, and keep the best of all."""
        c, best = self.config, state.best.actions
        basis = noise.spline(problem.horizon, c.knots, c.degree, like=(best.device, best.dtype))
        centre = best.expand(-1, max(1, c.candidates - 1), -1, -1)
        std = c.std * c.decay ** (index - 1) * problem.half
        return State(state.best.join(problem.score(problem.scatter(centre, std, basis))).best(1))
