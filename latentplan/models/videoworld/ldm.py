"""The latent dynamics model: H codes for the changes over the next H frames.

Ren et al., VideoWorld (arXiv 2501.09781, section 3.2): a causal encoder over frames t .. t + H, one
learnable query a horizon h that attends to frames t .. t + h alone, a discrete code from each, and
a decoder that reconstructs frame t + h from the features of frame t and the codes 1 .. h. So codes
need not repeat the content of the first frame. Differs: small networks; one Q-Former with a mask
for all horizons instead of one each; the decoder moves the pixels of frame t and adds to them;
squared error that weights changing pixels, normalised in each frame by the change there, instead of
perceptual and adversarial losses; codes may also predict the optical flow (`motion`);
books of 64 codes by default, which suffice for simple arms (VideoWorld 2, arXiv 2602.10102,
ablations).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.models.videoworld.ldm_layers import CausalInTime, Conditioned, CrossAttention
from latentplan.nn import images, quantizer
from latentplan.nn.flow import optical_flow, warped
from latentplan.shapes import check
from latentplan.types import Batch, Loss, Spec, Tensors

FLOW = 0.125  # of an image's side: how far a flow of 1 moves a pixel


class LDM(nn.Module):
    """An autoencoder of clips: H + 1 frames to H codes, decoded given the first frame."""

    targets, reads = (), ()

    @dataclass(frozen=True)
    class Config:
        """What the network is made of."""

        images: tuple[str, ...] = ()  # observation keys, one code for all together; () for all
        horizon: int = 4  # H, codes a clip
        stride: int = 1  # observations from one frame of a clip to the next
        patch: int = 4  # pixels a side of one cell of the first map
        channels: tuple[int, ...] = (64, 96)  # each but the first halves the map's side
        layers: int = 2  # of the Q-Former
        heads: int = 4  # of its attention
        quantizer: str = "fsq"  # or vq, with as many codes
        levels: tuple[int, ...] = (4, 4, 4)  # values of each number of a code
        whiten: bool = False  # whether to decorrelate the numbers of a code
        motion: float = 0.0  # weight of predicting the optical flow from codes; 0 for none
        decoded: int = 2  # horizons reconstructed in a training step, drawn at random; at most H
        moving: float = 0.5  # weight of the share of the change that is not reconstructed
        changed: float = 0.08  # of [-1, 1]: the least change that counts as one

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            if not self.channels:
                raise ConfigError("LDM.channels: found none, need at least one")
            check_range("LDM.horizon", self.horizon, 1, 64)
            check_range("LDM.stride", self.stride, 1, 100)
            check_range("LDM.patch", self.patch, 1, 64)
            check_range("LDM.layers", self.layers, 1, 100)
            check_range("LDM.motion", self.motion, 0, 1000)
            check_range("LDM.decoded", self.decoded, 1, self.horizon)
            check_range("LDM.moving", self.moving, 0, 1000)
            check_range("LDM.changed", self.changed, 0, 2)
            quantizer.check("LDM", self.quantizer, self.levels)
            for value in self.channels:
                if value % 8 or value % self.heads:
                    raise ConfigError(f"LDM.channels: {value} is not a multiple of 8 and of heads")

        @property
        def span(self) -> int:
            """Observations from the first to the last frame of a clip."""
            return self.horizon * self.stride

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the network for the images of `spec`."""
        super().__init__()
        c = self.config = config or self.Config()
        self._keys = images.keys("LDM.images", c.images, spec)
        self.spec = replace(
            spec, observation={key: spec.observation[key] for key in self._keys}, privileged=()
        )
        self.window = c.span + 1
        side, views = images.square("LDM.images", self._keys, spec), len(self._keys)
        factor = images.factor(c.channels, patch=c.patch)
        if side % factor:
            raise ConfigError(
                f"LDM.channels: patches of {c.patch} and {len(c.channels)} sizes need images "
                f"whose side is a multiple of {factor}, found {side} pixels"
            )
        width, grid = c.channels[-1], side // factor
        self.encoder = images.down(6 * views, c.channels, patch=c.patch)  # frame and change
        self.causal = nn.ModuleList(CausalInTime(width) for _ in range(2))
        self.space_position = nn.Parameter(0.02 * torch.randn(grid * grid, width))
        self.time_position = nn.Parameter(0.02 * torch.randn(c.horizon + 1, 1, width))
        self.queries = nn.Parameter(0.02 * torch.randn(c.horizon, width))
        self.attention = nn.ModuleList(CrossAttention(width, c.heads) for _ in range(c.layers))
        self.quantizer = quantizer.Quantizer(
            width, levels=c.levels, kind=c.quantizer, whiten=c.whiten
        )
        self.vocabulary = self.quantizer.size  # codes are below it
        self.code_position = nn.Parameter(0.02 * torch.randn(c.horizon, width))
        self.condition = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.merge = nn.Conv2d(2 * width, width, 3, padding=1)
        self.refine = nn.ModuleList(Conditioned(width) for _ in range(2))
        self.decoder = images.up(c.channels, 5 * views, patch=c.patch)  # colours, and a flow
        if c.motion:
            self.motion = Motion(width, views=views)
        with torch.no_grad():  # starts by reconstructing frame t
            for weight in self.decoder[-2].parameters():  # before the shuffle
                weight.mul_(0.1)
        seen = torch.arange(c.horizon + 1)[None] <= torch.arange(1, c.horizon + 1)[:, None]
        mask = seen[:, :, None].expand(-1, -1, grid * grid).flatten(1)  # h ((H + 1) grid grid)
        self.mask: Tensor
        self.register_buffer("mask", mask, persistent=False)

    def encode(self, observations: Tensors) -> Tensor:
        """Return codes (B, H) int64 of windows (B, >= span + 1, h, w, 3) uint8 from their start."""
        return self._quantize(self._features(self._clip(observations))).ids

    def quantize_clip(self, frames: Tensors) -> Tensor:
        """Return codes (B, H) int64 of clips (B, H + 1, h, w, 3) uint8, the stride taken."""
        return self._quantize(self._features(images.stack(frames, self._keys))).ids

    def encode_video(self, frames: Tensors, *, rows: slice = slice(None)) -> Tensor:
        """Return the codes (n, H) of the frames `rows` of a video (L, h, w, 3) uint8.

        After the last frame the video repeats it.
        """
        c = self.config
        video = images.stack({key: frames[key][None] for key in self._keys}, self._keys)[0]
        ahead = torch.arange(len(video))[rows, None] + c.stride * torch.arange(c.horizon + 1)
        ahead = ahead.clamp(max=len(video) - 1)
        if not len(ahead):
            return torch.empty(0, c.horizon, dtype=torch.long)
        # Clips overlap: each pair of a frame and the one before it is encoded once.
        pairs = torch.stack([ahead, _before(ahead)], dim=-1).flatten(0, 1)
        pairs, index = torch.unique(pairs, dim=0, return_inverse=True)
        maps = self._encode_pairs(video[pairs[:, 0]], video[pairs[:, 1]])
        maps = maps[index].view(*ahead.shape, *maps.shape[1:])
        return self._quantize(self._in_time(maps)).ids

    def decode(self, observations: Tensors, codes: Tensor) -> dict[str, Tensor]:
        """Return the next H frames (B, H, h, w, 3) uint8 a camera.

        They follow the first frame of the observations (B, >= 1, h, w, 3), given codes (B, H).
        """
        check("LDM.decode.codes", codes, "B H", H=self.config.horizon)
        first = images.stack({k: observations[k][:, :1] for k in self._keys}, self._keys)
        maps = self._features(first)[:, 0]
        conditions = self._conditions(self.quantizer.vectors(codes))
        shown = images.to_uint8(self._frames(first[:, 0], maps, conditions))
        return {key: shown[:, :, view] for view, key in enumerate(self._keys)}

    def loss(self, batch: Batch) -> Loss:
        """Return the weighted squared error of the reconstructed frames, with PSNR and code usage.

        `psnr_moving` is the PSNR of the pixels that change, a mean over cameras; `psnr_still` is
        that of a copy of frame t, and the difference is the gain from the codes. `left_CAMERA` is
        the share of the change and `flow_CAMERA` the share of the motion that the codes miss.
        """
        c = self.config
        clip = self._clip(batch.observations)
        maps = self._features(clip)
        quantized = self._quantize(maps)
        conditions = self._conditions(quantized.vectors)  # b H width
        chosen = torch.arange(c.horizon, device=clip.device)
        if self.training:
            chosen = torch.randperm(c.horizon, device=clip.device)[: c.decoded].sort().values
        frames = self._frames(clip[:, 0], maps[:, 0], conditions[:, chosen])
        truth, before = clip[:, 1 + chosen], clip[:, :1]
        changed = (truth - before).abs().amax(dim=3, keepdim=True) > c.changed
        moved = changed.float()
        wrong = _of_moving((frames - truth).square(), moved)
        still = _of_moving((before - truth).square(), moved)
        # Images of a camera on the hand change more than those of a static one, and later frames
        # more than earlier ones: normalise, so that each weighs the same.
        left = wrong / still.clamp(min=1e-3)  # n v
        total = quantized.loss + c.moving * left.mean()
        total = total + (frames - truth).square().mean() + 0.1 * F.l1_loss(frames, truth)
        flow_parts = {}
        if c.motion:
            missed = self.motion(quantized.vectors, clip, grid=maps.shape[-1])  # a camera
            total = total + c.motion * missed.mean()
            shares = zip(self._keys, missed, strict=True)
            flow_parts = {f"flow_{k}": each.detach() for k, each in shares}
        with torch.no_grad():
            parts = {
                "psnr": images.psnr(frames, truth),
                "psnr_moving": (10 * torch.log10(4 / wrong.clamp(min=1e-8))).mean(),
                "psnr_still": (10 * torch.log10(4 / still.clamp(min=1e-8))).mean(),
            }
            of_change = left.detach().mean(0)
            parts |= {f"left_{k}": each for k, each in zip(self._keys, of_change, strict=True)}
        return Loss(total, parts | flow_parts | quantizer.usage(quantized.ids, self.vocabulary))

    def _clip(self, observations: Tensors) -> Tensor:
        """Return the frames (b, H + 1, v, 3, h, w) of a window; ConfigError if it is too short."""
        c = self.config
        length = observations[self._keys[0]].shape[1]
        if length < c.span + 1:
            raise ConfigError(
                f"LDM.horizon: {c.horizon} codes of stride {c.stride} need windows of {c.span + 1} "
                f"observations, found {length}; set training.window, or a shorter horizon"
            )
        frames = {k: observations[k][:, : c.span + 1 : c.stride] for k in self._keys}
        return images.stack(frames, self._keys)

    def _features(self, clip: Tensor) -> Tensor:
        """Return maps (b, t, width, y, x) of a clip; map t depends on frames up to t alone."""
        maps = self._encode_pairs(clip.flatten(0, 1), _before(clip).flatten(0, 1))
        return self._in_time(maps.view(*clip.shape[:2], *maps.shape[1:]))

    def _encode_pairs(self, frames: Tensor, before: Tensor) -> Tensor:
        """Return maps (n, width, y, x) of frames (n, v, c, h, w), each after the one before it."""
        both = torch.cat([frames, frames - before], dim=2)
        both = rearrange(both, "n v c h w -> n (v c) h w")
        maps: Tensor = self.encoder(both.contiguous(memory_format=torch.channels_last))
        return maps

    def _in_time(self, maps: Tensor) -> Tensor:
        """Return maps (b, t, width, y, x) with causal features over time."""
        maps = maps.transpose(1, 2)
        for layer in self.causal:
            maps = layer(maps)
        return maps.transpose(1, 2)

    def _quantize(self, maps: Tensor) -> quantizer.Quantized:
        """Return the H codes of the maps of H + 1 frames."""
        positions = self.space_position + self.time_position  # t (y x) c
        tokens = rearrange(maps, "b t c y x -> b t (y x) c") + positions
        tokens = rearrange(tokens, "b t n c -> b (t n) c")
        queries = self.queries.expand(len(maps), -1, -1)
        for layer in self.attention:
            queries = layer(queries, tokens, self.mask)
        found: quantizer.Quantized = self.quantizer(queries)
        return found

    def _conditions(self, vectors: Tensor) -> Tensor:
        """Return conditions (b, H, width): row h depends on codes 1 .. h alone."""
        count = torch.arange(1, self.config.horizon + 1, device=vectors.device)[:, None]
        total: Tensor = self.condition(vectors + self.code_position).cumsum(dim=1) / count**0.5
        return total + self.code_position

    def _frames(self, first: Tensor, maps: Tensor, conditions: Tensor) -> Tensor:
        """Return frames (b, n, v, 3, h, w) of frame t (b, v, 3, h, w), maps, conditions (b, n, c).

        The decoder warps the pixels of frame t, and adds a residual image.
        """
        n, v = conditions.shape[1], first.shape[1]
        condition = conditions.flatten(0, 1)
        first_maps = maps[:, None].expand(-1, n, -1, -1, -1).flatten(0, 1)
        spread = condition[:, :, None, None].expand(-1, -1, *first_maps.shape[2:])
        x = self.merge(torch.cat([first_maps, spread], dim=1))
        for layer in self.refine:
            x = layer(x, condition)
        out = rearrange(self.decoder(x), "(b n) (v c) h w -> b n v c h w", n=n, v=v)
        start = first[:, None].expand(-1, n, -1, -1, -1, -1)
        flow = FLOW * first.shape[-1] * out[:, :, :, :2]
        moved = warped(start.flatten(0, 2), flow.flatten(0, 2)).view_as(start)
        frames: Tensor = moved + out[:, :, :, 2:]
        return frames


