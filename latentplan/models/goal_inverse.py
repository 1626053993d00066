"""A goal-conditioned inverse model of latents: which actions lead towards a goal.

Trained by hindsight on play: a later latent of the same episode is the goal of an earlier one
(Lynch et al., arXiv 1903.01973, section 3; GCSL, Ghosh et al., arXiv 1912.06088). The output is a
mixture of Gaussians (Bishop 1994, Mixture Density Networks), since several actions may lead to a
goal. It is conditioned on the number of steps to the goal, hidden in some rows, so that one step
and many are both asked of it. Its samples are proposals that a dynamics model verifies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from latentplan.data.packing import PADDING
from latentplan.errors import ConfigError, check_range
from latentplan.models.latents import LATENTS, one_view, turn_actions_of, turned_pairs_of
from latentplan.nn.mlp import mlp
from latentplan.nn.observations import checked, encode
from latentplan.nn.scaling import ActionScaling
from latentplan.protocols import Dynamics
from latentplan.shapes import check
from latentplan.types import Batch, Context, Goal, Loss, Moments, Spec

# Multiples of these mod 1 fill the cube evenly (Roberts 2018, the R3 sequence): which step and
# goal row i of a batch takes depends on i alone, so that a loss is the same each time.
SPREAD = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)


class GoalInverse(nn.Module):
    """A mixture density of the next action, given a latent, a goal latent and the steps between."""

    targets: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    scaled: tuple[str, ...] = ()

    @dataclass(frozen=True)
    class Config:
        """The network, and which goals it is trained on."""

        steps: int = 10  # longest way to a goal, in actions
        hidden: tuple[int, ...] = (256, 256, 256)  # widths of the layers
        components: int = 16  # of the mixture
        hide: float = 0.3  # share of the rows whose number of steps is hidden
        episodes: bool = False  # goals up to the end of an episode, whose rows are packed
        final: float = 0.3  # share of the goals that are the last of a row's episode; episodes=true
        least_std: float = 0.02  # of a component, of scaled actions (half their range is 1)

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("GoalInverse.steps", self.steps, 1, 1000)
            check_range("GoalInverse.components", self.components, 1, 1000)
            check_range("GoalInverse.hide", self.hide, 0.0, 1.0)
            check_range("GoalInverse.final", self.final, 0.0, 1.0)
            check_range("GoalInverse.least_std", self.least_std, 1e-4, 1.0)
            for width in self.hidden:
                check_range("GoalInverse.hidden", width, 1, 8192)

    def __init__(self, spec: Spec, config: Config | None = None, *, base: Any = None) -> None:
        """Build the network for a store of the latents of `base`, which turns actions for views."""
        super().__init__()
        c = self.config = config or self.Config()
        self.spec, self.window = spec, c.steps + 1
        if c.episodes:  # a `protocols.PackedLearner`
            self.packed, self.reads = True, ("segments",)
        self.turn = turn_actions_of(base)
        self.scaling = ActionScaling(spec.action, pairs=turned_pairs_of(base))
        self.scaling.use_bounds()
        _, size = spec.observation[LATENTS].shape
        self.steps = nn.Embedding(c.steps + 1, 32)  # the first is an unknown number
        self.input = nn.Linear(3 * size + 32, c.hidden[0])
        self.rest = mlp(c.hidden, c.components * (1 + 2 * spec.action.size))
        self.low: Tensor
        self.register_buffer("low", torch.tensor(spec.action.low), persistent=False)
        self.high: Tensor
        self.register_buffer("high", torch.tensor(spec.action.high), persistent=False)
        self.spread: Tensor
        self.register_buffer("spread", torch.tensor(SPREAD).double(), persistent=False)

    def fit_statistics(self, actions: Moments, observations: Mapping[str, Moments]) -> None:
        """Scale actions by their statistics: see `protocols.Normalised`."""
        self.scaling.fit(actions)

    def forward(self, z: Tensor, goal: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-shares (n, M), means and stds (n, M, A), the latter two scaled.

        Given latents and goals (n, d), and steps (n,) between them, 0 if unknown.
        """
        x = torch.cat([z, goal, goal - z, self.steps(steps)], dim=-1)
        out = self.rest(F.relu(self.input(x)))
        m, a = self.config.components, self.spec.action.size
        logits, means, stds = out.split((m, m * a, m * a), dim=-1)
        means, stds = (rearrange(each, "n (m a) -> n m a", a=a) for each in (means, stds))
        return logits.log_softmax(-1), means, F.softplus(stds) + self.config.least_std

    def log_prob(self, z: Tensor, goal: Tensor, steps: Tensor, actions: Tensor) -> Tensor:
        """Return the log-density (n,) of actions (n, A), scaled, in nats."""
        shares, means, stds = self(z, goal, steps)
        error = (self.scaling(actions)[:, None] - means) / stds
        density = -0.5 * error.square() - stds.log() - 0.9189385332046727  # log sqrt(2 pi)
        return torch.logsumexp(shares + density.sum(-1), dim=-1)

    def loss(self, batch: Batch) -> Loss:
        """Return the negative log-density of actions towards later latents of their episodes."""
        z, actions = one_view(batch, self.turn)
        if self.config.episodes:
            nats = self.hindsight(z, actions, segments=batch.segments, goals=1)
            return Loss(nats, {"nats": nats.detach()})
        row, last = torch.arange(len(z), device=z.device), z.shape[1] - 1
        start, ahead, shown = (row[:, None] * self.spread % 1).unbind(-1)
        start = (start * last).long()
        steps = 1 + (ahead * (last - start)).long()
        given = steps.masked_fill(shown < self.config.hide, 0)
        nats = -self.log_prob(z[row, start], z[row, start + steps], given, actions[row, start])
        return Loss(nats.mean(), {"nats": nats.detach().mean()})

    def hindsight(
        self, z: Tensor, actions: Tensor, *, segments: Tensor | None, goals: int
    ) -> Tensor:
        """Return the mean negative log-density () of all actions towards later latents.

        Given latents (B, T, d) of packed rows, actions (B, T - 1, A) and `segments` (B, T), by
        default one a row. Every action has `goals` drawn from the rest of its segment, `final` of
        them its last latent.
        """
        left = remaining(segments, z)[:, :-1]  # b t
        row = torch.arange(len(z), device=z.device)[:, None]
        start = torch.arange(left.shape[1], device=z.device)
        ahead, last, shown = torch.rand(3, goals, *left.shape, device=z.device).unbind()
        steps = torch.where(last < self.config.final, left, 1 + (ahead * left).long())  # g b t
        given = steps.clamp_max(self.config.steps).masked_fill(shown < self.config.hide, 0)
        rows = (z[:, :-1].expand(goals, -1, -1, -1), z[row, start + steps])
        now, goal = (each.flatten(0, 2) for each in rows)
        taken = actions.expand(goals, -1, -1, -1).flatten(0, 2)
        log_prob = self.log_prob(now, goal, given.flatten(), taken).view_as(steps)
        within = (left > 0).expand_as(steps)  # an action follows in its segment
        return -torch.where(within, log_prob, 0.0).sum() / within.sum().clamp_min(1)

    @torch.no_grad()
    def propose(
        self, z: Tensor, goal: Tensor, steps: Tensor, *, generator: Generator
    ) -> Tensor:
        """Return actions (B, n, A) from latents (B, d) to goals (B, d), one for each of steps (n,).

        The first is the mean of the component with the largest density at its mean; the others are
        samples, with the same random numbers for all B.
        """
        b, n = len(z), len(steps)
        rows = (each.repeat_interleave(n, 0) for each in (z, goal))
        shares, means, stds = (each.unflatten(0, (b, n)) for each in self(*rows, steps.repeat(b)))
        like = {"device": z.device, "dtype": means.dtype, "generator": generator}
        level, noise = torch.rand((n, 1), **like), torch.randn((n, means.shape[-1]), **like)
        likeliest = (shares[:, 0] - stds[:, 0].log().sum(-1)).argmax(-1)
        component = (shares.exp().cumsum(-1) < level).sum(-1).clamp_max(shares.shape[-1] - 1)
        component[:, 0], noise[0] = likeliest, 0.0
        mean, std = (
            each.take_along_dim(component[..., None, None], 2)[:, :, 0] for each in (means, stds)
        )
        return self._actions(mean + std * noise)

    def _actions(self, scaled: Tensor) -> Tensor:
        """Return actions (..., A) of scaled ones, within the bounds."""
        return self.scaling.inverse(scaled).clamp(self.low, self.high)


