"""Categorical cross-entropy: how likely each discrete choice is good, and with what arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from latentplan.planning.problem import Problem, Scored, pick
from latentplan.planning.solver import Solver


class State(NamedTuple):
    """The elites, and the distributions that the next round is drawn from."""

    best: Scored  # (B, K)
    odds: Tensor  # (B, H, M) probability of each choice; M = 1 where there is none
    mean: Tensor  # (B, 1, H, A)
    std: Tensor  # (B, 1, H, A)


class Categorical(Solver):
    """The cross-entropy method for a discrete choice with continuous arguments.

    Rubinstein & Kroese (2004), section 5: the choice of every step (a pick on the object, a motion
    primitive) has a categorical distribution, refitted to how often the elites made it; the
    arguments have a Gaussian. Choices that lie within `reach` of an elite's share its
    probability, since picks beside a good one are good as well; reach 0 is the textbook. Where the
    space has no choices this is the textbook's Gaussian method.

    On linear-quadratic problems: within 1 % of the optimum, 5 % where a constraint binds.
    """

    @dataclass(frozen=True)
    class Config(Solver.Config):
        """Settings. The elites kept from the last round count as candidates of the next."""

        elites: int = 16  # K
        reach: float = 0.1  # std of the kernel between choices; 1 = half the action range
        momentum: float = 0.1  # share of the last round's distributions that is kept
        explore: float = 0.05  # share of the choices that is drawn uniformly
        std_min: float = 0.01  # floor of the arguments' std

        def __post_init__(self) -> None:
            """Raise ConfigError where a setting is out of its range."""
            super().__post_init__()
            self._check("elites", 1, self.candidates)
            self._check("reach", 0)
            self._check("momentum", 0, 1)
            self._check("explore", 0, 1)
            self._check("std_min", 0)

    def first(self, problem: Problem) -> State:
        """Draw over the whole space."""
        best = self.opening(problem).best(self.config.elites)
        return State(best, *self._fit(problem, best))

    def next(self, problem: Problem, state: State, index: int) -> State:
        """Draw choices and arguments, and keep the best."""
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
        unit = problem.half[:width].clamp_min(torch.finfo(actions.dtype).tiny)
        made = actions[..., :width].transpose(1, 2)  # b h k c
        away = torch.cdist(made / unit, (choices / unit)[:, None])  # b h k m
        kernel = torch.exp(-0.5 * (away / max(c.reach, 1e-6)).square())
        kernel = torch.where(away == away.amin(-1, keepdim=True), 1, kernel)
        kernel = kernel * valid[:, None, None]
        odds = (kernel / kernel.sum(-1, keepdim=True)).mean(2)  # b h m
        uniform = valid / valid.sum(-1, keepdim=True)
        return odds.lerp(uniform[:, None].to(odds), c.explore), mean, std
