"""Latents from which the action towards any later observation is predicted, of tokens and vectors.

Encoder and goal-conditioned inverse model are trained together: a later observation of the same
episode is the goal of an earlier one, however far away (AC-State, Lamb et al., arXiv 2207.08229,
section 3; as a policy for goals, GCSL, Ghosh et al., arXiv 1912.06088). The loss keeps what the
actions control. A latent dynamics is regressed on the latents, which it does not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.models.frame_tokens import TOKENS
from latentplan.models.goal_inverse import GoalInverse, remaining
from latentplan.models.latents import LATENTS
from latentplan.nn.mlp import LatentMLP
from latentplan.nn.scaling import ActionScaling
from latentplan.nn.sensors import Vector
from latentplan.types import ArraySpec, Batch, Loss, Moments, Spec, Tensors


class TokenMaps(nn.Module):
    """Features of the tokens (n, K) of square maps, one a camera, by convolutions."""

    def __init__(
        self,
        tokens: int,
        *,
        cameras: int,
        vocabulary: int,
        embedding: int,
        channels: tuple[int, ...],
    ) -> None:
        """Make the layers; ConfigError if they leave nothing of a map."""
        super().__init__()
        self.cameras, self.side = cameras, round((tokens // cameras) ** 0.5)
        self.embed = nn.Embedding(vocabulary, embedding)
        left = self.side // 2 ** len(channels)
        if cameras * self.side**2 != tokens or left < 1:
            raise ConfigError(
                f"MultistepInverse.channels: {len(channels)} halvings of {tokens} tokens of "
                f"{cameras} cameras leave nothing; need square maps, and fewer channels"
            )
        widths = (embedding, *channels)
        self.maps = nn.ModuleList(
            nn.Sequential(
                *(
                    layer
                    for before, after in zip(widths, widths[1:], strict=False)
                    for layer in (nn.Conv2d(before, after, 4, 2, 1), nn.ReLU())
                )
            )
            for _ in range(cameras)
        )
        self.features = cameras * channels[-1] * left**2

    def forward(self, ids: Tensor) -> Tensor:
        """Return the features of tokens (n, K)."""
        maps = rearrange(
            self.embed(ids.long()), "n (v y x) c -> v n c y x", v=self.cameras, y=self.side
        )
        pairs = zip(cast(Iterable[nn.Module], self.maps), maps, strict=True)
        return torch.cat([layers(each).flatten(1) for layers, each in pairs], dim=1)


class MultistepNetwork(nn.Module):
    """Encoder, goal-conditioned inverse model and latent dynamics, on packed rows of episodes."""

    packed = True
    targets: tuple[str, ...] = ()
    reads = ("segments",)

    @dataclass(frozen=True)
    class Config:
        """The networks, and the goals that they are trained on."""

        latent: int = 128  # numbers of a latent, of variance 1
        embedding: int = 8  # numbers of a token
        channels: tuple[int, ...] = (32, 64)  # of the convolutions over tokens, which halve the map
        widths: tuple[int, ...] = (64, 64)  # of the layers of a vector, such as proprioception
        dropout: float = 0.1  # of the features, in training
        hidden: tuple[int, ...] = (256, 256)  # widths of the dynamics' layers
        ahead: int = 2  # predictions 1 to `ahead` actions later are trained
        row: int = 40  # observations of a packed row; longer episodes are cut
        goals: int = 2  # drawn for each action
        inverse: GoalInverse.Config = field(
            default=GoalInverse.Config(
                steps=39, hidden=(256, 256), components=4, hide=0.5, least_std=0.2
            )
        )  # proposes actions

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            for name in ("latent", "embedding"):
                check_range(f"MultistepInverse.{name}", getattr(self, name), 1, 4096)
            for name in ("channels", "widths", "hidden"):
                if not getattr(self, name):
                    raise ConfigError(f"MultistepInverse.{name}: found none, need at least one")
                for width in getattr(self, name):
                    check_range(f"MultistepInverse.{name}", width, 1, 8192)
            check_range("MultistepInverse.dropout", self.dropout, 0.0, 0.9)
            check_range("MultistepInverse.ahead", self.ahead, 1, 100)
            check_range("MultistepInverse.row", self.row, 2, 10_000)
            check_range("MultistepInverse.goals", self.goals, 1, 1000)

    def __init__(
        self, spec: Spec, config: Config | None = None, *, cameras: int, vocabulary: int
    ) -> None:
        """Build the networks for a store of tokens and vectors."""
        super().__init__()
        c = self.config = config or self.Config()
        self.spec, self.window = spec, c.row
        self.vectors = tuple(key for key in spec.observation if key != TOKENS)
        self.maps = TokenMaps(
            *spec.observation[TOKENS].shape,
            cameras=cameras,
            vocabulary=vocabulary,
            embedding=c.embedding,
            channels=c.channels,
        )
        self.sensors = nn.ModuleList(
            Vector(*spec.observation[key].shape, frames=1, widths=c.widths) for key in self.vectors
        )
        self.dropout = nn.Dropout(c.dropout)
        self.output = nn.Linear(
            self.maps.features + len(self.vectors) * c.widths[-1], c.latent
        )
        self.scaling = ActionScaling(spec.action)
        self.dynamics = LatentMLP(c.latent, spec.action.size, c.hidden)
        latents = {LATENTS: ArraySpec((1, c.latent))}
        self.inverse = GoalInverse(replace(spec, observation=latents), c.inverse)

    @property
    def scaled(self) -> tuple[str, ...]:
        """Observations that are scaled by their statistics: see `protocols.Normalised`."""
        return self.vectors

    def fit_statistics(self, actions: Moments, observations: Mapping[str, Moments]) -> None:
        """Scale actions and vectors by their statistics."""
        self.scaling.fit(actions)
        self.inverse.fit_statistics(actions, observations)
        for key, each in zip(self.vectors, self._sensors(), strict=True):
            each.scaling.fit(observations[key])

    def encode(self, observations: Tensors) -> Tensor:
        """Return latents (B, T, d), each of mean 0 and variance 1, of tokens and vectors."""
        flat = {key: each.flatten(0, 1) for key, each in observations.items()}
        features = [self.maps(flat[TOKENS])]
        for key, each in zip(self.vectors, self._sensors(), strict=True):
            features.append(each(flat[key][:, None]))
        z = self.output(self.dropout(torch.cat(features, dim=1)))
        z = F.layer_norm(z, z.shape[-1:])
        latents: Tensor = z.view(*observations[TOKENS].shape[:2], -1)
        return latents

    def loss(self, batch: Batch) -> Loss:
        """Return the negative log-density of actions towards goals, plus that of the dynamics.

        Of the dynamics it is the mean squared error of predicted latents, within segments.
        """
        z, c = self.encode(batch.observations), self.config
        nats = self.inverse.hindsight(z, batch.actions, segments=batch.segments, goals=c.goals)
        true, left = z.detach(), remaining(batch.segments, z)
        predicted, actions, errors = true, self.scaling(batch.actions), []
        for k in range(1, c.ahead + 1):
            predicted = self.dynamics(predicted[:, :-1], actions[:, k - 1 :])
            within = left[:, :-k] >= k
            error = (predicted - true[:, k:]).square().mean(-1) * within
            errors.append(error.sum() / within.sum().clamp_min(1))
        prediction = torch.stack(errors).mean()
        return Loss(
            nats + prediction, {"nats": nats.detach(), "prediction": prediction.detach()}
        )

    def _sensors(self) -> Iterable[Any]:
        return cast(Iterable[Any], self.sensors)
