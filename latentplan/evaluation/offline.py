"""How well a model fits recorded episodes, without a simulator: predictions and costs.

Each function compares a model with one recorded episode, beside controls that use no model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from latentplan.nn.observations import checked, device_of
from latentplan.protocols import Dynamics, ObjectiveFactory
from latentplan.types import Array, Context, Episode, Goal, Observation

STARTS = 4  # steps of an episode from which a model predicts


def latents(model: Dynamics, episode: Episode) -> Tensor:
    """Return the latents (L + 1, D) of an episode's observations."""
    device, seen = device_of(model), public(model, episode)
    with torch.no_grad():
        rows = {key: torch.from_numpy(x)[None].to(device) for key, x in seen.items()}
        return model.encode(rows)[0]


def predictions(
    model: Dynamics, z: Tensor, actions: Array, ahead: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents (n, D) predicted `ahead` steps on, the true ones, and those at the start.

    Given latents z (L + 1, D) and actions (L, A), from up to four steps of the episode.
    """
    last = len(actions) - ahead
    if last < 0:
        return z[:0], z[:0], z[:0]
    starts = np.unique(np.linspace(0, last, STARTS).round().astype(int))
    sent = torch.from_numpy(actions).to(z)
    begin = model.context - 1  # the first observation is repeated before the episode, at rest
    padded = torch.cat([z[:1].expand(begin, -1), z])
    before = torch.cat([sent.new_zeros(begin, sent.shape[1]), sent])
    context = Context(
        torch.stack([padded[t : t + begin + 1] for t in starts]),
        torch.stack([before[t : t + begin] for t in starts]),
    )
    with torch.no_grad():
        given = torch.stack([sent[t : t + ahead] for t in starts])
        predicted = model.rollout(model.prepare(context), given[:, None])[:, 0, -1]
    return predicted, z[starts + ahead], z[starts]


def nearest(predicted: Tensor, true: Tensor) -> Array:
    """Return which of predictions (n, D) are nearest to their own of true latents (n, D)."""
    if not len(true):
        return np.zeros(0, bool)
    found = torch.cdist(predicted, true).argmin(-1)
    return (found == torch.arange(len(true), device=true.device)).cpu().numpy()


def agreement(cost: Array) -> float:
    """Return the rank correlation of costs (L,) with the steps to the end; NaN if undefined."""
    if len(cost) < 3 or np.ptp(cost) == 0:
        return float("nan")
    return float(stats.spearmanr(cost, np.arange(len(cost))[::-1]).statistic)


def costs(model: Dynamics, objective: ObjectiveFactory, goal: Goal, z: Tensor) -> Array:
    """Return the cost (L,) of being at latents z (L, D), by an objective towards a goal."""
    at, rest = z[None, :, None], z.new_zeros(1, len(z), 1, model.spec.action.size)
    context = Context(z[None, :1].expand(-1, model.context, -1), rest[:, : model.context - 1, 0])
    with torch.no_grad():
        cost: Array = objective(goal, context, model)(at, rest)[0].cpu().numpy()
    return cost


def pixel_costs(model: Dynamics, episode: Episode) -> Array:
    """Return how far observations (L,) are from the last one, without a model: the control."""
    seen = [x.reshape(len(x), -1).astype(float) for x in public(model, episode).values()]
    return np.asarray(sum(np.linalg.norm(x[:-1] - x[-1], axis=1) for x in seen))


def observation(model: Dynamics, episode: Episode, step: int) -> Observation:
    """Return what a model reads of an episode at a step; a negative one counts from the end."""
    seen: dict[str, Any] = {key: x[step] for key, x in episode.observations.items()}
    return checked("evaluate_offline.data", model, seen)


def public(model: Dynamics, episode: Episode) -> dict[str, Array]:
    """Return the arrays (L + 1, ...) that a model reads of an episode."""
    keys = observation(model, episode, 0)
    return {key: np.ascontiguousarray(episode.observations[key]) for key in keys}
