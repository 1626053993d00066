"""Beam search over proposals: extend the best plans by what is proposed at their imagined ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from latentplan.planning.problem import Problem, Scored
from latentplan.planning.solver import Solver
from latentplan.protocols import StepProposal
from latentplan.types import Context


class State(NamedTuple):
    """The plans that are extended."""

    best: Scored  # (B, W)


class Beam(Solver):
    """The best of sequences that grow one action a round, the `width` best kept.

    Round i keeps the first i actions of each kept plan, asks the proposals for the next from the
    latent that the model predicts there, and scores the plan with no motion after it. A plan never
    gets worse by another round, since the shorter ones compete. Without proposals, actions are
    drawn. Beam search over a learned model's own proposals: Janner et al., Trajectory Transformer
    (arXiv 2106.02039, section 3.2).
    """

    @dataclass(frozen=True)
    class Config(Solver.Config):
        """Settings."""

        candidates: int = 128  # of the first round
        iterations: int = 3  # rounds: actions that are searched; more than the horizon do nothing
        horizon: int = 3  # H
        proposed: float = 0.5  # share of the first round from proposals
        width: int = 24  # W, plans kept
        branches: int = 8  # next actions of each

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            super().__post_init__()
            self._check("width", 1)
            self._check("branches", 1)

    def first(self, problem: Problem) -> State:
        """Score first actions, each followed by no motion, and keep the best."""
        c = self.config
        given = problem.first(c.candidates, hold=c.hold, proposed=c.proposed, near=c.std_init)
        drawn = 0 if problem.warm_start is None else problem.warm_start.shape[1]
        rest = torch.zeros_like(given[:, drawn:, 1:])
        given = torch.cat(
            [given[:, :drawn], torch.cat([given[:, drawn:, :1], rest], dim=2)], dim=1
        )
        return State(problem.score(problem.space.project(given)).best(c.width))

    def next(self, problem: Problem, state: State, index: int) -> State:
        """Extend the best by one action, and keep the best of all."""
        if index >= problem.horizon:
            return state
        c, best = self.config, state.best
        kept = best.actions[:, :, :index]  # b w i a
        branches = self._branches(problem, kept)  # b (w k) a
        prefix = kept.repeat_interleave(c.branches, dim=1)
        rest = prefix.new_zeros(*prefix.shape[:2], problem.horizon - index - 1, prefix.shape[-1])
        longer = torch.cat([prefix, branches[:, :, None], rest], dim=2)
        scored = problem.score(problem.space.project(longer))
        return State(best.join(scored).best(c.width))

    def _branches(self, problem: Problem, prefix: Tensor) -> Tensor:
        """Return next actions (B, W k, A) at the imagined ends of prefixes (B, W, i, A)."""
        c, (b, w, _, _) = self.config, prefix.shape
        asked = [each for each in problem.proposals if isinstance(each, StepProposal)]
        if not asked:
            return problem.draw(w * c.branches)[:, :, 0]
        context = _at_end(problem, prefix)
        share = -(-c.branches // len(asked))
        found = [
            problem.extend(each, context, share)[:, :share] for each in asked
        ]
        actions = torch.cat(found, dim=1)[:, : c.branches]
        return rearrange(actions, "(b w) k a -> b (w k) a", b=b)


def _at_end(problem: Problem, prefix: Tensor) -> Context:
    """Return the contexts (B W) of the model after prefixes (B, W, i, A)."""
    w, given = prefix.shape[1], problem.context
    ahead = problem.dynamics.rollout(problem.prepared, prefix).flatten(0, 1)  # (b w) i d
    count = problem.dynamics.context
    latents = torch.cat([given.latents.repeat_interleave(w, 0), ahead], dim=1)[:, -count:]
    before = given.actions.repeat_interleave(w, 0).to(prefix)
    sent = torch.cat([before, prefix.flatten(0, 1)], dim=1)
    actions = sent[:, max(sent.shape[1] - count + 1, 0) :]
    task = None if given.task is None else given.task.repeat_interleave(w, 0)
    return Context(latents, actions, task=task)
