"""The latent dynamics model: H codes that say what changes over the next H frames.

Ren et al., VideoWorld (arXiv 2501.09781, section 3.2): a causal encoder over frames t .. t + H, one
learnable query a horizon h that attends to frames t .. t + h alone, a discrete code from each, and
a decoder that paints frame t + h from the features of frame t and the codes 1 .. h. So a code has
no room for what the first frame shows already. Differs: small networks; one Q-Former with a mask
for all horizons instead of one each; the decoder moves the pixels of frame t, each by a flow of its
own or a few `parts` as a whole, and adds to them; squared error with more weight on pixels that
change, in each frame by what changes there, instead of perceptual and adversarial losses; books of
64 codes by default, which suffice for simple arms (VideoWorld 2, arXiv 2602.10102, ablations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.nn import pictures, quantizer
from latentplan.shapes import check
from latentplan.types import Batch, Loss, Spec, Tensors

FLOW = 0.25  # of half a picture: what a flow of 1 moves a pixel by


class LDM(nn.Module):
    """Clips of H + 1 frames to H codes, and back from the first frame and the codes."""

    @dataclass(frozen=True)
    class Config:
        """What the network is made of."""

        images: tuple[str, ...] = ("rgb",)  # observation keys; one code for all cameras together
        horizon: int = 4  # H, codes a clip
        stride: int = 1  # observations from one frame of a clip to the next
        patch: int = 4  # pixels a side that are one place of the first map
        channels: tuple[int, ...] = (64, 96)  # each but the first halves the map's side
        layers: int = 2  # of the Q-Former
        heads: int = 4
        quantizer: str = "fsq"  # or vq, with as many codes
        levels: tuple[int, ...] = (4, 4, 4)  # values of each number of a code
        whiten: bool = False  # whether the numbers of a code are to be uncorrelated
        parts: int = 0  # of a frame, each moved as a whole by the codes; 0: a flow for each pixel
        decoded: int = 2  # horizons painted in a training step, drawn anew; at most H
        moving: float = 0.5  # weight of the share of the change that is not painted
        changed: float = 0.08  # of [-1, 1]: the least change that counts as one

        def __post_init__(self) -> None:
            """Raise ConfigError where a field is out of its range."""
            if not self.images or not self.channels:
                raise ConfigError("LDM.images, LDM.channels: found none, need at least one")
            check_range("LDM.horizon", self.horizon, 1, 64)
            check_range("LDM.stride", self.stride, 1, 100)
            check_range("LDM.patch", self.patch, 1, 64)
            check_range("LDM.layers", self.layers, 1, 100)
            check_range("LDM.parts", self.parts, 0, 64)
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
        """Build the network for the pictures of `spec`."""
        super().__init__()
        c = self.config = config or self.Config()
        self.spec = spec
        self.context = c.span  # a training window needs one observation more
        side, views = pictures.square("LDM.images", c.images, spec), len(c.images)
        factor = pictures.factor(c.channels, patch=c.patch)
        if side % factor:
            raise ConfigError(
                f"LDM.channels: patches of {c.patch} and {len(c.channels)} sizes need pictures "
                f"whose side is a multiple of {factor}, found {side} pixels"
            )
        width, grid = c.channels[-1], side // factor
        self.encoder = pictures.down(6 * views, c.channels, patch=c.patch)  # frame and change
        self.time = nn.ModuleList(CausalInTime(width) for _ in range(2))
        self.where = nn.Parameter(0.02 * torch.randn(grid * grid, width))
        self.when = nn.Parameter(0.02 * torch.randn(c.horizon + 1, 1, width))
        self.queries = nn.Parameter(0.02 * torch.randn(c.horizon, width))
        self.look = nn.ModuleList(CrossAttention(width, c.heads) for _ in range(c.layers))
        self.quantizer = quantizer.Quantizer(
            width, levels=c.levels, kind=c.quantizer, whiten=c.whiten
        )
        self.codes = self.quantizer.size
        self.place = nn.Parameter(0.02 * torch.randn(c.horizon, width))
        self.read = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.join = nn.Conv2d(2 * width, width, 3, padding=1)
        self.paint = nn.ModuleList(Conditioned(width) for _ in range(2))
        painted = 3 if c.parts else 5  # colours, and a flow
        self.decoder = pictures.up(c.channels, painted * views, patch=c.patch)
        if c.parts:
            self.parts = Parts(c.channels, c.parts, views=views, patch=c.patch)
        with torch.no_grad():  # begins by painting frame t again
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
        return self._quantize(self._features(pictures.stack(frames, self._keys))).ids

    def encode_video(self, frames: Tensors, *, rows: slice = slice(None)) -> Tensor:
        """Return the codes (n, H) of the frames `rows` of a video (L, h, w, 3) uint8.

        Behind its last frame the world stands still.
        """
        c = self.config
        video = pictures.stack({key: frames[key][None] for key in self._keys}, self._keys)[0]
        ahead = torch.arange(len(video))[rows, None] + c.stride * torch.arange(c.horizon + 1)
        ahead = ahead.clamp(max=len(video) - 1)
        if not len(ahead):
            return torch.empty(0, c.horizon, dtype=torch.long)
        # Clips overlap: what a frame is after another is seen once for all of them.
        pairs = torch.stack([ahead, _before(ahead)], dim=-1).flatten(0, 1)
        pairs, place = torch.unique(pairs, dim=0, return_inverse=True)
        maps = self._see(video[pairs[:, 0]], video[pairs[:, 1]])
        maps = maps[place].view(*ahead.shape, *maps.shape[1:])
        return self._quantize(self._in_time(maps)).ids

    def decode(self, observations: Tensors, codes: Tensor) -> dict[str, Tensor]:
        """Return the H frames to come (B, H, h, w, 3) uint8 a camera.

        From the first frame of the observations (B, >= 1, h, w, 3) and codes (B, H).
        """
        check("LDM.decode.codes", codes, "B H", H=self.config.horizon)
        first = pictures.stack({k: observations[k][:, :1] for k in self.config.images}, self._keys)
        maps = self._features(first)[:, 0]
        conditions = self._conditions(self.quantizer.vectors(codes))
        shown = pictures.to_uint8(self._frames(first[:, 0], maps, conditions)[-1])
        return {key: shown[:, :, view] for view, key in enumerate(self._keys)}

    def loss(self, batch: Batch) -> Loss:
        """Return the weighted squared error of the frames painted, with PSNR and the codes' use.

        `psnr_moving` is that of the pixels which change, a mean over cameras, and `psnr_still` what
        it would be if frame t were painted again: what the codes are worth is the difference, and
        `left_CAMERA` the share of the change that they miss.
        """
        c = self.config
        clip = self._clip(batch.observations)
        maps = self._features(clip)
        quantized = self._quantize(maps)
        conditions = self._conditions(quantized.vectors)  # b H width
        chosen = torch.arange(c.horizon)
        if self.training:
            chosen = torch.randperm(c.horizon)[: c.decoded].sort().values
        chosen = chosen.to(clip.device)
        shown = self._frames(clip[:, 0], maps[:, 0], conditions[:, chosen])
        truth, before = clip[:, 1 + chosen], clip[:, :1]
        total = quantized.loss
        for frames in shown:
            total = total + (frames - truth).square().mean() + 0.1 * F.l1_loss(frames, truth)
            wrong, still = self._errors(frames, truth, before)
            # A camera on the hand changes more than one that looks at it, and later frames more
            # than earlier ones: each counts as much.
            left = wrong / still.clamp(min=1e-3)
            total = total + c.moving * left.mean()
            if c.parts:  # where two pictures do not overlap, blurred ones do
                wrong_b, still_b = self._errors(*map(_blurred, (frames, truth, before)))
                total = total + c.moving * (wrong_b / still_b.clamp(min=1e-3)).mean()
        with torch.no_grad():
            parts = {
                "psnr": pictures.psnr(shown[-1], truth),
                "psnr_moving": (10 * torch.log10(4 / wrong.clamp(min=1e-8))).mean(),
                "psnr_still": (10 * torch.log10(4 / still.clamp(min=1e-8))).mean(),
            }
            shares = left.detach().mean(0)
            parts |= {f"left_{k}": each for k, each in zip(self._keys, shares, strict=True)}
        return Loss(total, parts | quantizer.usage(quantized.ids, self.codes))

    def _errors(self, frames: Tensor, truth: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared errors (n, v) of frames (b, n, v, 3, h, w), and of painting none anew.

        Both are means over the pixels that change from `before` (b, 1, v, 3, h, w) to the truth.
        """
        changed = (truth - before).abs().amax(dim=3, keepdim=True) > self.config.changed
        moved = changed.float()
        wrong = _of_moving((frames - truth).square(), moved)
        return wrong, _of_moving((before - truth).square(), moved)

    @property
    def _keys(self) -> tuple[str, ...]:
        return self.config.images

    def _clip(self, observations: Tensors) -> Tensor:
        """Return the frames (b, H + 1, v, 3, h, w) of a window; ConfigError where it is short."""
        c = self.config
        length = observations[c.images[0]].shape[1]
        if length < c.span + 1:
            raise ConfigError(
                f"LDM.horizon: {c.horizon} codes of stride {c.stride} need windows of {c.span + 1} "
                f"observations, found {length}; set training.window, or a shorter horizon"
            )
        frames = {k: observations[k][:, : c.span + 1 : c.stride] for k in c.images}
        return pictures.stack(frames, c.images)

    def _features(self, clip: Tensor) -> Tensor:
        """Return maps (b, t, width, y, x) of a clip; map t depends on frames up to t alone."""
        maps = self._see(clip.flatten(0, 1), _before(clip).flatten(0, 1))
        return self._in_time(maps.view(*clip.shape[:2], *maps.shape[1:]))

    def _see(self, frames: Tensor, before: Tensor) -> Tensor:
        """Return maps (n, width, y, x) of frames (n, v, c, h, w), each after the one before it."""
        both = torch.cat([frames, frames - before], dim=2)
        both = rearrange(both, "n v c h w -> n (v c) h w")
        maps: Tensor = self.encoder(both.contiguous(memory_format=torch.channels_last))
        return maps

    def _in_time(self, maps: Tensor) -> Tensor:
        """Return maps (b, t, width, y, x) that know of those before them."""
        maps = maps.transpose(1, 2)
        for layer in self.time:
            maps = layer(maps)
        return maps.transpose(1, 2)

    def _quantize(self, maps: Tensor) -> quantizer.Quantized:
        """Return the H codes of the maps of H + 1 frames."""
        tokens = rearrange(maps, "b t c y x -> b t (y x) c") + self.where + self.when
        tokens = rearrange(tokens, "b t n c -> b (t n) c")
        asked = self.queries.expand(len(maps), -1, -1)
        for layer in self.look:
            asked = layer(asked, tokens, self.mask)
        found: quantizer.Quantized = self.quantizer(asked)
        return found

    def _conditions(self, vectors: Tensor) -> Tensor:
        """Return (b, H, width): number h tells of codes 1 .. h alone."""
        counted = torch.arange(1, self.config.horizon + 1, device=vectors.device)[:, None]
        told: Tensor = self.read(vectors + self.place).cumsum(dim=1) / counted**0.5
        return told + self.place

    def _frames(self, first: Tensor, maps: Tensor, conditions: Tensor) -> tuple[Tensor, ...]:
        """Return frames (b, n, v, 3, h, w): what training compares with the truth, the best last.

        Of frame t (b, v, 3, h, w), its maps, and conditions (b, n, c). Where frames have parts,
        first what their motions alone make of it; then with colours for what that cannot show,
        whose gradient ends before the codes: so codes are about motion (VideoWorld 2, arXiv
        2602.10102, stops the gradient of what paints details likewise).
        """
        n, v = conditions.shape[1], first.shape[1]
        told = conditions.flatten(0, 1)
        if self.config.parts:
            told = told.detach()
        here = maps[:, None].expand(-1, n, -1, -1, -1).flatten(0, 1)
        spread = told[:, :, None, None].expand(-1, -1, *here.shape[2:])
        x = self.join(torch.cat([here, spread], dim=1))
        for layer in self.paint:
            x = layer(x, told)
        out = rearrange(self.decoder(x), "(b n) (v c) h w -> b n v c h w", n=n, v=v)
        if self.config.parts:
            put = self.parts(first, maps, conditions)
            return put, put.detach() + out
        start = first[:, None].expand(-1, n, -1, -1, -1, -1)
        flow = FLOW * out[:, :, :, :2]
        warped = _warped(start.flatten(0, 2), flow.flatten(0, 2)).view_as(start)
        return (warped + out[:, :, :, 2:],)


