"""A 3-D VQ-VAE with axial attention: discrete tokens of clips, not of single frames.

The first stage of VideoGPT (Yan et al., arXiv 2104.10157, section 3.1; layout as in its released
code): strided 3-D convolutions, attention residual blocks, a code book that follows the encoder by
running means and replaces unused codes, and the same backwards.
Differs: the encoder is causal in time, so that a token depends on no later frame, the tokens of
the first frames of a clip are those of these frames alone, and the prior's likelihood of a frame
is given the frames before it. The decoder sees the whole clip, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import log2

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, ShapeError, check_range
from latentplan.nn import images, quantizer
from latentplan.shapes import check
from latentplan.types import Batch, Loss, Spec, Tensors, Tokens

Steps = tuple[int, int, int]  # of time, height, width


class VideoVQVAE(nn.Module):
    """A `protocols.Tokenizer`: K = cameras x (side / stride)^2 tokens per `stride[0]` frames."""

    targets: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    @dataclass(frozen=True)
    class Config:
        """The network and its loss."""

        images: tuple[str, ...] = ()  # observation keys of the cameras; () for all of the spec
        clip: int = 8  # frames of a training window
        stride: Steps = (2, 8, 8)  # frames, rows and columns of pixels that a token covers
        width: int = 32  # channels of the convolutions
        blocks: int = 1  # attention residual blocks of the encoder, and of the decoder
        heads: int = 2  # of the axial attention
        embedding: int = 32  # length of a code's vector
        codes: int = 256  # K, entries of the code book
        decay: float = 0.99  # of the running means that the codes are
        commitment: float = 0.25  # weight of the encoder's distance to its codes
        variance: float = 0.06  # of the data, images in [-0.5, 0.5]: divides the squared error
        diversity: float = 0.0  # weight of a loss that spreads the vectors over all codes

        def __post_init__(self) -> None:
            """Raise ConfigError where a field is out of its range."""
            for value in self.stride:
                if value < 1 or value & (value - 1):
                    raise ConfigError(f"VideoVQVAE.stride: {value} is not a power of two")
            if max(self.stride) == 1:
                raise ConfigError(
                    f"VideoVQVAE.stride: {self.stride} compresses nothing, need a 2 or more"
                )
            if self.clip < 1 or self.clip % self.stride[0]:
                raise ConfigError(
                    f"VideoVQVAE.clip: {self.clip} frames are not a multiple of the stride in "
                    f"time, {self.stride[0]}"
                )
            for name in ("width", "embedding", "heads"):
                check_range(f"VideoVQVAE.{name}", getattr(self, name), 1)
            if self.width % (2 * self.heads):
                raise ConfigError(
                    f"VideoVQVAE.width: {self.width} is not a multiple of 2 heads="
                    f"{2 * self.heads}"
                )
            check_range("VideoVQVAE.codes", self.codes, 2, 1 << 20)
            check_range("VideoVQVAE.blocks", self.blocks, 0)
            check_range("VideoVQVAE.decay", self.decay, 0.0, 1.0)
            check_range("VideoVQVAE.variance", self.variance, 1e-6)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the network for the images of `spec`."""
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        c = self.config = config or self.Config()
        self.images = images.keys("VideoVQVAE.images", c.images, spec)
        seen = {key: spec.observation[key] for key in self.images}
        self.spec = replace(spec, observation=seen, privileged=())
        self.window, self.stride, self.vocabulary = c.clip, c.stride[0], c.codes
        side = images.square("VideoVQVAE.images", self.images, spec)
        if side % c.stride[1] or side % c.stride[2]:
            raise ConfigError(
                f"VideoVQVAE.stride: {c.stride} does not divide images of {side} pixels a side"
            )
        self.grid = (side // c.stride[1], side // c.stride[2])  # rows and columns of tokens
        self.tokens = len(self.images) * self.grid[0] * self.grid[1]  # K
        strides = halvings(c.stride)
        sizes = [3] + [c.width] * len(strides)
        self.encoder = nn.Sequential(
            *[
                nn.Sequential(CausalConv(before, after, stride), nn.ReLU())
                for (before, after), stride in zip(pairwise(sizes), strides, strict=True)
            ],
            CausalConv(c.width, c.width, (1, 1, 1)),
            *[AttentionResidual(c.width, c.heads, causal=True) for _ in range(c.blocks)],
            BatchNorm(c.width),
            nn.ReLU(),
            nn.Conv3d(c.width, c.embedding, 1),
        )
        self.quantizer = VectorQuantize(
            c.embedding,
            c.codes,
            decay=c.decay,
            commitment_weight=c.commitment,
            kmeans_init=True,
            threshold_ema_dead_code=1,
            codebook_diversity_loss_weight=c.diversity,
        )
        self.decoder = nn.Sequential(
            nn.Conv3d(c.embedding, c.width, 1),
            *[AttentionResidual(c.width, c.heads, causal=False) for _ in range(c.blocks)],
            BatchNorm(c.width),
            nn.ReLU(),
            *[
                nn.Sequential(upsampling(c.width, c.width, stride), nn.ReLU())
                for stride in strides[:0:-1]
            ],
            nn.Sequential(upsampling(c.width, 3, strides[0])),
        )

    def encode(self, observations: Tensors) -> Tokens:
        """Return ids (B, T / stride, K) of images (B, T, h, w, 3) uint8."""
        views = self._views(observations)
        _, ids, _ = self._quantized(views)
        return Tokens(rearrange(ids, "(b v) t y x -> b t (v y x)", v=len(self.images)))

    def decode(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return the cameras' images (B, T, h, w, 3) uint8 of ids (B, T / stride, K)."""
        check("VideoVQVAE.decode", tokens.ids, "B T K", K=self.tokens)
        y, x = self.grid
        ids = rearrange(tokens.ids, "b t (v y x) -> (b v) (t y x)", y=y, x=x)
        vectors = self.quantizer.get_output_from_indices(ids)
        vectors = rearrange(vectors, "n (t y x) c -> n c t y x", y=y, x=x)
        frames = images.to_uint8(self._frames(vectors))  # (b v) t h w c
        cameras = rearrange(frames, "(b v) t h w c -> v b t h w c", v=len(self.images))
        return dict(zip(self.images, cameras, strict=True))

    def loss(self, batch: Batch) -> Loss:
        """Return the squared error over the data's variance, plus the quantizer's loss.

        Parts: PSNR in dB, the quantizer's loss, the share of codes in use, their perplexity.
        """
        views = self._views(batch.observations)
        vectors, ids, matched = self._quantized(views)
        shown = self._frames(vectors)
        error = F.mse_loss(shown, views) / 4  # images in [-0.5, 0.5] there, in [-1, 1] here
        total = error / self.config.variance + matched
        parts = {"psnr": images.psnr(shown.detach(), views), "codes": matched.detach()}
        return Loss(total, parts | quantizer.usage(ids, self.vocabulary))

    def _views(self, observations: Tensors) -> Tensor:
        """Return (b v) t c h w in [-1, 1]; ShapeError unless T is a multiple of the stride."""
        views = images.stack(observations, self.images)  # b t v c h w
        if views.shape[1] % self.stride:
            raise ShapeError(
                f"VideoVQVAE.encode: found {views.shape[1]} frames, need a multiple of "
                f"{self.stride}"
            )
        return rearrange(views, "b t v c h w -> (b v) t c h w")

    def _quantized(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return vectors (n, c, t, y, x), ids (n, t, y, x) and a loss of views (n, t, 3, h, w)."""
        features = self.encoder(rearrange(views, "n t c h w -> n c t h w"))
        t, y, x = features.shape[2:]
        vectors, ids, loss = self.quantizer(rearrange(features, "n c t y x -> n (t y x) c"))
        vectors = rearrange(vectors, "n (t y x) c -> n c t y x", t=t, y=y, x=x)
        return vectors, rearrange(ids, "n (t y x) -> n t y x", t=t, y=y, x=x), loss.sum()

    def _frames(self, vectors: Tensor) -> Tensor:
        """Return (n, t, 3, h, w) of vectors (n, c, t, y, x)."""
        frames: Tensor = rearrange(self.decoder(vectors), "n c t h w -> n t c h w")
        return frames


class AttentionResidual(nn.Module):
    """Convolutions and axial attention, added to their input (figure 3 of the paper)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        """Make the layers."""
        super().__init__()
        conv = CausalConv if causal else CentredConv
        self.layers = nn.Sequential(
            BatchNorm(width),
            nn.ReLU(),
            conv(width, width // 2, (1, 1, 1)),
            BatchNorm(width // 2),
            nn.ReLU(),
            nn.Conv3d(width // 2, width, 1),
            BatchNorm(width),
            nn.ReLU(),
            AxialAttention(width, heads, causal=causal),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, width, t, y, x)."""
        out: Tensor = x + self.layers(x)
        return out


class AxialAttention(nn.Module):
    """The sum of self-attention along time, along columns and along rows."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        """Make the projections; `causal` masks later frames."""
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(3))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, width, t, y, x)."""
        x = x.movedim(1, -1)  # n t y x c
        total = torch.zeros_like(x)
        for axis in range(3):
            line = x.movedim(axis + 1, -2)  # n . . l c
            parts = self.qkv[axis](line).unflatten(-1, (3, self.heads, -1))
            q, k, v = rearrange(parts, "n i j l s h d -> s (n i j) h l d")
            causal = self.causal and axis == 0
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
            seen = rearrange(seen, "b h l d -> b l (h d)").view(line.shape)
            total = total + self.out[axis](seen).movedim(-2, axis + 1)
        return total.movedim(-1, 1)


class BatchNorm(nn.BatchNorm3d):
    """Batch normalisation whose running statistics begin at those of the first batch."""

    settled = False  # whether the momentum has reached its least

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, width, t, y, x)."""
        if self.training and not self.settled and self.num_batches_tracked is not None:
            # Waits for a GPU, so not after the first ten batches.
            self.momentum = max(0.1, 1 / (int(self.num_batches_tracked) + 1))
            self.settled = self.momentum == 0.1
        return super().forward(x)


class CausalConv(nn.Conv3d):
    """A 3-D convolution whose output depends on no later frame."""

    def __init__(self, before: int, after: int, stride: Steps) -> None:
        """Make the layer."""
        super().__init__(before, after, kernel(stride), stride, padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, after, t, y, x)."""
        past = self.kernel_size[0] - self.stride[0]
        return super().forward(F.pad(x, (0, 0, 0, 0, past, 0)))


class CentredConv(nn.Conv3d):
    """A 3-D convolution that sees as much before as after."""

    def __init__(self, before: int, after: int, stride: Steps) -> None:
        """Make a kernel of 3 along each axis."""
        super().__init__(before, after, 3, stride, padding=1)


def upsampling(before: int, after: int, stride: Steps) -> nn.ConvTranspose3d:
    """Return a transposed convolution that multiplies each axis by its stride, 1 or 2."""
    return nn.ConvTranspose3d(before, after, kernel(stride), stride, padding=1)


def kernel(stride: Steps) -> Steps:
    """Return the kernel's sizes: 4 along strided axes, 3 along the others."""
    t, y, x = (4 if s == 2 else 3 for s in stride)
    return t, y, x


def halvings(stride: Steps) -> list[Steps]:
    """Return the strides, 1 or 2 an axis, of as few convolutions as make up `stride`."""
    count = int(log2(max(stride)))
    powers = [int(log2(s)) for s in stride]
    steps = [tuple(2 if i < p else 1 for p in powers) for i in range(count)]
    return [(t, y, x) for t, y, x in steps]
