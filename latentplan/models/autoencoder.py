"""Autoencoder: latents that reconstruct the image, and a dynamics that predicts them.

A baseline of CFM (Yan et al., arXiv 2003.05436, section 4.2; world models of this kind: Ha and
Schmidhuber, arXiv 1803.10122). The loss is the mean squared error of the reconstructed image and
of the predicted latents. As the baseline is published, its latents have 8 numbers, and it predicts
one step; here it has the encoder, the dynamics and the steps ahead of `cfm`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latentplan.errors import check_range
from latentplan.models.latent_model import LatentModel, mean_error, spread
from latentplan.nn.decoder import ImageDecoder
from latentplan.types import Batch, Loss, Spec, Tensors


class Autoencoder(LatentModel):
    """Encoder and decoder of images, and a latent dynamics, by squared errors."""

    @dataclass(frozen=True)
    class Config(LatentModel.Config):
        """The encoder, which the decoder mirrors, the dynamics and the loss."""

        prediction: float = 1.0  # weight of the prediction's error

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            super().__post_init__()
            check_range("Autoencoder.prediction", self.prediction, 0.0)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the networks; ConfigError if the data have no images."""
        c = config or self.Config()
        super().__init__(spec, c)
        self.decoder = ImageDecoder(
            "Autoencoder.observe", spec, self.encoder.keys, latent=c.latent, channels=c.channels
        )

    def decode(self, latents: Tensor) -> Tensors:
        """Return the images (B, T, h, w, c) uint8 of latents (B, T, D), by camera."""
        return self.decoder.to_uint8(latents)

    def loss(self, batch: Batch) -> Loss:
        """Return the error of reconstructions plus that of predicted latents."""
        observations, actions = self.turned(batch)
        z = self.encode(observations)
        image = self.decoder.error(z, observations)
        prediction = mean_error(self.ahead(z, actions))
        return Loss(
            image + self.config.prediction * prediction,
            {"image": image.detach(), "prediction": prediction.detach(), "spread": spread(z)},
        )
