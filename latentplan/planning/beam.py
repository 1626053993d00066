"""Beam search over proposals: improve the best plans by actions proposed along them."""

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
    """The plans that are kept."""

    best: Scored  # (B, W)


class Beam(Solver):
    """The best of sequences that are improved one action a round, the `width` best kept.

    Beam search over the proposals of a learned model (Janner et al., "Offline Reinforcement
    Learning as One Big Sequence Modeling Problem", arXiv 2106.02039, section 3.2). Round i replaces
    action i of each kept plan by actions proposed at the latent that the model predicts there, and
    keeps the rest of the plan: for a proposal of a single action, no motion. So each round compares
    whole plans, and a plan never gets worse by another one. After the last action the rounds start
    again with the first. Without a `protocols.StepProposal`, actions are drawn.
    """

    @dataclass(frozen=True)
    class Config(Solver.Config):
        """Settings."""

        candidates: int = 64  # of the first round
        iterations: int = 3  # rounds; as many as the horizon search every action once
        horizon: int = 3  # H
        proposed: float = 0.5  # share of the first round from proposals
        width: int = 12  # W, plans kept
        branches: int = 8  # actions tried in each

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            super().__post_init__()
            self._check("width", 1)
            self._check("branches", 1)

    def first(self, problem: Problem) -> State:
        """Score the first candidates, and keep the best."""
        return State(self._best(self.opening(problem)))

    def next(self, problem: Problem, state: State, index: int) -> State:
        """Replace one action of each kept plan, and keep the best of all."""
        c, at = self.config, index % problem.horizon
        kept = state.best.actions  # b w h a
        branches = self._branches(problem, kept[:, :, :at])  # b (w k) a
        longer = kept.repeat_interleave(c.branches, dim=1)
        longer[:, :, at] = branches
        return State(self._best(state.best.join(problem.score(problem.space.project(longer)))))

    def _best(self, scored: Scored) -> Scored:
        return scored.best(min(self.config.width, scored.cost.shape[1]))

    def _branches(self, problem: Problem, prefix: Tensor) -> Tensor:
        """Return actions (B, W k, A) proposed at the predicted ends of prefixes (B, W, i, A)."""
        c, (b, w, _, _) = self.config, prefix.shape
        asked = [each for each in problem.proposals if isinstance(each, StepProposal)]
        if not asked:
            return problem.draw(w * c.branches)[:, :, 0]
        context, share = _at_end(problem, prefix), -(-c.branches // len(asked))
        found = [problem.extend(each, context, share)[:, :share] for each in asked]
        actions = torch.cat(found, dim=1)[:, : c.branches]
        return rearrange(actions, "(b w) k a -> b (w k) a", b=b)


def _at_end(problem: Problem, prefix: Tensor) -> Context:
    """Return the contexts (B W) that the model predicts after prefixes (B, W, i, A)."""
    w, given = prefix.shape[1], problem.context
    ahead = given.latents.new_empty(len(given.latents) * w, 0, given.latents.shape[-1])
    if prefix.shape[2]:
        given_to = prefix.to(given.latents.dtype)
        ahead = problem.dynamics.rollout(problem.prepared, given_to).flatten(0, 1)  # (b w) i d
    count = problem.dynamics.context
    latents = torch.cat([given.latents.repeat_interleave(w, 0), ahead], dim=1)[:, -count:]
    before = given.actions.repeat_interleave(w, 0).to(prefix)
    sent = torch.cat([before, prefix.flatten(0, 1)], dim=1)
    actions = sent[:, max(sent.shape[1] - count + 1, 0) :]
    task = None if given.task is None else given.task.repeat_interleave(w, 0)
    return Context(latents, actions, task=task)
