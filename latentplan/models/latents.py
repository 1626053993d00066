"""The latents of a trained encoder as a store of their own, and training windows of them.

An encoder that is equivariant to turned images gives as many views of a latent as there are turns:
each is one more sample, with its action turned the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latentplan.protocols import EquivariantEncoder
from latentplan.types import ArraySpec, Batch, Episode, Spec

LATENTS = "latents"  # observation of such a store: (views, d)


def latent_spec(spec: Spec, base: Any) -> Spec:
    """Return the spec of a store of the latents of `base`, made of data of `spec`."""
    size, elements = base.latent_dim, 1
    if isinstance(base, EquivariantEncoder):
        size, elements = size // base.views, base.elements
    seen = {LATENTS: ArraySpec((elements, size))}
    return replace(spec, observation=seen, privileged=(), pick=None, planar=None)


def latents_of(episodes: Sequence[Episode], base: Any) -> Iterable[Episode]:
    """Yield each episode with latents in place of its observations."""
    device = next(base.parameters()).device
    lengths = [len(episode) + 1 for episode in episodes]
    observations = {
        key: torch.cat([torch.from_numpy(each.observations[key]) for each in episodes])[None]
        for key in base.spec.observation
        if key in episodes[0].observations
    }
    seen = {key: each.to(device) for key, each in observations.items()}
    with torch.no_grad():
        if isinstance(base, EquivariantEncoder):
            latents = base.encode_views(seen)[0]
        else:
            latents = base.encode(seen)[0, :, None]
    parts = torch.split(latents.cpu(), lengths)
    for episode, part in zip(episodes, parts, strict=True):
        yield replace(episode, observations={LATENTS: part.numpy()})


def one_view(batch: Batch, views: int, base: Any) -> tuple[Tensor, Tensor]:
    """Return latents (B, T, d) and actions (B, T - 1, A), row i seen in view i mod `views`."""
    z = batch.observations[LATENTS]
    rows = torch.arange(len(z), device=z.device)
    view = rows % views
    if views == 1:
        return z[:, :, 0], batch.actions
    return z[rows, :, view], base.turn_actions(batch.actions, view)


def turned(actions: Tensor, views: int, base: Any) -> Tensor:
    """Return actions (B v, N, H, A) as each view sees those (B, N, H, A)."""
    if views == 1:
        return actions
    view = torch.arange(views, device=actions.device).repeat(len(actions))
    seen: Tensor = base.turn_actions(actions.repeat_interleave(views, 0), view)
    return seen
