"""Held-out figures of a latent dynamics model: loss, retrieval, and order of distances.

They use `encode`, `rollout` and `loss` alone, so they mean the same for every Dynamics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from latentplan.types import Array, Batch, Context

SHIFTS = 8  # each state is compared with the next 8 of its batch: 8 n pairs
SEED = 0  # of whatever a loss draws (masks, crops): the same at every evaluation


@dataclass(frozen=True)
class HeldOut:
    """The batches that held-out figures are computed on, never trained on."""

    windows: Sequence[Batch]  # as in training
    # different windows of context + frames observations (1 unless they are stacked); () for a
    # learner that is no Dynamics
    transitions: Sequence[Batch] = ()
    keypoints: str | None = None  # target (K, 2 or 3), metres; read for `spearman` alone


@torch.no_grad()
def evaluate(model: Any, held_out: HeldOut) -> dict[str, float]:
    """Return `loss`, `top1`, `top1_of`, `error` and, if there are keypoints, `spearman`.

    Without transitions: `loss` and the means of its parts.

    `loss` is the mean of the model's own loss over the windows. `top1` is the share of transitions
    whose predicted latent lies nearest to its own next latent among `top1_of` of them; a tie
    counts its share, so a collapsed encoder scores 1 / top1_of. `error` is the mean distance of
    predicted to next latents, as a share of that from the latents before them: 1 is no better than
    to predict no change, and a collapsed encoder has it. `spearman` is the rank correlation
    of latent with keypoint distance over pairs of states; keypoints are kept from the model.
    """
    trained = model.training
    model.eval()
    device = next(model.parameters()).device
    t = model.context if held_out.transitions else 0
    losses, parts = [], []
    predicted, nexts, before, latents, points = [], [], [], [], []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(SEED)
        for batch in held_out.windows:
            loss = model.loss(for_model(batch, model))
            losses.append(loss.total.float())
            parts.append(loss.parts)
        for batch in held_out.transitions:
            seen = for_model(batch, model)
            z = model.encode(seen.observations)[:, -t - 1 :]  # b (t + 1) d
            actions = seen.actions[:, -t:]
            past = Context(z[:, :t], actions[:, : t - 1])
            step = model.rollout(model.prepare(past), actions[:, None, t - 1 :])  # b 1 1 d
            predicted.append(step[:, 0, 0])
            nexts.append(z[:, t])
            before.append(z[:, t - 1])
            latents.append(z[:, 0])
            if held_out.keypoints is not None:
                points.append(batch.targets[held_out.keypoints][:, -t - 1])
    model.train(trained)

    mean = {"loss": float(torch.stack(losses).mean())}
    if not held_out.transitions:
        return mean | {k: float(torch.stack([p[k] for p in parts]).mean()) for k in parts[0]}
    figures = {
        **mean,
        "top1": top1(torch.cat(predicted), torch.cat(nexts)),
        "top1_of": sum(map(len, nexts)),
        "error": error(*(torch.cat(each) for each in (predicted, nexts, before))),
    }
    if held_out.keypoints is not None:
        figures["spearman"] = spearman(*distances(torch.cat(latents), torch.cat(points)))
    return figures


def top1(predicted: Tensor, nexts: Tensor) -> float:
    """Return the share of `predicted` (n, d) whose own row of `nexts` (n, d) is the nearest."""
    away = torch.cdist(
        predicted.double(), nexts.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    nearest = away == away.amin(dim=1, keepdim=True)  # n n, several in a tie
    return float((nearest.diagonal() / nearest.sum(dim=1).clamp(min=1)).mean())


def error(predicted: Tensor, nexts: Tensor, before: Tensor) -> float:
    """Return the mean distance of `predicted` (n, d) to `nexts` (n, d), as a share of the change.

    1 if nothing changes.
    """
    moved = (nexts - before).norm(dim=-1).mean()
    away = (predicted - nexts).norm(dim=-1).mean()
    return float(torch.where(moved > 0, away / moved, 1.0))


def distances(latents: Tensor, points: Tensor) -> tuple[Array, Array]:
    """Return latent and keypoint distance of pairs of states: each row with the next SHIFTS ones.

    `latents` (n, d); `points` (n, k, 2 or 3) in metres, ordered along a line whose two ends look
    alike, so the distance is the mean over points in the better of the two orders.
    """
    z, p = latents.double().cpu(), points.double().cpu()
    far: list[Tensor] = []
    between: list[Tensor] = []
    for shift in range(1, min(SHIFTS, len(z) - 1) + 1):
        q = p.roll(shift, 0)
        ends = [(p - order).norm(dim=-1).mean(dim=-1) for order in (q, q.flip(1))]
        between.append(torch.minimum(*ends))
        far.append((z - z.roll(shift, 0)).norm(dim=-1))
    return torch.cat(far).numpy(), torch.cat(between).numpy()


def spearman(x: Array, y: Array) -> float:
    """Return the rank correlation of x and y (n,); 0 for a constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(spearmanr(x, y).statistic)


def for_model(batch: Batch, model: Any) -> Batch:
    """Return the batch on the learner's device, with only what the learner declares."""
    device = next(model.parameters()).device

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return Batch(
        {key: moved(batch.observations[key]) for key in model.spec.observation},
        moved(batch.actions),
        targets={key: moved(batch.targets[key]) for key in model.targets},
        **{name: moved(getattr(batch, name)) for name in model.reads},
    )
