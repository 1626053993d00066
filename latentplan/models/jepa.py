"""JEPA: next-latent prediction, kept from collapse by a term on the latents' distribution.

A joint-embedding predictive world model (LeCun, "A Path Towards Autonomous Machine Intelligence",
2022; LeWorldModel, Maes et al. 2026) without decoder, contrast, target network or stopped
gradients. Two terms keep the latents apart:

- `sigreg` (LeJEPA, Balestriero and LeCun, arXiv 2511.08544): each of many random directions of the
  latents is compared with a standard normal by the statistic of Epps and Pulley (1983);
- `vicreg` (Bardes, Ponce and LeCun, arXiv 2105.04906): a hinge on each number's standard deviation,
  and squared covariances of different numbers.

Differs from LeWorldModel in its networks, which are those of `cfm`, and in a latent dynamics that
reads one latent instead of a history. The terms are of all latents of a batch together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latentplan.errors import ConfigError, check_range
from latentplan.models.latent_model import LatentModel, mean_error, spread
from latentplan.types import Batch, Loss, Spec

DIRECTIONS, KNOTS, REACH = 256, 17, 3.0  # of the statistic: directions, and frequencies 0 to REACH


class JEPA(LatentModel):
    """Encoder and latent dynamics by the error of predicted latents, with SIGReg or VICReg."""

    @dataclass(frozen=True)
    class Config(LatentModel.Config):
        """The encoder, the dynamics and the loss."""

        against: str = "sigreg"  # what keeps the latents from collapse: sigreg or vicreg
        weight: float = 0.1  # of that term

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            super().__post_init__()
            check_range("JEPA.weight", self.weight, 0.0)
            if self.against not in TERMS:
                known = ", ".join(TERMS)
                raise ConfigError(f"JEPA.against: {self.against!r} is not one of {known}")

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the networks."""
        super().__init__(spec, config or self.Config())

    def loss(self, batch: Batch) -> Loss:
        """Return the error of predicted latents plus the term against collapse."""
        observations, actions = self.turned(batch)
        z = self.encode(observations)
        prediction = mean_error(self.ahead(z, actions))
        term = TERMS[self.config.against](z.flatten(0, 1))
        return Loss(
            prediction + self.config.weight * term,
            {
                "prediction": prediction.detach(),
                self.config.against: term.detach(),
                "spread": spread(z),
            },
        )


def sigreg(z: Tensor) -> Tensor:
    """Return how far latents (n, D) are from a standard normal, mean over random directions.

    n times the squared distance of the characteristic functions, weighted by that of the normal,
    by the trapezoid rule: n 2 int_0^3 |1/n sum_j exp(i t x_j) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt.
    """
    directions = torch.randn(z.shape[1], DIRECTIONS, device=z.device)
    x = z @ F.normalize(directions, dim=0)  # n m
    t = torch.linspace(0, REACH, KNOTS, device=z.device)
    normal = torch.exp(-t.square() / 2)
    phase = x[..., None] * t  # n m k
    error = (phase.cos().mean(0) - normal).square() + phase.sin().mean(0).square()
    return len(z) * 2 * torch.trapezoid(error * normal, t).mean()


def vicreg(z: Tensor) -> Tensor:
    """Return the hinge on the standard deviations of latents (n, D), and their covariances."""
    centred = z - z.mean(0)
    covariance = centred.T @ centred / max(len(z) - 1, 1)
    variance = covariance.diagonal()
    hinge = F.relu(1 - (variance + 1e-4).sqrt()).mean()
    apart = (covariance.square().sum() - variance.square().sum()) / z.shape[1]
    return hinge + apart / 25  # the paper's weights, 25 and 1


TERMS = {"sigreg": sigreg, "vicreg": vicreg}
