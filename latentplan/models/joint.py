"""Joint: latents from which the action between two of them can be predicted.

Forward and inverse dynamics trained together (Agrawal et al., arXiv 1606.07419), a baseline of CFM
(Yan et al., arXiv 2003.05436, section 4.2). The loss is the mean squared error of the predicted
latent and of the predicted action. Nothing keeps latents apart that no action tells apart, and the
first term alone is least if all are one point: the figure `spread` shows it. As published, latents
have 8 numbers; here it has the encoder, the dynamics and the steps ahead of `cfm`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from latentplan.errors import check_range
from latentplan.models.latent_model import LatentModel, mean_error, spread
from latentplan.nn.mlp import mlp
from latentplan.types import Batch, Loss, Spec


class Joint(LatentModel):
    """Encoder, latent dynamics and inverse model of adjacent latents, by squared errors."""

    @dataclass(frozen=True)
    class Config(LatentModel.Config):
        """The encoder, the dynamics, the inverse model and the loss."""

        inverse: tuple[int, ...] = (128, 128, 128)  # widths of the inverse model's layers
        action: float = 1.0  # weight of the action's error

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            super().__post_init__()
            check_range("Joint.action", self.action, 0.0)
            for width in self.inverse:
                check_range("Joint.inverse", width, 1, 8192)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the networks."""
        c = config or self.Config()
        super().__init__(spec, c)
        first = nn.Linear(2 * c.latent, c.inverse[0])
        self.inverse = nn.Sequential(first, nn.ReLU(), mlp(c.inverse, spec.action.size))

    def loss(self, batch: Batch) -> Loss:
        """Return the error of predicted latents plus that of the scaled actions."""
        observations, actions = self.turned(batch)
        z = self.encode(observations)
        prediction = mean_error(self.ahead(z, actions))
        between = self.inverse(torch.cat([z[:, :-1], z[:, 1:]], dim=-1))
        action = (between - actions).square().mean()
        return Loss(
            prediction + self.config.action * action,
            {"prediction": prediction.detach(), "action": action.detach(), "spread": spread(z)},
        )
