"""CFM: a contrastive forward model (Yan, Vangipuram, Abbeel, Pinto, CoRL 2020, arXiv 2003.05436).

An encoder z = g(o) and a latent dynamics z' = f(z, a), trained so that the predicted z' is nearer
to the latent of the true next image than to latents of other images (InfoNCE with similarity
h(a, b) = exp(-||a - b||^2), section 3). Distances between latents are then costs to plan with.

The preset `cfm_paper` is the published model. `cfm` differs in four ways, each a config field:
the negatives are the next images of the whole batch, neighbours in time among them, so that
near misses are separated; the dynamics adds to z instead of multiplying it; training sees every
window turned and flipped (image and actions together), if the data's `Spec.planar` states which
numbers of an action are vectors in the image's plane; and planning can encode all eight turns
at once (`views`), which makes the model exactly symmetric and averages the error of its views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.models.latent_model import EncodingModel
from latentplan.nn import symmetry
from latentplan.nn.encoder import Encoder, EncoderConfig, observed
from latentplan.nn.mlp import LatentMLP, mlp
from latentplan.shapes import check
from latentplan.types import Batch, Context, Loss, PlanarSpec, Spec, Tensors


class CFM(EncodingModel):
    """Contrastive forward model: an encoder and a latent dynamics, by InfoNCE.

    A `protocols.Dynamics`; its latents are views x latent numbers wide.
    """

    context = 1  # the last latent is all that `rollout` needs

    @dataclass(frozen=True)
    class Config(EncoderConfig):
        """What the network is made of, and how it is trained."""

        dynamics: str = "residual"  # z + MLP(z, a), or locally_linear: tanh(MLP(z, a)) z
        hidden: tuple[int, ...] = (512, 512)  # widths of the dynamics' layers
        negatives: str = "next"  # next: z' of the whole batch; current: z of the others (paper)
        ahead: int = 3  # predictions 1 to `ahead` actions later are trained, as windows are long
        symmetric: bool | str = "auto"  # train turned and flipped; auto: if the data allow it
        views: int = 1  # how many of the eight turns and flips planning encodes

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            super().__post_init__()
            check_range("CFM.views", self.views, 1, symmetry.ELEMENTS if self.symmetric else 1)
            check_range("CFM.ahead", self.ahead, 1, 100)
            for width in self.hidden:
                check_range("CFM.hidden", width, 1, 4096)
            for name, known in (
                ("dynamics", ("residual", "locally_linear")),
                ("negatives", ("next", "current")),
            ):
                if getattr(self, name) not in known:
                    raise ConfigError(
                        f"CFM.{name}: {getattr(self, name)!r} is not one of {', '.join(known)}"
                    )
            if self.symmetric not in (True, False, "auto"):
                raise ConfigError(
                    f"CFM.symmetric: {self.symmetric!r} is not one of true, false, auto"
                )

        def fitted(self, spec: Spec) -> CFM.Config:
            """Return the config with `observe` and `symmetric` decided by the data.

            Raises ConfigError if the data lack an observation, or a symmetry that is asked for.
            """
            keys = observed(self, spec)
            planar = spec.planar is not None and keys == (spec.planar.image,)
            sides = {size for key in keys for size in spec.observation[key].shape[:2]}
            symmetric = planar and len(sides) == 1 if self.symmetric == "auto" else self.symmetric
            if symmetric and not planar:
                raise ConfigError(
                    f"CFM.symmetric: found true for the observations {', '.join(keys)}, need one "
                    "image from straight above alone, in whose plane numbers of an action are "
                    "vectors (Spec.planar); set it to auto or false, or observe that image"
                )
            if symmetric and len(sides) != 1:
                height, width, _ = spec.observation[keys[0]].shape
                raise ConfigError(
                    f"CFM.symmetric: found true and images of {height} x {width} pixels, need "
                    "square ones; set it to auto or false"
                )
            return replace(self, observe=keys, symmetric=bool(symmetric))  # checks `views` as well

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the network for the observations and actions of `spec`."""
        c = (config or self.Config()).fitted(spec)
        super().__init__(spec, Encoder(spec, c), symmetric=bool(c.symmetric))
        self.config, self.views = c, c.views
        self.latent_dim, self.window = c.views * c.latent, c.frames + 1
        self.dynamics = (LocallyLinear if c.dynamics == "locally_linear" else LatentMLP)(
            c.latent, spec.action.size, c.hidden
        )

    def encode(self, observations: Tensors) -> Tensor:
        """Return (B, T, D) of observations: the latents of all views in a row."""
        v = self.views
        if v > 1:
            turned = [self._turned(observations, g) for g in range(v)]
            observations = {key: torch.cat([each[key] for each in turned]) for key in turned[0]}
        latents: Tensor = rearrange(self.encoder(observations), "(v b) t d -> b t (v d)", v=v)
        return latents

    def encode_views(self, observations: Tensors) -> Tensor:
        """Return all views (B, T, G, d) of observations (B, T, ...)."""
        z = [self.encoder(self._turned(observations, g)) for g in range(self.elements)]
        return torch.stack(z, dim=2)

    def prepare(self, context: Context) -> Tensor:
        """Return the last latent of every view (B v, d)."""
        check("CFM.prepare.context", context.latents, "B T D", D=self.latent_dim)
        return rearrange(context.latents[:, -1], "b (v d) -> (b v) d", v=self.views)

    def rollout(self, prepared: Tensor, actions: Tensor) -> Tensor:
        """Return (B, N, H, D) after each of the actions (B, N, H, A), from latents (B v, d)."""
        v, z = self.views, prepared
        check("CFM.rollout.actions", actions, "B N H A", B=len(z) // v, A=self.spec.action.size)
        if v > 1:
            actions = symmetry.turn_for_views(actions, v, self.turn_actions)
        latents = self.dynamics.unroll(z, self.scaling(actions))
        return rearrange(latents, "(b v) n h d -> b n h (v d)", v=v)

    def loss(self, batch: Batch) -> Loss:
        """Return the InfoNCE of windows, and how often the true next image is the nearest."""
        b, t = batch.observations[self.encoder.keys[0]].shape[:2]
        check("CFM.loss.actions", batch.actions, "B T A", B=b, T=t - 1)
        observations, actions = self.turned(batch)
        z = self.encoder(observations)
        losses, hits = [], []
        ahead = z
        for k in range(1, min(self.config.ahead, actions.shape[1]) + 1):
            ahead = self.dynamics(ahead[:, :-1], actions[:, k - 1 :])  # b (t - k) d
            logits = self._logits(ahead, z[:, :-k], z[:, k:])
            truth = torch.arange(len(logits), device=logits.device)
            losses.append(F.cross_entropy(logits, truth))
            hits.append((logits.detach().argmax(1) == truth).float().mean())
        total = torch.stack(losses).mean()
        return Loss(total, {"infonce": losses[0].detach(), "top1": hits[0]})

    @classmethod
    def upgraded(cls, config: Mapping[str, Any], spec: Spec) -> tuple[Mapping[str, Any], Spec]:
        """Return what a checkpoint states in today's words: see `protocols.Upgradable`.

        Before `observe`, there was one image. Before `Spec.planar`, a symmetric model turned all
        numbers of its actions in pairs.
        """
        if "image" not in config:
            return config, spec
        config = dict(config)
        image = str(config.pop("image"))
        if config.get("symmetric") is True and spec.planar is None:
            pairs = tuple((first, first + 1) for first in range(0, spec.action.size - 1, 2))
            spec = replace(spec, planar=PlanarSpec(image, pairs))
        return {**config, "observe": [image]}, spec

    def _logits(self, predicted: Tensor, now: Tensor, after: Tensor) -> Tensor:
        """Return (n, n) logits -||z'_i - z_j||^2 with the positives on the diagonal."""
        predicted, now, after = (rearrange(v, "b t d -> (b t) d") for v in (predicted, now, after))
        if self.config.negatives == "next":
            return -_squared_distances(predicted, after)
        logits = -_squared_distances(predicted, now)
        positive = -(predicted - after).square().sum(1)
        return torch.diagonal_scatter(logits, positive)


class LocallyLinear(nn.Module):
    """z' = W z with W = tanh(MLP(z, a)) / sqrt(d): the paper's dynamics (its run_train default)."""

    def __init__(self, latent: int, action: int, hidden: tuple[int, ...]) -> None:
        """Make the layers."""
        super().__init__()
        self.latent = latent
        self.first = nn.Linear(latent + action, hidden[0])
        self.rest = mlp(hidden, latent * latent)

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        """Return z' of z (..., d) and actions (..., A), whose leading axes broadcast."""
        z = z.expand(*action.shape[:-1], self.latent)
        weights = torch.tanh(self.rest(F.relu(self.first(torch.cat([z, action], -1)))))
        matrix = rearrange(weights, "... (i j) -> ... i j", j=self.latent) / self.latent**0.5
        after: Tensor = (matrix @ z[..., None])[..., 0]
        return after

    def unroll(self, z: Tensor, actions: Tensor) -> Tensor:
        """Return latents (B, N, H, D) after each of the actions (B, N, H, A), from z (B, D)."""
        now, latents = z[:, None], []
        for action in actions.unbind(2):
            now = self(now, action)
            latents.append(now)
        return torch.stack(latents, dim=2)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return (n, m): ||a_i - b_j||^2, by one matrix product."""
    return a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
