"""The latents of a trained encoder as a store of their own, and training windows of them.

An encoder that is equivariant to turned images gives as many views of a latent as there are turns:
each is one more sample, with its action turned the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from latentplan.nn.observations import frames_of
from latentplan.nn.symmetry import TurnActions
from latentplan.protocols import Dynamics, EquivariantEncoder
from latentplan.types import ArraySpec, Batch, Episode, PlanarSpec, Spec

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
    if frames_of(base) > 1 and len(episodes) > 1:  # stacked within an episode
        for episode in episodes:
            yield from latents_of([episode], base)
        return
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


def turn_actions_of(base: Any) -> TurnActions | None:
    """Return how `base` turns actions; None if its latents have a single view."""
    return base.turn_actions if isinstance(base, EquivariantEncoder) else None


def turned_pairs_of(base: Any) -> tuple[tuple[int, int], ...]:
    """Return the numbers of an action that `base` turns together."""
    if not isinstance(base, EquivariantEncoder) or base.elements == 1:
        return ()
    planar: PlanarSpec | None = cast(Dynamics, base).spec.planar
    return planar.pairs if planar is not None else ()


def one_view(batch: Batch, turn: TurnActions | None) -> tuple[Tensor, Tensor]:
    """Return latents (B, T, d) and actions (B, T - 1, A), both of row i in view i mod the views."""
    z = batch.observations[LATENTS]
    rows, views = torch.arange(len(z), device=z.device), z.shape[2]
    if views == 1:
        return z[:, :, 0], batch.actions
    assert turn is not None  # only an EquivariantEncoder has several views
    return z[rows, :, rows % views], turn(batch.actions, rows % views)
