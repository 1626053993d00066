"""An autoencoder of single images with discrete tokens, one grid a camera.

VQ-VAE (van den Oord et al., arXiv 1711.00937) with finite scalar quantization by default, as
VideoWorld's frame tokenizer (arXiv 2501.09781, section 3.1; there a VQGAN of 256 pixels and a book
of 64,000). Differs: small convolutions without attention, no adversary or perceptual loss, and
pixels that differ from their camera's mean image weigh more, since objects cover few of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.nn import images, quantizer
from latentplan.shapes import check
from latentplan.types import Batch, Loss, Spec, Tensors, Tokens


class VQVAE(nn.Module):
    """A `protocols.Tokenizer`: K = cameras x (side / factor)^2 tokens a time step.

    `factor` is the patch, doubled for every number of channels but the first.
    """

    stride = 1  # observations a token frame
    window, targets, reads = 1, (), ()

    @dataclass(frozen=True)
    class Config:
        """What the network is made of."""

        images: tuple[str, ...] = ()  # observation keys of the cameras; () for all of the spec
        patch: int = 4  # pixels a side of one cell of the first map
        channels: tuple[int, ...] = (64, 96)  # each but the first halves the map's side
        blocks: int = 1  # residual blocks at each size, in the encoder and the decoder
        quantizer: str = "fsq"  # or vq, with as many codes
        levels: tuple[int, ...] = (8, 5, 5, 5)  # values of each number of a token
        foreground_weight: float = 2.0  # extra weight of pixels unlike the mean image
        foreground_threshold: float = 0.15  # of [-1, 1]: the least difference of such a pixel
        background: bool = False  # whether the decoder blends its output with the mean image

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            if not self.channels:
                raise ConfigError("VQVAE.channels: found none, need at least one")
            for value in self.channels:
                check_range("VQVAE.channels", value, 8, 4096)
                if value % 8:
                    raise ConfigError(f"VQVAE.channels: {value} is not a multiple of 8")
            check_range("VQVAE.blocks", self.blocks, 0, 100)
            quantizer.check("VQVAE", self.quantizer, self.levels)
            check_range("VQVAE.patch", self.patch, 1, 64)
            check_range("VQVAE.foreground_weight", self.foreground_weight, 0, 1000)
            check_range("VQVAE.foreground_threshold", self.foreground_threshold, 0, 2)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the network for the images of `spec`."""
        super().__init__()
        c = self.config = config or self.Config()
        self.images = images.keys("VQVAE.images", c.images, spec)
        self.spec = replace(
            spec, observation={key: spec.observation[key] for key in self.images}, privileged=()
        )
        self.levels = c.levels if c.quantizer == "fsq" else ()
        side = images.square("VQVAE.images", self.images, spec)
        factor = images.factor(c.channels, patch=c.patch)
        if side % factor:
            raise ConfigError(
                f"VQVAE.channels: patches of {c.patch} and {len(c.channels)} sizes need images "
                f"whose side is a multiple of {factor}, found {side} pixels"
            )
        self.grid = side // factor  # tokens a side of one camera's image
        self.tokens = len(self.images) * self.grid**2  # K
        width = c.channels[-1]
        self.encoder = images.down(3, c.channels, patch=c.patch, blocks=c.blocks)
        self.quantizer = quantizer.Quantizer(width, levels=c.levels, kind=c.quantizer)
        decoded = 4 if c.background else 3  # colours, and the weight against the mean image
        self.decoder = images.up(c.channels, decoded, patch=c.patch, blocks=c.blocks)
        self.vocabulary = self.quantizer.size
        # Embeddings of the camera, since all cameras share the networks, and of the position, so
        # that tokens need not encode the static background.
        views = len(self.images)
        self.camera = nn.Parameter(torch.zeros(views, width, 1, 1))
        self.position = nn.Parameter(torch.zeros(views, width, self.grid, self.grid))
        self.mean: Tensor  # (v, 3, h, w), running
        self.register_buffer("mean", torch.zeros(views, 3, side, side))
        self.batches: Tensor
        self.register_buffer("batches", torch.zeros(()))

    def encode(self, observations: Tensors) -> Tokens:
        """Return tokens (B, T, K) of images (B, T, h, w, 3) uint8."""
        views = images.stack(observations, self.images)
        ids: Tensor = self.quantizer(self._features(views)).ids
        return Tokens(ids.flatten(2))  # b t (v y x)

    def decode(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return the cameras' images (B, T, h, w, 3) uint8 of tokens (B, T, K)."""
        check("VQVAE.decode", tokens.ids, "B T K", K=self.tokens)
        ids = rearrange(tokens.ids, "b t (v y x) -> b t v y x", y=self.grid, x=self.grid)
        decoded = images.to_uint8(self._decode(self.quantizer.vectors(ids)))
        return {key: decoded[:, :, view] for view, key in enumerate(self.images)}

    def loss(self, batch: Batch) -> Loss:
        """Return the weighted squared error of a frame a window, with PSNR in dB and usage."""
        frames = {key: batch.observations[key][:, :1] for key in self.images}
        views = images.stack(frames, self.images)
        if self.training:
            self._update_mean(views)
        quantized = self.quantizer(self._features(views))
        decoded = self._decode(quantized.vectors)
        away = (views - self.mean).abs().amax(dim=3, keepdim=True)
        foreground = away > self.config.foreground_threshold
        weight = 1 + self.config.foreground_weight * foreground
        error = (weight * (decoded - views).square()).sum() / weight.sum() / 3
        absolute = F.l1_loss(decoded, views)
        total = error + 0.1 * absolute + quantized.loss
        parts = {"psnr": images.psnr(decoded.detach(), views)}
        return Loss(total, parts | quantizer.usage(quantized.ids, self.vocabulary))

    @torch.no_grad()
    def _update_mean(self, views: Tensor) -> None:
        """Update the mean image with views (b, t, v, 3, h, w)."""
        self.batches += 1
        self.mean += (views.mean(dim=(0, 1)) - self.mean) / self.batches.clamp(max=100)

    def _features(self, views: Tensor) -> Tensor:
        """Return (b, t, v, y, x, width)."""
        b, t, v = views.shape[:3]
        flat = rearrange(views, "b t v c h w -> (b t v) c h w")
        maps = self.encoder(flat.contiguous(memory_format=torch.channels_last))
        maps = rearrange(maps, "(b t v) c y x -> b t v c y x", b=b, t=t) + self.camera
        last: Tensor = maps.movedim(3, -1)
        return last

    def _decode(self, vectors: Tensor) -> Tensor:
        """Return (b, t, v, 3, h, w) of vectors (b, t, v, y, x, width)."""
        b, t = vectors.shape[:2]
        maps = rearrange(vectors, "b t v y x c -> b t v c y x") + self.position
        out: Tensor = self.decoder(rearrange(maps, "b t v c y x -> (b t v) c y x"))
        out = out.view(b, t, -1, *out.shape[1:])
        if not self.config.background:
            return out
        out = out.to(self.mean.dtype)  # of lower precision under autocast
        return self.mean.lerp(out[:, :, :, :3], out[:, :, :, 3:].sigmoid())