def remaining(segments: Tensor | None, z: Tensor) -> Tensor:
    """Return how many positions (B, T) follow each one of rows z (B, T, d) in its segment.

    `segments` (B, T) number packed episodes, -1 is padding; None for one a row.
    """
    place = torch.arange(z.shape[1], device=z.device)
    if segments is None:
        return (place[-1] - place).expand(z.shape[:2])
    ends = F.pad(segments[:, 1:] != segments[:, :-1], (0, 1), value=True)
    last = torch.where(ends, place, place[-1]).flip(1).cummin(1).values.flip(1)
    return (last - place).masked_fill(segments == PADDING, 0)


def latent_of_goal(model: Dynamics, goal: Goal, *, name: str) -> Tensor:
    """Return the latent (D,) of a goal observation; ConfigError, with the model's name, without."""
    if goal.observation is None:
        raise ConfigError(
            f"goal.observation: found none, need one: {name} proposes actions towards an "
            "observation; set propose=false for other goals"
        )
    return encode(model, checked("goal.observation", model, goal.observation))[0, 0]


class InverseProposal:
    """A `protocols.Proposal`: actions of a `GoalInverse` towards a goal, then rest.

    The inverse model gives the next action alone; a planner that looks further asks it again from
    the latents that the model predicts (planner `beam`).
    """

    STEPS = 4  # numbers of steps to the goal that are asked for, from 1 on, beside an unknown one

    def __init__(self, inverse: GoalInverse, goal: Tensor) -> None:
        """Take the latents (S, d) of the first view that describe the goal; the nearest is it."""
        self.inverse, self.goal = inverse, goal

    def sample(
        self, context: Context, count: int, *, horizon: int, generator: Generator
    ) -> Tensor:
        """Return (B, n, H, A): the likeliest action, then samples; the rest is no motion."""
        check("InverseProposal.context", context.latents, "B T D")
        now = context.latents[:, -1, : self.goal.shape[-1]].to(self.goal)
        goal = self.goal.expand(len(now), -1) if len(self.goal) == 1 else self._nearest(now)
        index = torch.arange(count, device=now.device)
        steps = (index % self.STEPS + 1).clamp_max(self.inverse.config.steps)
        steps[:1] = 0  # the likeliest action, of an unknown number of steps
        actions = self.inverse.propose(now, goal, steps, generator=generator)
        return F.pad(actions[:, :, None], (0, 0, 0, horizon - 1))

    def _nearest(self, now: Tensor) -> Tensor:
        """Return the goals (B, d) that are the nearest to latents (B, d)."""
        away = (self.goal - now[:, None]).square().sum(-1)  # b s
        return self.goal[away.argmin(-1)]
