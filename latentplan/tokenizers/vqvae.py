"""An autoencoder of single images with discrete tokens, one grid a camera.

VQ-VAE (van den Oord et al., arXiv 1711.00937) with finite scalar quantization by default, as
VideoWorld's frame tokenizer (arXiv 2501.09781, section 3.1; there a VQGAN of 256 pixels and a book
of 64,000). Differs: small convolutions without attention, no adversary or perceptual loss, and
pixels that are not as in their camera's mean image count more, since that is where things are.
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
        patch: int = 4  # pixels a side that are one place of the first map
        channels: tuple[int, ...] = (64, 96)  # each but the first halves the map's side
        blocks: int = 1  # residual ones at each size, on each side
        quantizer: str = "fsq"  # or vq, with as many codes
        levels: tuple[int, ...] = (8, 5, 5, 5)  # values of each number of a token
        foreground_weight: float = 2.0  # extra weight of pixels unlike the mean image
        foreground_threshold: float = 0.15  # of [-1, 1]: how unlike they are
        background: bool = False  # whether the mean image shows through where it is right

        def __post_init__(self) -> None:
            """Raise ConfigError where a field is out of its range."""
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
        decoded = 4 if c.background else 3  # colours, and how much of the mean image shows
        self.decoder = images.up(c.channels, decoded, patch=c.patch, blocks=c.blocks)
        self.vocabulary = self.quantizer.size
        # Which camera a map is of; the networks are the same for all. What stands there always
        # needs no tokens.
        views = len(self.images)
        self.camera = nn.Parameter(torch.zeros(views, width, 1, 1))
        self.place = nn.Parameter(torch.zeros(views, width, self.grid, self.grid))
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
        decoded = images.to_uint8(self._pictures(self.quantizer.vectors(ids)))
        return {key: decoded[:, :, view] for view, key in enumerate(self.images)}

    def loss(self, batch: Batch) -> Loss:
        """Return the weighted squared error of a frame a window, with PSNR in dB and usage."""
        frames = {key: batch.observations[key][:, :1] for key in self.images}
        views = images.stack(frames, self.images)
        if self.training:
            self._count(views)
        quantized = self.quantizer(self._features(views))
        seen = self._pictures(quantized.vectors)
        away = (views - self.mean).abs().amax(dim=3, keepdim=True)
        apart = away > self.config.foreground_threshold
        weight = 1 + self.config.foreground_weight * apart
        error = (weight * (seen - views).square()).sum() / weight.sum() / 3
        absolute = F.l1_loss(seen, views)
        total = error + 0.1 * absolute + quantized.loss
        parts = {"psnr": images.psnr(seen.detach(), views)}
        return Loss(total, parts | quantizer.usage(quantized.ids, self.vocabulary))

    @torch.no_grad()
    def _count(self, views: Tensor) -> None:
        """Let the mean image know of views (b, t, v, 3, h, w)."""
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

    def _pictures(self, vectors: Tensor) -> Tensor:
        """Return (b, t, v, 3, h, w) of vectors (b, t, v, y, x, width)."""
        b, t = vectors.shape[:2]
        maps = rearrange(vectors, "b t v y x c -> b t v c y x") + self.place
        seen: Tensor = self.decoder(rearrange(maps, "b t v c y x -> (b t v) c y x"))
        seen = seen.view(b, t, -1, *seen.shape[1:])
        if not self.config.background:
            return seen
        seen = seen.to(self.mean.dtype)  # half of it under autocast
        return self.mean.lerp(seen[:, :, :, :3], seen[:, :, :, 3:].sigmoid())
