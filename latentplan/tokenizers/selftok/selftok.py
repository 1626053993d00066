"""A tokenizer whose tokens are in the order of diffusion time, the coarsest first.

Selftok (Wang et al., arXiv 2505.07538): learned queries read an image, each becomes a discrete
token, and a rectified flow decodes the image from noise. At diffusion time t the decoder is given
only the tokens from some position on: all of them at pure noise, the last alone near the image. So
the first tokens matter only while nothing of the image is visible, and describe its layout; the
last ones describe details. The order of ids here is the paper's autoregressive one, which reverses
its indices.

Differs: the flow works in pixels, less the mean image, and not in latents of SD3; a code is found
by finite scalar quantization or plain vector quantization, without the diversity term; a share of
the training images keep the first few tokens only, where the paper drops all; and some of them are
pure noise, so that the one-step decoder needs no second stage (section 3.4 there trains a renderer,
with perceptual and adversarial losses).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, ShapeError, check_range
from latentplan.nn import images, quantizer
from latentplan.nn.transformer import Transformer
from latentplan.protocols import EpisodeStore
from latentplan.shapes import check
from latentplan.tokenizers import prefix_images
from latentplan.tokenizers.selftok.flow_decoder import FlowDecoder, noised
from latentplan.types import Batch, Loss, Spec, Tensors, Tokens

LEAST = 1e-3  # contrast of images that is divided by


class Selftok(nn.Module):
    """A `protocols.Tokenizer` of single images: K = cameras x `tokens`, the coarsest first.

    Any number of the first tokens of each camera decodes to an image (`truncate`).
    """

    stride = 1  # observations a token frame
    window, targets, reads = 1, (), ()

    @dataclass(frozen=True)
    class Config:
        """The networks, and how tokens are spread over diffusion time."""

        images: tuple[str, ...] = ()  # observation keys of the cameras; () for all of the spec
        tokens: int = 64  # of one camera's image
        schedule: tuple[float, ...] = (16, 48, 72, 184, 192)  # parts of the tokens, see `times`
        quantizer: str = "fsq"  # or vq, with as many codes
        levels: tuple[int, ...] = (8, 5, 5, 5)  # values of each number of a token
        patch: int = 4  # pixels a side of one cell of the first map; the next halves it
        channels: int = 48  # of the first map
        width: int = 96  # of the encoder
        layers: int = 2  # of the encoder's transformer
        heads: int = 4  # of its attention
        decoder_width: int = 96  # of the decoder
        decoder_layers: int = 3  # of the decoder's transformer
        decoder_heads: int = 4  # of its attention
        dropout: float = 0.1  # share of training images that keep only the first few tokens
        noise: float = 0.25  # share of training images at t = 1, from where one step decodes
        steps: int = 1  # of the flow in `decode`: more are sharper and less accurate

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            for name in ("tokens", "patch", "layers", "heads", "steps"):
                check_range(f"Selftok.{name}", getattr(self, name), 1)
            check_range("Selftok.decoder_layers", self.decoder_layers, 1)
            check_range("Selftok.decoder_heads", self.decoder_heads, 1)
            for name in ("channels", "width", "decoder_width"):
                check_range(f"Selftok.{name}", getattr(self, name), 8)
                if getattr(self, name) % 8:
                    raise ConfigError(
                        f"Selftok.{name}: {getattr(self, name)} is not a multiple of 8"
                    )
            for name in ("", "decoder_"):
                width, heads = getattr(self, f"{name}width"), getattr(self, f"{name}heads")
                if width % (2 * heads):
                    raise ConfigError(
                        f"Selftok.{name}width: {width} is not a multiple of 2 {name}heads="
                        f"{2 * heads}"
                    )
            if not self.schedule:
                raise ConfigError("Selftok.schedule: found none, need at least one number")
            for value in self.schedule:
                check_range("Selftok.schedule", value, 1e-6, 1e6)
            quantizer.check("Selftok", self.quantizer, self.levels)
            check_range("Selftok.dropout", self.dropout, 0.0, 1.0)
            check_range("Selftok.noise", self.noise, 0.0, 1.0)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the networks for the images of `spec`; ConfigError if they do not fit."""
        super().__init__()
        c = self.config = config or self.Config()
        self.images = images.keys("Selftok.images", c.images, spec)
        seen = {key: spec.observation[key] for key in self.images}
        self.spec = replace(spec, observation=seen, privileged=())
        self.side = images.square("Selftok.images", self.images, spec)
        if self.side % (2 * c.patch):
            raise ConfigError(
                f"Selftok.patch: two maps of patch={c.patch} need images whose side is a multiple "
                f"of {2 * c.patch}, found {self.side} pixels"
            )
        views, self.cells = len(self.images), (self.side // (2 * c.patch)) ** 2
        self.levels = c.levels if c.quantizer == "fsq" else ()
        self.tokens = views * c.tokens  # K
        self.encoder = images.down(3, (c.channels, c.width), patch=c.patch)
        self.places = nn.Parameter(0.02 * torch.randn(self.cells, c.width))
        self.queries = nn.Parameter(0.5 * torch.randn(views, c.tokens, c.width))
        self.mix = nn.Parameter(nn.init.orthogonal_(torch.empty(c.tokens, self.cells)))
        self.reader = Transformer(c.width, layers=c.layers, heads=c.heads, causal=False)
        self.spread = PositionNorm(self.tokens, c.width)
        self.quantizer = quantizer.Quantizer(c.width, levels=c.levels, kind=c.quantizer)
        self.vocabulary = self.quantizer.size
        self.given = nn.Linear(c.width, c.decoder_width)
        self.blank = nn.Parameter(torch.zeros(c.decoder_width))  # of a token that is not given
        self.order = nn.Parameter(0.02 * torch.randn(views, c.tokens, c.decoder_width))
        self.decoder = FlowDecoder(
            side=self.side, tokens=c.tokens, patch=c.patch, channels=c.channels,
            width=c.decoder_width, layers=c.decoder_layers, heads=c.decoder_heads,
        )  # fmt: skip
        self.until: Tensor  # (tokens,), least diffusion time at which each token is given
        self.register_buffer("until", times(c.tokens, c.schedule), persistent=False)
        self.mean: Tensor  # (v, 3, h, w), running
        self.register_buffer("mean", torch.zeros(views, 3, self.side, self.side))
        self.variance: Tensor  # (v, 1, 1, 1) of images less their mean, running
        self.register_buffer("variance", torch.ones(views, 1, 1, 1))
        self.batches: Tensor
        self.register_buffer("batches", torch.zeros(()))
        self.start: Tensor  # (3, h, w), the noise that `decode` begins with
        self.register_buffer("start", torch.randn(3, self.side, self.side))

    def encode(self, observations: Tensors) -> Tokens:
        """Return ids (B, T, K) of images (B, T, h, w, 3) uint8, each camera's coarsest first."""
        views = self._stacked(observations)
        ids: Tensor = self.quantizer(self._encoded(self._normalised(views))).ids
        return Tokens(rearrange(ids, "(b t v) k -> b t (v k)", **_axes(views)))

    def decode(self, tokens: Tokens, *, steps: int = 0) -> dict[str, Tensor]:
        """Return the cameras' images (B, T, h, w, 3) uint8 of ids (B, T, K).

        Tokens that the mask leaves out are not given to the decoder. `steps` are those of the flow
        (default: the config's).
        """
        check("Selftok.decode", tokens.ids, "B T K", K=self.tokens)
        check_range("Selftok.decode.steps", steps, 0, 1000)
        b, t = tokens.ids.shape[:2]
        ids = tokens.ids.reshape(-1, self.config.tokens)  # (b t v) k
        vectors = self.given(self.quantizer.vectors(ids))
        mask = None if tokens.mask is None else tokens.mask.reshape(ids.shape)
        x = self._sampled(vectors, mask, steps or self.config.steps)
        views = images.to_uint8(self._restored(rearrange(x, "(b t v) ... -> b t v ...", b=b, t=t)))
        return {key: views[:, :, view] for view, key in enumerate(self.images)}

    def truncate(self, tokens: Tokens, length: int) -> Tokens:
        """Return tokens of which each camera keeps the first `length`, the coarsest."""
        check_range("Selftok.truncate.length", length, 0, self.config.tokens)
        place = torch.arange(self.tokens, device=tokens.ids.device) % self.config.tokens
        mask = (place < length).expand_as(tokens.ids)
        return Tokens(tokens.ids, mask if tokens.mask is None else mask & tokens.mask)

    def loss(self, batch: Batch) -> Loss:
        """Return the squared error of the flow's network, whose target has unit variance.

        Parts: PSNR in dB of the images decoded in one step, the share of codes in use, and their
        perplexity.
        """
        views = self._stacked(batch.observations)
        if self.training:
            self._update_statistics(views)
        x = self._normalised(views)
        quantized = self.quantizer(self._encoded(x))
        t, pure = self._random_times(len(x), device=x.device)
        shown = self._random_prefixes(len(x), device=x.device)
        at_t, target = noised(x, torch.randn_like(x), t)
        out = self.decoder(at_t, t, self._given(self.given(quantized.vectors), t, shown))
        total = F.mse_loss(out, target) + quantized.loss
        axes = _axes(views)
        found = self._restored(rearrange(out.detach(), "(b t v) ... -> b t v ...", **axes))
        psnr = images.psnr(found.flatten(0, 2)[:pure], views.flatten(0, 2)[:pure])
        return Loss(total, {"psnr": psnr} | quantizer.usage(quantized.ids, self.vocabulary))

    def illustrate(self, store: EpisodeStore, folder: Path) -> Iterator[tuple[Path, str]]:
        """Draw held-out frames of `store` and their reconstructions from few to all tokens."""
        most = self.config.tokens
        lengths = [most // 2**power for power in range(5, -1, -1) if most >= 2**power]

        def decoded(seen: Tensors) -> dict[int, Tensors]:
            full = self.encode(seen)
            return {length: self.decode(self.truncate(full, length)) for length in lengths}

        yield from prefix_images.draw(
            store,
            folder,
            keys=self.images,
            name="Selftok",
            stride=1,
            device=self.mean.device,
            decoded=decoded,
        )

    def _stacked(self, observations: Tensors) -> Tensor:
        """Return the cameras' images (b, t, v, 3, h, w) in [-1, 1]; ShapeError if they are odd."""
        for key in self.images:
            seen = observations[key]
            check(f"Selftok[{key!r}]", seen, "B T h w c", h=self.side, w=self.side, c=3)
            if seen.dtype != torch.uint8:
                raise ShapeError(f"Selftok[{key!r}]: found {seen.dtype}, need uint8, 0 to 255")
        return images.stack(observations, self.images)

    @torch.no_grad()
    def _update_statistics(self, views: Tensor) -> None:
        """Update the mean image and the contrast with views (b, t, v, 3, h, w)."""
        self.batches += 1
        share = 1 / self.batches.clamp(max=100)
        self.mean.lerp_(views.mean(dim=(0, 1)), share)
        away = (views - self.mean).square().mean(dim=(0, 1)).mean(dim=(1, 2, 3), keepdim=True)
        self.variance.lerp_(away, share)

    def _normalised(self, views: Tensor) -> Tensor:
        """Return images ((b t v), 3, h, w) of mean 0 and variance 1."""
        return ((views - self.mean) / self.variance.sqrt().clamp(min=LEAST)).flatten(0, 2)

    def _restored(self, x: Tensor) -> Tensor:
        """Return views (b, t, v, 3, h, w) in [-1, 1] of normalised ones."""
        return self.mean + self.variance.sqrt().clamp(min=LEAST) * x

    def _encoded(self, x: Tensor) -> Tensor:
        """Return a vector (n, tokens, width) for each token of normalised images (n, 3, h, w).

        Queries attend to the cells of the image and to each other, cells to cells alone.
        """
        maps = self.encoder(x.contiguous(memory_format=torch.channels_last))
        cells = rearrange(maps, "n c y x -> n (y x) c") + self.places
        queries = self.queries.repeat(len(x) // len(self.queries), 1, 1) + self.mix @ cells
        both = torch.cat([cells, queries], dim=1)
        query = torch.arange(both.shape[1], device=x.device) >= self.cells
        read = self.reader(both, mask=query[:, None] | ~query)[:, self.cells :]
        views = rearrange(read, "(b v) k c -> b (v k) c", v=len(self.queries))
        spread: Tensor = self.spread(views)
        return rearrange(spread, "b (v k) c -> (b v) k c", v=len(self.queries))

    def _given(self, vectors: Tensor, t: Tensor, shown: Tensor | None) -> Tensor:
        """Return what the decoder is given at times t (n,) of vectors (n, tokens, width).

        `shown` (n, tokens) are the tokens that are known, all if None.
        """
        given = t[:, None] >= self.until
        given = given if shown is None else given & shown
        order = self.order.repeat(len(t) // len(self.order), 1, 1)
        return torch.where(given[..., None], vectors, self.blank.to(vectors.dtype)) + order

    def _sampled(self, vectors: Tensor, shown: Tensor | None, steps: int) -> Tensor:
        """Return normalised images (n, 3, h, w) of vectors (n, tokens, width), by Euler steps."""
        x = self.start.expand(len(vectors), -1, -1, -1)
        for step in range(steps):
            t = x.new_full((len(x),), 1 - step / steps)
            x = x - self.decoder.velocity(x, t, self._given(vectors, t, shown)) / steps
        return x

    def _random_times(self, count: int, *, device: torch.device) -> tuple[Tensor, int]:
        """Return times (count,), spread over [0, 1], and how many of the first are pure noise."""
        pure = max(1, round(self.config.noise * count))
        order = torch.randperm(count, device=device)
        spread = (order + torch.rand(count, device=device)) / count
        return spread.masked_fill(torch.arange(count, device=device) < pure, 1.0), pure

    def _random_prefixes(self, count: int, *, device: torch.device) -> Tensor | None:
        """Return which tokens (count, tokens) are kept; None, all of them, outside training."""
        if not self.training:
            return None
        whole = torch.rand(count, 1, device=device) >= self.config.dropout
        length = torch.randint(self.config.tokens, (count, 1), device=device)
        return whole | (torch.arange(self.config.tokens, device=device) < length)


class PositionNorm(nn.Module):
    """Vectors (n, K, width) brought to mean 0 and variance 1 over images, at each position.

    The vectors of a learned query differ more between queries than between images: without it a
    query gives the same code for all images. Training, too, normalises by the running statistics,
    without a gradient, since a batch has only as many vectors of a position as images.
    """

    def __init__(self, tokens: int, width: int, *, momentum: float = 0.05) -> None:
        """Take the sizes, and the share of a batch in the statistics."""
        super().__init__()
        self.momentum = momentum
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(tokens, width))
        self.variance: Tensor
        self.register_buffer("variance", torch.ones(tokens, width))
        self.batches: Tensor
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, K, width)."""
        x = x.to(self.mean.dtype)  # of lower precision under autocast
        if self.training:
            self._update(x.detach())
        return (x - self.mean) * (self.variance + 1e-6).rsqrt()

    @torch.no_grad()
    def _update(self, x: Tensor) -> None:
        self.batches += 1
        share = (1 / self.batches).clamp(min=self.momentum)
        self.mean.lerp_(x.mean(0), share)
        self.variance.lerp_((x - self.mean).square().mean(0), share)


def times(tokens: int, schedule: Sequence[float]) -> Tensor:
    """Return the least time (tokens,) at which each token is given, falling to 0 at the last.

    `schedule` are how many tokens, in proportion, are lost in each of equal intervals of time from
    1 (noise) to 0; within an interval they are lost evenly.
    """
    lost = np.concatenate([[0.0], np.cumsum(schedule)]) / np.sum(schedule)
    share = np.arange(1, tokens + 1) / tokens
    found = np.interp(share, lost, np.linspace(1, 0, len(lost)))
    return torch.from_numpy(found).float()


def _axes(views: Tensor) -> dict[str, int]:
    return dict(zip("btv", views.shape, strict=False))
