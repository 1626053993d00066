"""The cross-entropy method for a discrete choice with continuous arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from latentplan.planning.problem import Problem, Scored, pick
from latentplan.planning.solver import Solver


class State(NamedTuple):
    """The elites, and the distributions of the next round's draws."""

    best: Scored  # (B, K)
    odds: Tensor  # (B, H, M) probability of each choice; M = 1 if the space has none
    mean: Tensor  # (B, 1, H, A)
    std: Tensor  # (B, 1, H, A)


class Categorical(Solver):
    """Cross-entropy method over a categorical choice and its Gaussian arguments.

    Rubinstein & Kroese (2004), section 5: each step has a categorical distribution over choices
    (picks on the object, motion primitives), refitted to their frequency among the elites, and a
    Gaussian over the arguments. A kernel of width `reach` spreads the probability of an elite's
    choice to nearby choices, since picks beside a good one are good as well; reach 0 is the
    textbook method. In a space without choices this is the Gaussian method of the textbook.

    Accuracy on linear-quadratic problems: within 1 % of the optimum, within 5 % with active
    constraints.
    """

    @dataclass(frozen=True)
    class Config(Solver.Config):
        """Settings; elites kept from the last round count among the candidates of the next."""

        elites: int = 16  # K
        reach: float = 0.1  # std of the kernel between choices; 1 = half the action range
        momentum: float = 0.1  # share of the last round's distributions that is kept
        explore: float = 0.05  # probability that a choice is drawn uniformly
        std_min: float = 0.01  # floor of the arguments' std

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            super().__post_init__()
            self._check("elites", 1, self.candidates)
            self._check("reach", 0)
            self._check("momentum", 0, 1)
            self._check("explore", 0, 1)
            self._check("std_min", 0)

    def first(self, problem: Problem) -> State:
        """Draw over the whole space, and fit the distributions to the elites."""
        best = self.opening(problem).best(self.config.elites)
        return State(best, *self._fit(problem, best))

    def next(self, problem: Problem, state: State, index: int) -> State:
        """Draw choices and arguments, and refit to the best."""
        c, (best, odds, mean, std) = self.config, state
        count, space = max(1, c.candidates - c.elites), problem.space
        drawn = problem.noisy(mean.expand(-1, count, -1, -1), std)
        if space.choices is None:
            drawn = space.project(drawn)
        else:
            unit = torch.rand(
                (problem.horizon, count),
                generator=problem.generator,
                device=odds.device,
                dtype=odds.dtype,
            )
            unit = unit.expand(len(odds), -1, -1).contiguous()
            made = torch.searchsorted(odds.cumsum(-1), unit)  # b h n
            made = made.clamp_max(space.choices.shape[1] - 1).transpose(1, 2)
            rows = pick(space.choices, made.flatten(1)).view(*made.shape, -1)  # b n h c
            rest = drawn.clamp(space.low, space.high)[..., rows.shape[-1] :]
            drawn = torch.cat([rows, rest], dim=-1)
        best = best.join(problem.score(drawn)).best(c.elites)
        now = self._fit(problem, best)
        return State(best, *(a.lerp(b, c.momentum) for a, b in zip(now, state[1:], strict=True)))

    def _fit(self, problem: Problem, best: Scored) -> tuple[Tensor, Tensor, Tensor]:
        """Return odds (B, H, M), mean and std (B, 1, H, A) of the elites."""
        c, actions = self.config, best.actions
        std, mean = torch.std_mean(actions, dim=1, correction=0, keepdim=True)
        std = std.maximum(c.std_min * problem.half)
        choices, valid = problem.space.choices, problem.space.valid
        if choices is None or valid is None:
            return actions.new_ones(len(actions), problem.horizon, 1), mean, std
        width = choices.shape[-1]
        unit = torch.where(problem.half > 0, problem.half, 1)[:width]  # 1 where it is constant
        made = actions[..., :width].transpose(1, 2)  # b h k c
        away = torch.cdist(made / unit, (choices / unit)[:, None])  # b h k m
        kernel = torch.exp(-0.5 * (away / max(c.reach, 1e-6)).square())
        kernel = torch.where(away == away.amin(-1, keepdim=True), 1, kernel)
        kernel = kernel * valid[:, None, None]
        odds = (kernel / kernel.sum(-1, keepdim=True)).mean(2)  # b h m
        uniform = valid / valid.sum(-1, keepdim=True)
        return odds.lerp(uniform[:, None].to(odds), c.explore), mean, std