class Motion(nn.Module):
    """A linear head that predicts the mean optical flow of step h from code h alone.

    The flow has three numbers an image: to the right, down, and away from the centre, each of equal
    weight. Under errors of pixels alone, a code would mostly encode the changes that cover much of
    an image, and little of the arm's motion.
    """

    GRAIN = 4  # pixels a side of a cell of the maps, in the images whose flow is computed

    def __init__(self, width: int, *, views: int) -> None:
        """Make the layer for vectors of `width`."""
        super().__init__()
        self.linear = nn.Linear(width, views * 3)

    def forward(self, vectors: Tensor, clip: Tensor, *, grid: int) -> Tensor:
        """Return the share (v,) of the motion that the prediction misses.

        Of codes' vectors (b, H, c) and clips (b, H + 1, v, 3, h, w) with maps of `grid` cells a
        side.
        """
        b, steps, views = clip.shape[0], clip.shape[1] - 1, clip.shape[2]
        with torch.no_grad():
            side = self.GRAIN * grid
            small = F.adaptive_avg_pool2d(clip.flatten(0, 2), side)
            small = small.view(*clip.shape[:4], side, side)
            flow = optical_flow(small[:, :-1].flatten(0, 2), small[:, 1:].flatten(0, 2))
            axis = torch.linspace(-1, 1, side, device=flow.device)
            away = flow[:, 0] * axis + flow[:, 1] * axis[:, None]
            moved = torch.stack([*flow.unbind(1), away], dim=1).mean((2, 3))
            moved = moved.view(b, steps, views, 3)
        wrong = (self.linear(vectors).view_as(moved) - moved).square().mean((0, 1))
        share: Tensor = wrong / moved.square().mean((0, 1)).clamp(min=1e-4)
        return share.mean(-1)


def _of_moving(squared: Tensor, moved: Tensor) -> Tensor:
    """Return the mean (n, v) of errors (b, n, v, 3, h, w) where `moved` (b, n, v, 1, h, w) is 1."""
    every = (0, 3, 4, 5)
    found: Tensor = (moved * squared).sum(every) / (3 * moved.sum(every)).clamp(min=1)
    return found


def _before(clips: Tensor) -> Tensor:
    """Return clips (b, t, ...) delayed by one frame; the first frame repeats."""
    return torch.cat([clips[:, :1], clips[:, :-1]], dim=1)
