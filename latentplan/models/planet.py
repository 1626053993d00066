"""PlaNet: a recurrent state-space model, trained by reconstruction and a divergence of states.

Hafner et al., "Learning Latent Dynamics for Planning from Pixels" (arXiv 1811.04551, section 3):
h' = GRU(h, s, a), a prior p(s' | h'), a posterior q(s | ...) and a decoder p(o | ...), trained by
the evidence lower bound with free nats (3 here, as there). It plans with the means of the prior,
and with past actions: `prepare` runs the recurrence over a context of several latents.

Differs: the posterior and the decoder read the image or s alone and not h, so that a goal image,
which has no past, has a latent, and s holds all that a plan is compared by; s is what the objective
sees. No reward is predicted, no overshooting is trained, and images have a Gaussian of standard
deviation `image_std`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import check_range
from latentplan.models.latent_model import EncodingModel, spread
from latentplan.nn.decoder import ImageDecoder
from latentplan.nn.encoder import Encoder, EncoderConfig
from latentplan.nn.mlp import mlp
from latentplan.shapes import check
from latentplan.types import Batch, Context, Loss, Spec, Tensors

LEAST_STD = 0.1  # of a state, as in the paper


class PlaNet(EncodingModel):
    """Recurrent state-space model of images: deterministic and stochastic states."""

    @dataclass(frozen=True)
    class Config(EncoderConfig):
        """The encoder, which the decoder mirrors, the recurrence and the loss."""

        recurrent: int = 256  # numbers of the deterministic state
        hidden: tuple[int, ...] = (256,)  # widths of the prior's layers
        context: int = 4  # T, latents from which planning starts, with the actions between them
        free_nats: float = 3.0  # of the divergence, which are not penalised
        image_std: float = 0.05  # of a pixel, where black to white is 2; smaller: sharper images
        symmetric: bool = True  # train turned and flipped, if the data allow it

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            super().__post_init__()
            check_range("PlaNet.recurrent", self.recurrent, 1, 8192)
            check_range("PlaNet.context", self.context, 1, 100)
            check_range("PlaNet.free_nats", self.free_nats, 0.0)
            check_range("PlaNet.image_std", self.image_std, 1e-4)
            for width in self.hidden:
                check_range("PlaNet.hidden", width, 1, 8192)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the networks; ConfigError if the data have no images."""
        c = config or self.Config()
        super().__init__(spec, Encoder(spec, c), symmetric=c.symmetric)
        self.config, self.latent_dim, self.context = c, c.latent, c.context
        self.window = max(c.context, c.frames, 2) + 1  # two steps of the recurrence at least
        self.posterior = nn.Linear(c.latent, 2 * c.latent)
        self.recurrence = nn.GRUCell(c.latent + spec.action.size, c.recurrent)
        self.prior = mlp((c.recurrent, *c.hidden), 2 * c.latent)
        self.decoder = ImageDecoder(
            "PlaNet.observe", spec, self.encoder.keys, latent=c.latent, channels=c.channels
        )

    def encode(self, observations: Tensors) -> Tensor:
        """Return the means (B, T, D) of the posterior."""
        return self._posterior(observations)[0]

    def decode(self, latents: Tensor) -> Tensors:
        """Return the images (B, T, h, w, c) uint8 of latents (B, T, D), by camera."""
        return self.decoder.to_uint8(latents)

    def prepare(self, context: Context) -> tuple[Tensor, Tensor]:
        """Return the deterministic state (B, d) after the context's past, and its last latent."""
        z, size = context.latents, self.spec.action.size
        check("PlaNet.prepare.context", z, "B T D", D=self.latent_dim)
        check("PlaNet.prepare.actions", context.actions, "B T A", T=z.shape[1] - 1, A=size)
        h = z.new_zeros(len(z), self.config.recurrent)
        past = self.scaling(context.actions)
        for latent, action in zip(z.unbind(1), past.unbind(1), strict=False):
            h = self._advance(h, latent, action)
        return h, z[:, -1]

    def rollout(self, prepared: tuple[Tensor, Tensor], actions: Tensor) -> Tensor:
        """Return the prior's means (B, N, H, D) after each of the actions (B, N, H, A)."""
        h, z = prepared
        check("PlaNet.rollout.actions", actions, "B N H A", B=len(h), A=self.spec.action.size)
        b, n = actions.shape[:2]
        h, z = (each.repeat_interleave(n, 0) for each in (h, z))
        latents = []
        for action in self.scaling(actions).flatten(0, 1).unbind(1):
            h = self._advance(h, z, action)
            z = self._prior(h)[0]
            latents.append(z)
        return rearrange(torch.stack(latents), "h (b n) d -> b n h d", b=b)

    def loss(self, batch: Batch) -> Loss:
        """Return the negative evidence lower bound of windows a step, without its free nats."""
        observations, actions = self.turned(batch)
        mean, std = self._posterior(observations)
        z = mean + std * torch.randn_like(std)
        h = z.new_zeros(len(z), self.config.recurrent)
        divergences = []
        for t in range(actions.shape[1]):
            h = self._advance(h, z[:, t], actions[:, t])
            divergences.append(_divergence(mean[:, t + 1], std[:, t + 1], *self._prior(h)))
        nats = torch.stack(divergences).mean()
        image = self.decoder.error(z, observations)
        numbers = sum(observations[key][0, 0].numel() for key in self.decoder.keys)
        nats_image = numbers * image / (2 * self.config.image_std**2)
        total = (nats_image + nats.clamp_min(self.config.free_nats)) / numbers
        return Loss(
            total, {"image": image.detach(), "divergence": nats.detach(), "spread": spread(mean)}
        )

    def _advance(self, h: Tensor, z: Tensor, action: Tensor) -> Tensor:
        after: Tensor = self.recurrence(torch.cat([z, action.to(z.dtype)], dim=-1), h)
        return after

    def _prior(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return _normal(self.prior(F.relu(h)))

    def _posterior(self, observations: Tensors) -> tuple[Tensor, Tensor]:
        out: Tensor = self.posterior(self.encoder(observations))
        mean, std = out.chunk(2, dim=-1)
        return mean, F.softplus(std - 3) + LEAST_STD  # narrow at first: the prior learns from it


def _normal(out: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of a network's output (..., 2 D)."""
    mean, std = out.chunk(2, dim=-1)
    return mean, F.softplus(std + 0.5) + LEAST_STD


def _divergence(mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor) -> Tensor:
    """Return the mean divergence KL(posterior | prior) in nats of diagonal normals (B, D)."""
    ratio = (std / prior_std).square()
    error = ((mean - prior_mean) / prior_std).square()
    return 0.5 * (ratio + error - 1 - ratio.log()).sum(-1).mean()