class Parts(nn.Module):
    """A frame falls apart into a few parts, and the codes move each of them as a whole.

    Which pixel is of which part is seen in the frame alone, and where the parts go is said by the
    codes alone: so a code means the same motion wherever the arm is. As the masked motions of Finn
    et al. (arXiv 1605.07157, STP), with masks of where things come from instead of where they go.
    """

    def __init__(self, channels: Sequence[int], parts: int, *, views: int, patch: int) -> None:
        """Make the layers for feature maps of channels[-1]."""
        super().__init__()
        self.shape = views, parts
        self.apart = pictures.up(channels, views * parts, patch=patch)
        self.motion = nn.Linear(channels[-1], views * parts * 3)
        self.order = nn.Parameter(torch.linspace(0, 2, parts).repeat(views, 1))  # front: larger
        with torch.no_grad():
            self.motion.weight.mul_(0.3)
            self.motion.bias.zero_()

    def forward(self, frame: Tensor, maps: Tensor, conditions: Tensor) -> Tensor:
        """Return (b, n, v, 3, h, w) of a frame (b, v, 3, h, w), its maps, conditions (b, n, c)."""
        views, parts = self.shape
        n, (h, w) = conditions.shape[1], frame.shape[-2:]
        masks = rearrange(self.apart(maps), "b (v k) h w -> b v k 1 h w", v=views).softmax(2)
        layers = torch.cat([masks * frame[:, :, None], masks], dim=3)
        layers = layers[:, None].expand(-1, n, -1, -1, -1, -1, -1)
        motion = torch.tanh(0.5 * self.motion(conditions)).view(-1, 3)  # right, down, and larger
        flow = motion[:, :2, None, None].expand(-1, -1, h, w)
        put = _warped(layers.flatten(0, 3), flow, zoom=(0.5 * motion[:, 2]).exp())
        put = put.view(layers.shape) * self.order.exp()[:, :, None, None, None]
        covered = put.sum(3)
        shown: Tensor = covered[:, :, :, :3] / (covered[:, :, :, 3:] + 0.02)
        return shown


