"""An ensemble: models of one config, with concatenated latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from latentplan.errors import ConfigError
from latentplan.nn.observations import frames_of, privileged_of
from latentplan.protocols import Dynamics, Learner
from latentplan.shapes import check
from latentplan.types import Batch, Context, Loss, Tensors


class Ensemble(nn.Module):
    """A `protocols.Dynamics` of M members, each of which encodes and predicts by itself.

    Its latents are the members', concatenated: D = M x d. Members differ by their seeds or their
    data; their disagreement measures the model's uncertainty (Lakshminarayanan et al., "Simple and
    Scalable Predictive Uncertainty Estimation using Deep Ensembles", arXiv 1612.01474). It never
    scores: an objective such as `Pessimistic` splits the latents again.
    """

    def __init__(self, members: Sequence[Dynamics]) -> None:
        """Take the members; ConfigError unless they have one spec, latent size and context."""
        super().__init__()
        if not members:
            raise ConfigError("Ensemble.members: found none, need at least one")
        first = members[0]
        for number, member in enumerate(members):
            for name in ("spec", "latent_dim", "context", "frames"):
                here, there = (
                    frames_of(each) if name == "frames" else getattr(each, name)
                    for each in (first, member)
                )
                if here != there:
                    found = "other" if name == "spec" else f"{there}, not {here},"
                    raise ConfigError(
                        f"Ensemble.members[{number}].{name}: {found} than that of members[0]; "
                        "train all members on data of one spec with one config"
                    )
        self.members = nn.ModuleList(cast(Sequence[nn.Module], members))
        self.spec, self.context, self.frames = first.spec, first.context, frames_of(first)
        self.latent_dim = len(members) * first.latent_dim

    @property
    def window(self) -> int:
        """The fewest observations of a training window."""
        return max(each.window for each in self._learners())

    @property
    def targets(self) -> tuple[str, ...]:
        """Privileged observations that a member's loss reads."""
        return tuple(sorted({key for each in self._learners() for key in each.targets}))

    @property
    def reads(self) -> tuple[str, ...]:
        """Optional fields of Batch that a member's loss reads."""
        return tuple(sorted({name for each in self._learners() for name in each.reads}))

    @property
    def privileged(self) -> tuple[str, ...]:
        """Privileged observations that a member declares to read."""
        return tuple(sorted({key for each in self._each() for key in privileged_of(each)}))

    def encode(self, observations: Tensors) -> Tensor:
        """Return (B, T, M d) of observations, each (B, T, ...)."""
        return torch.cat([each.encode(observations) for each in self._each()], dim=-1)

    def prepare(self, context: Context) -> list[Any]:
        """Return each member's prepared context, of its own latents."""
        check("Ensemble.prepare.context", context.latents, "B T D", D=self.latent_dim)
        parts = self.split(context.latents)
        return [
            each.prepare(replace(context, latents=part))
            for each, part in zip(self._each(), parts, strict=True)
        ]

    def rollout(self, prepared: list[Any], actions: Tensor) -> Tensor:
        """Return (B, N, H, M d) after each of the actions (B, N, H, A)."""
        ahead = [
            each.rollout(part, actions) for each, part in zip(self._each(), prepared, strict=True)
        ]
        return torch.cat(ahead, dim=-1)

    def split(self, latents: Tensor) -> Sequence[Tensor]:
        """Return each member's latents (..., d) of latents (..., M d)."""
        return latents.chunk(len(self.members), dim=-1)

    def loss(self, batch: Batch) -> Loss:
        """Return the mean of the members' losses."""
        losses = [each.loss(batch) for each in self._learners()]
        total = torch.stack([loss.total for loss in losses]).mean()
        parts = {
            name: torch.stack([loss.parts[name] for loss in losses]).mean()
            for name in losses[0].parts
        }
        return Loss(total, parts)

    def _each(self) -> Sequence[Dynamics]:
        return cast(Sequence[Dynamics], self.members)

    def _learners(self) -> Sequence[Learner]:
        return cast(Sequence[Learner], self.members)
