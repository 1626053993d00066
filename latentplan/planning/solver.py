"""The loop that all planners share: a first round, further rounds, deadline and checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from latentplan.errors import ConfigError, PlanningError, check_range
from latentplan.nn.torch_settings import own_torch_settings
from latentplan.planning.problem import Problem, Scored
from latentplan.protocols import ActionSpace, Constraint, Dynamics, Objective, Proposal
from latentplan.types import Context, Plan

CARRIED = 4  # sequences of a plan that the next one starts from


class State(Protocol):
    """The state that a planner carries from round to round: a NamedTuple of tensors alone."""

    @property
    def best(self) -> Scored:
        """The best candidates so far (B, K)."""


class Solver(ABC):
    """Base class of planners: a subclass defines `first` and `next` in a few lines each."""

    @dataclass(frozen=True)
    class Config:
        """Settings of every planner; a std of 1 is half the action range."""

        candidates: int = 256  # N, sequences compared in a round
        iterations: int = 2  # number of rounds; more never return a higher cost
        horizon: int = 1  # H, actions of one sequence
        hold: bool = True  # whether the action nearest to zero is a candidate in the first round
        proposed: float = 0.25  # share of the first round that proposals fill, if there are any
        std_init: float = 0.3  # std of the draws around the warm start in the first round
        budget: tuple[int, ...] = ()  # tokens of a frame that rollouts predict in each round, the
        # last in all further ones; () for all tokens. Needs a `protocols.ElasticDynamics`

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            self._check("candidates", 1)
            self._check("iterations", 1)
            self._check("horizon", 1)
            self._check("proposed", 0, 1)
            self._check("std_init", 0)
            for tokens in self.budget:
                check_range(f"{self._owner()}.budget", tokens, 1)
            if len(self.budget) > self.iterations:
                raise ConfigError(
                    f"{self._owner()}.budget: {len(self.budget)} rounds, iterations are "
                    f"{self.iterations}; give at most one number a round"
                )

        def _check(self, field: str, low: float | None = None, high: float | None = None) -> None:
            check_range(f"{self._owner()}.{field}", getattr(self, field), low, high)

        def _choose(self, field: str, *known: str) -> None:
            if getattr(self, field) not in known:
                names = " or ".join(map(repr, known))
                raise ConfigError(
                    f"{self._owner()}.{field}: {getattr(self, field)!r} is not {names}"
                )

        @classmethod
        def _owner(cls) -> str:
            return cls.__qualname__.split(".")[0]

    config: Any
    closing = 0  # rollouts in `answer`; before a deadline each reserves the time of a round

    def __init__(self, config: Any = None) -> None:
        """Take settings, by default those of `Config`."""
        self.config = config or type(self).Config()

    @property
    def horizon(self) -> int:
        """The number of actions of a plan, H."""
        return int(self.config.horizon)

    @property
    def rounds(self) -> int:
        """The number of rounds of a complete solve."""
        return int(self.config.iterations)

    def tokens(self, index: int) -> int | None:
        """Return the budget of round `index` (from 0); None for all tokens."""
        budget: tuple[int, ...] = self.config.budget
        return budget[min(index, len(budget) - 1)] if budget else None

    def _growth(self, index: int) -> float:
        """Return how many times as long as the round before round `index` may take.

        Twice the ratio of their tokens, since candidates that were kept are scored again.
        """
        before, now = self.tokens(index - 1), self.tokens(index)
        if before is None or now is None or before == now:
            return 1.0
        return 2 * max(1.0, now / before)

    @abstractmethod
    def first(self, problem: Problem) -> Any:
        """Return the State after the first round."""

    @abstractmethod
    def next(self, problem: Problem, state: Any, index: int) -> Any:
        """Return the State after round `index` (from 1), given the one before it."""

    def answer(self, problem: Problem, state: Any) -> Scored:
        """Return the sequence of the plan (B, 1): the best so far, unless overridden."""
        best: Scored = state.best.first(1)
        return best

    def opening(self, problem: Problem) -> Scored:
        """Draw and score the candidates of the first round."""
        c = self.config
        first = problem.first(c.candidates, hold=c.hold, proposed=c.proposed, near=c.std_init)
        return problem.score(first)

    @own_torch_settings()
    @torch.no_grad()
    def plan(
        self,
        context: Context,
        dynamics: Dynamics,
        *,
        objective: Objective,
        space: ActionSpace,
        generator: Generator,
        warm_start: Tensor | None = None,
        proposals: Sequence[Proposal] = (),
        constraints: Sequence[Constraint] = (),
        deadline_ms: float | None = None,
    ) -> Plan:
        """Return the best plan found for each of the B contexts; see `protocols.Planner`."""
        start = perf_counter()
        problem = Problem(
            context,
            dynamics,
            objective,
            space,
            generator,
            self.config.horizon,
            warm_start,
            tuple(proposals),
            tuple(constraints),
        )
        done, found, elites = self.solve(problem, start=start, deadline_ms=deadline_ms)
        return finish(found, elites, start=start, done=done, rounds=self.rounds)

    def solve(
        self, problem: Problem, *, start: float = 0, deadline_ms: float | None = None
    ) -> tuple[int, Scored, Tensor]:
        """Return the number of rounds done, the answer (B, 1) and the elites (B, K, H, A).

        With a deadline, a further round begins only if it and the answer would end in time should
        each take as long as the longest round so far, or with more tokens as much longer. Without
        one, nothing synchronises with the device.
        """
        problem = problem.prepare(self.tokens(0))  # once a solve, and once a further budget
        state, done, longest, last = self.first(problem), 1, 0.0, start
        while done < self.rounds:
            if deadline_ms is not None:
                _wait(problem.context.latents)
                now = perf_counter()
                longest, last = max(longest, now - last), now
                ahead = (1 + self.closing) * self._growth(done) * longest
                if (now - start + ahead) * 1e3 > deadline_ms:
                    break
            if self.tokens(done) != self.tokens(done - 1):
                problem = problem.prepare(self.tokens(done))
                # costs by different tokens cannot be compared
                state = state._replace(best=problem.score(state.best.actions))
            state = self.next(problem, state, done)
            done += 1
        found = self.answer(problem, state)
        if deadline_ms is not None:
            _wait(problem.context.latents)
            took = (perf_counter() - start) * 1e3
            if done == 1 and took > deadline_ms:
                raise PlanningError(
                    f"deadline_ms: one iteration takes {took:.1f} ms, only {deadline_ms:.1f} ms "
                    "are left; set it higher, or planner.candidates or planner.horizon lower"
                )
        return done, found, state.best.actions


def finish(found: Scored, elites: Tensor, *, start: float, done: int, rounds: int) -> Plan:
    """Return the Plan of an answer (B, 1); PlanningError unless it is finite."""
    actions, cost = found.actions[:, 0], found.cost[:, 0]
    violation = None if found.violation is None else found.violation[:, 0]
    usable = cost.isfinite().all() & actions.isfinite().all()
    finite = usable if violation is None else usable & violation.isfinite().all()
    if not bool(finite):  # waits for the device, once a plan
        raise _not_finite(cost, violation if bool(usable) else None)
    return Plan(
        actions,
        cost,
        violation=violation,
        elites=elites,
        iterations=done,
        complete=done == rounds,
        milliseconds=(perf_counter() - start) * 1e3,
    )


def _not_finite(cost: Tensor, violation: Tensor | None) -> PlanningError:
    """Return the error of an answer whose cost, or whose violation if given, is not finite."""
    found, name, culprit = cost, "cost", "the model or the objective"
    if violation is not None:
        found, name, culprit = violation, "violation", "a constraint"
    bad = int((~found.isfinite()).sum())
    return PlanningError(
        f"no candidate has a finite {name} in {bad} of {len(found)} problems: "
        f"{culprit} gives NaN or infinity"
    )


def shift(actions: Tensor, steps: int) -> Tensor:
    """Return actions (..., H, A) without the first `steps`, padded by repeating the last."""
    horizon = actions.shape[-2]
    rest = torch.arange(steps, steps + horizon, device=actions.device).clamp_max(horizon - 1)
    return actions[..., rest, :]


def carry_over(plan: Plan | None, sent: int) -> Tensor | None:
    """Return the warm start (1, W, H, A) after `sent` actions of a plan were sent.

    It holds the plan and its best elites, shifted by `sent`; None if all actions were sent.
    """
    if plan is None or sent >= plan.actions.shape[1]:
        return None
    elites = plan.actions[:, None] if plan.elites is None else plan.elites
    best = torch.cat([plan.actions[:, None], elites[:, : CARRIED - 1]], dim=1)
    return shift(best, sent)


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