def _warped(pictures: Tensor, flow: Tensor, *, zoom: Tensor | float = 1.0) -> Tensor:
    """Return pictures (n, c, h, w) read at every pixel's place plus its flow (n, 2, h, w).

    A flow of 1 is half a picture, to the right and down; places are `zoom` (n,) times as far from
    the centre before.
    """
    axes = [(torch.arange(s, device=flow.device) + 0.5) * (2 / s) - 1 for s in flow.shape[2:]]
    down, right = torch.meshgrid(*axes, indexing="ij")
    place = torch.stack([right, down], dim=-1).expand(len(flow), -1, -1, -1)
    if isinstance(zoom, Tensor):
        place = place * zoom[:, None, None, None]
    at = place + flow.movedim(1, -1)
    return F.grid_sample(pictures, at, padding_mode="border", align_corners=False)


def _blurred(frames: Tensor, *, by: int = 4) -> Tensor:
    """Return frames (b, n, v, c, h / by, w / by)."""
    small = F.avg_pool2d(frames.flatten(0, 2), by)
    return small.view(*frames.shape[:3], *small.shape[1:])


def _of_moving(squared: Tensor, moved: Tensor) -> Tensor:
    """Return the mean (n, v) of errors (b, n, v, 3, h, w) where `moved` (b, n, v, 1, h, w) is 1."""
    every = (0, 3, 4, 5)
    found: Tensor = (moved * squared).sum(every) / (3 * moved.sum(every)).clamp(min=1)
    return found


class CausalInTime(nn.Module):
    """A residual convolution over (t, y, x) that sees the past alone; before the clip are zeros."""

    def __init__(self, width: int) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.LayerNorm(width)  # over channels: statistics over time would look ahead
        self.mix = nn.Conv3d(width, width, (3, 1, 1))
        self.space = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, c, t, y, x)."""
        y = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        y = F.silu(self.mix(F.pad(y, (0, 0, 0, 0, 2, 0))))
        b = len(y)
        y = self.space(rearrange(y, "b c t y x -> (b t) c y x"))
        out: Tensor = x + rearrange(y, "(b t) c y x -> b c t y x", b=b)
        return out


class CrossAttention(nn.Module):
    """Queries look at tokens, where a mask lets them, and think."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the layers."""
        super().__init__()
        self.heads = heads
        self.before, self.of_tokens = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, asked: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return (b, H, width) of queries (b, H, width), tokens (b, n, width), mask (H, n)."""
        q = rearrange(self.q(self.before(asked)), "b l (h d) -> b h l d", h=self.heads)
        k, v = rearrange(
            self.kv(self.of_tokens(tokens)), "b l (n h d) -> n b h l d", n=2, h=self.heads
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        asked = asked + self.out(rearrange(seen, "b h l d -> b l (h d)"))
        thought: Tensor = asked + self.think(asked)
        return thought


class Conditioned(nn.Module):
    """A residual convolution whose normalised maps are scaled and shifted by a vector."""

    def __init__(self, width: int) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.GroupNorm(8, width, affine=False)
        self.scale = nn.Linear(width, 2 * width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """Return (n, width, y, x) of x and vectors (n, width)."""
        scale, shift = self.scale(told)[:, :, None, None].chunk(2, dim=1)
        y = F.silu(self.norm(x) * (1 + scale) + shift)
        out: Tensor = x + self.second(F.silu(self.first(y)))
        return out


def _before(clips: Tensor) -> Tensor:
    """Return clips (b, t, ...) one frame earlier; before the first there is the first itself."""
    return torch.cat([clips[:, :1], clips[:, :-1]], dim=1)
