"""A tokenizer of adaptive length: each block of frames keeps only the first of its tokens.

ElasticTok (Yan et al., arXiv 2410.08368; sizes as in its released code): patches, a transformer
encoder, finite scalar quantization, and a transformer decoder. In training each block of frames
keeps the first l of its tokens, l uniform at random, so that early tokens learn what matters most.
Any length then serves, and a search finds the shortest one whose error is below a threshold.
Differs: positions are learned as well as rotary, the encoder is not given the length by default
(one pass serves all lengths), and there is no perceptual loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from latentplan.errors import ConfigError, ShapeError, check_range
from latentplan.nn import images, quantizer
from latentplan.nn.transformer import Transformer
from latentplan.protocols import EpisodeStore
from latentplan.shapes import check
from latentplan.tokenizers import prefix_images
from latentplan.tokenizers.prefix_search import bisect, scan
from latentplan.types import Batch, Loss, Spec, Tensors, Tokens


class Searched(NamedTuple):
    """The tokens of blocks, each with the shortest prefix that a search found."""

    tokens: Tokens
    lengths: Tensor  # (B, T / frames, cameras) int64, tokens kept
    passed: Tensor  # the same, bool: whether the error is below the threshold


class ElasticTok(nn.Module):
    """A `protocols.Tokenizer` with a mask: a token frame is a block of frames.

    K = cameras x slots, one slot a patch. A camera keeps a prefix of its slots; a dropped slot has
    the id of the code 0, so that ids alone decode to the same images as ids with their mask.
    """

    targets: tuple[str, ...] = ()

    @dataclass(frozen=True)
    class Config:
        """The network, and how many tokens a block keeps."""

        images: tuple[str, ...] = ()  # observation keys of the cameras; () for all of the spec
        frames: int = 1  # of a block
        blocks: int = 1  # that a block attends to: itself and the ones before it
        patch: int = 8  # pixels a side of a slot
        depth: int = 1  # frames of a slot; divides those of a block
        levels: tuple[int, ...] = (8, 5, 5, 5)  # values of each number of a token
        min_tokens: int = 4  # fewest tokens that a block keeps
        max_tokens: int = 0  # most tokens that a block keeps; 0 for all slots
        threshold: float = 0.0  # error below which `encode` brings a block, see `search`; 0: off
        width: int = 128  # of the transformers
        layers: int = 2  # of the encoder, and of the decoder
        heads: int = 4  # of the attention
        base: float = 1e4  # of the rotary positions
        condition: bool = False  # whether the encoder is given which slots are kept

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            for name in ("frames", "blocks", "patch", "depth", "width", "layers", "heads"):
                check_range(f"ElasticTok.{name}", getattr(self, name), 1)
            if self.frames % self.depth:
                raise ConfigError(
                    f"ElasticTok.depth: {self.depth} does not divide frames={self.frames}"
                )
            if self.width % (2 * self.heads):
                raise ConfigError(
                    f"ElasticTok.width: {self.width} is not a multiple of 2 heads={2 * self.heads}"
                )
            quantizer.check("ElasticTok", "fsq", self.levels)
            check_range("ElasticTok.min_tokens", self.min_tokens, 1)
            check_range("ElasticTok.max_tokens", self.max_tokens, 0)
            if 0 < self.max_tokens < self.min_tokens:
                raise ConfigError(
                    f"ElasticTok.min_tokens: {self.min_tokens} is more than max_tokens="
                    f"{self.max_tokens}; lower it"
                )
            check_range("ElasticTok.threshold", self.threshold, 0.0, 4.0)
            check_range("ElasticTok.base", self.base, 1.0)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the network for the images of `spec`; ConfigError if they do not fit."""
        super().__init__()
        c = self.config = config or self.Config()
        self.images = images.keys("ElasticTok.images", c.images, spec)
        seen = {key: spec.observation[key] for key in self.images}
        self.spec = replace(spec, observation=seen, privileged=())
        self.side = images.square("ElasticTok.images", self.images, spec)
        if self.side % c.patch:
            raise ConfigError(
                f"ElasticTok.patch: {c.patch} does not divide images of {self.side} pixels a side"
            )
        grid, self.stride, self.levels = self.side // c.patch, c.frames, c.levels
        self.cells = {"f": c.frames // c.depth, "y": grid, "x": grid}  # of a block
        self.slots = self.cells["f"] * grid**2  # a camera
        self.tokens = len(self.images) * self.slots  # K
        self.longest = c.max_tokens or self.slots
        if max(c.min_tokens, self.longest) > self.slots:
            raise ConfigError(
                f"ElasticTok.{'max' if self.longest > self.slots else 'min'}_tokens: "
                f"{max(c.min_tokens, self.longest)} is more than the {self.slots} slots of a block"
            )
        self.window = c.frames * c.blocks
        self.reads = ("segments",) if self.window > 1 else ()
        pixels = 3 * c.depth * c.patch**2
        options: dict[str, Any] = {"layers": c.layers, "heads": c.heads, "base": c.base}
        self.embed = nn.Linear(pixels, c.width)
        self.places = nn.ParameterList(0.02 * torch.randn(self.slots, c.width) for _ in range(2))
        self.told = nn.Parameter(torch.zeros(2, c.width)) if c.condition else None
        self.encoder = Transformer(c.width, causal=False, **options)
        # Statistics of batches shift the numbers of slots that hardly vary to another code.
        self.quantizer = quantizer.Quantizer(c.width, levels=c.levels, normalise=False)
        self.decoder = Transformer(c.width, causal=False, **options)
        self.out = nn.Linear(c.width, pixels)
        self.vocabulary = self.quantizer.size
        zero = quantizer.FSQCodebook(c.levels).nearest(torch.zeros(1, len(c.levels)))
        self.dropped: Tensor  # (1,), the id of the code 0
        self.register_buffer("dropped", zero, persistent=False)

    def encode(
        self,
        observations: Tensors,
        *,
        lengths: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tokens:
        """Return ids (B, T / frames, K) of images (B, T, h, w, 3) uint8, and the mask of the kept.

        `lengths` (B, T / frames, cameras) are the numbers of tokens to keep (default: those that
        `search` finds for `threshold`, `max_tokens` if it is 0). `segments` (B, T) are equal within
        a clip: clips in one row do not attend to each other. Raises ShapeError unless T is a
        multiple of the block's frames and the images are those of the spec.
        """
        if lengths is None and self.config.threshold > 0:
            return self.search(observations, segments=segments).tokens
        blocks = self._blocks(observations)
        if lengths is None:
            lengths = torch.full(blocks.shape[:2], self.longest, device=blocks.device)
        else:
            check("ElasticTok.encode.lengths", lengths, "B n v", v=len(self.images))
            lengths = rearrange(lengths, "b n v -> (b v) n")
        return self._kept(self._ids(blocks, lengths, segments), lengths)

    def decode(self, tokens: Tokens, *, segments: Tensor | None = None) -> dict[str, Tensor]:
        """Return the cameras' images (B, T, h, w, 3) uint8 of ids (B, T / frames, K).

        `segments` (B, T) are those that the images were encoded with.
        """
        check("ElasticTok.decode", tokens.ids, "B T K", K=self.tokens)
        ids = tokens.ids
        if tokens.mask is not None:
            ids = torch.where(tokens.mask, ids, self.dropped)
        ids = rearrange(ids, "b n (v s) -> (b v) n s", s=self.slots)
        views = images.to_uint8(self._views(self._decoded(self.quantizer.vectors(ids), segments)))
        return {key: views[:, :, view] for view, key in enumerate(self.images)}

    def truncate(self, tokens: Tokens, length: int) -> Tokens:
        """Return tokens of which a block of a camera keeps at most the first `length`."""
        check_range("ElasticTok.truncate.length", length, 1, self.slots)
        place = torch.arange(self.tokens, device=tokens.ids.device) % self.slots
        mask = (place < length).expand_as(tokens.ids)
        mask = mask if tokens.mask is None else mask & tokens.mask
        return Tokens(torch.where(mask, tokens.ids, self.dropped), mask)

    @torch.no_grad()
    def search(
        self,
        observations: Tensors,
        *,
        threshold: float | None = None,
        exact: bool = False,
        segments: Tensor | None = None,
    ) -> Searched:
        """Return tokens of images (B, T, h, w, 3) uint8, each block with a prefix that suffices.

        That is the shortest one of at least `min_tokens` whose mean squared error, of the decoded
        uint8 images scaled to [-1, 1], is below `threshold` (default: the config's). Bisection
        returns a length that passes, and the shortest if the error falls with the length; `exact`
        tests every length. If no length passes, a block keeps `max_tokens`, and `passed` is False.
        All blocks are searched at once; with `blocks` above 1 those of all rows at one time are,
        after the lengths of the blocks before are known.
        """
        c = self.config
        limit = c.threshold if threshold is None else threshold
        check_range("ElasticTok.search.threshold", limit, 1e-9, 4.0)
        method, blocks = scan if exact else bisect, self._blocks(observations)
        ids = None if c.condition else self._ids(blocks, None, segments)
        lengths = torch.full(blocks.shape[:2], self.longest, device=blocks.device)
        passed = torch.zeros_like(lengths, dtype=torch.bool)
        together = blocks.shape[1] if c.blocks == 1 else 1
        for first in range(0, blocks.shape[1], together):
            rows = slice(first, first + together)
            passes = partial(
                self._passes, blocks[:, : rows.stop], ids, segments, limit, lengths[:, :first]
            )
            lengths[:, rows], passed[:, rows] = method(
                passes, lengths[:, rows], least=c.min_tokens, most=self.longest
            )
        tokens = self._kept(self._ids(blocks, lengths, segments) if ids is None else ids, lengths)
        return Searched(tokens, self._by_camera(lengths), self._by_camera(passed))

    def loss(self, batch: Batch) -> Loss:
        """Return the squared error of all pixels, of blocks cut to random lengths.

        Parts: PSNR in dB, the share of codes in use, their perplexity.
        """
        frames = next(iter(batch.observations.values())).shape[1] // self.stride * self.stride
        blocks = self._blocks({k: x[:, :frames] for k, x in batch.observations.items()})
        segments = None if batch.segments is None else batch.segments[:, :frames]
        lengths = self._random_lengths(blocks)
        keep = self._prefix(lengths)
        quantized = self.quantizer(self._encoded(blocks, keep, segments))
        none = self.quantizer.vectors(self.dropped)[0]
        vectors = torch.where(keep[..., None], quantized.vectors, none.to(quantized.vectors.dtype))
        shown = self._decoded(vectors, segments)
        views = self._views(shown.detach()), self._views(blocks)
        parts = {"psnr": images.psnr(*views), **quantizer.usage(quantized.ids, self.vocabulary)}
        return Loss(F.mse_loss(shown, blocks), parts)

    def illustrate(self, store: EpisodeStore, folder: Path) -> Iterator[tuple[Path, str]]:
        """Draw held-out frames of `store` and their reconstructions from few to all tokens."""
        lengths = [self.config.min_tokens]
        while lengths[-1] < self.longest:
            lengths.append(min(2 * lengths[-1], self.longest))
        device = self.dropped.device

        def decoded(seen: Tensors) -> dict[int, Tensors]:
            shape = (len(seen[self.images[0]]), 1, len(self.images))
            full = self.encode(seen, lengths=torch.full(shape, self.longest, device=device))
            return {length: self.decode(self.truncate(full, length)) for length in lengths}

        yield from prefix_images.draw(
            store,
            folder,
            keys=self.images,
            name="ElasticTok",
            stride=self.stride,
            device=device,
            decoded=decoded,
        )

    def _blocks(self, observations: Tensors) -> Tensor:
        """Return the patches ((b v), n, slots, pixels) in [-1, 1] of images; ShapeError if odd."""
        for key in self.images:
            seen = observations[key]
            check(f"ElasticTok[{key!r}]", seen, "B T h w c", h=self.side, w=self.side, c=3)
            if seen.dtype != torch.uint8:
                raise ShapeError(f"ElasticTok[{key!r}]: found {seen.dtype}, need uint8, 0 to 255")
            if not seen.shape[1] or seen.shape[1] % self.stride:
                raise ShapeError(
                    f"ElasticTok[{key!r}]: found {seen.shape[1]} frames, need a multiple of "
                    f"{self.stride}, those of a block"
                )
        blocks: Tensor = rearrange(
            images.stack(observations, self.images),
            "b (n f d) v c (y p) (x q) -> (b v) n (f y x) (d p q c)",
            **self.cells, d=self.config.depth,
        )  # fmt: skip
        return blocks

    def _views(self, blocks: Tensor) -> Tensor:
        """Return (b, t, v, 3, h, w) of patches ((b v), n, slots, pixels): `_blocks` undone."""
        patch, depth = self.config.patch, self.config.depth
        views: Tensor = rearrange(
            blocks,
            "(b v) n (f y x) (d p q c) -> b (n f d) v c (y p) (x q)",
            **self.cells, v=len(self.images), d=depth, p=patch, q=patch,
        )  # fmt: skip
        return views

    def _encoded(self, blocks: Tensor, keep: Tensor | None, segments: Tensor | None) -> Tensor:
        """Return a vector (..., n, slots, width) for each slot of patches."""
        x = self.embed(blocks) + self.places[0]
        if self.told is not None and keep is not None:
            x = x + self.told[keep.long()]
        return self._attend(self.encoder, x, segments)

    def _decoded(self, vectors: Tensor, segments: Tensor | None) -> Tensor:
        """Return patches (..., n, slots, pixels) in [-1, 1] of vectors (..., n, slots, width)."""
        x = self._attend(self.decoder, vectors + self.places[1], segments)
        shown: Tensor = self.out(x).tanh()
        return shown

    def _attend(self, body: Transformer, x: Tensor, segments: Tensor | None) -> Tensor:
        """Return x (b, n, slots, width) after block-causal attention.

        All slots of a block attend to each other, and to those of the `blocks` - 1 blocks before;
        with segments (B, T) only to those of the same segment.
        """
        b, n = x.shape[:2]
        if self.window == 1 or (self.config.blocks == 1 and segments is None):
            alone: Tensor = body(x.flatten(0, 1)).view(x.shape)  # every block by itself
            return alone
        block = torch.arange(n * self.slots, device=x.device) // self.slots
        before = block[:, None] - block
        mask = (before >= 0) & (before < self.config.blocks)
        if segments is not None:
            views, cells = len(self.images), self.cells["y"] * self.cells["x"]
            check("ElasticTok.segments", segments, "B T", B=b // views, T=n * self.stride)
            of = repeat(
                segments[:, :: self.config.depth], "b t -> (b v) 1 (t i)", v=views, i=cells
            )
            mask = mask & (of[..., :, None] == of[..., None, :])
        out: Tensor = body(x.flatten(1, 2), mask=mask).view(x.shape)
        return out

    def _ids(self, blocks: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        """Return ids ((b v), n, slots) of patches, all of them whatever the lengths."""
        keep = None if lengths is None else self._prefix(lengths)
        ids: Tensor = self.quantizer(self._encoded(blocks, keep, segments)).ids
        return ids

    def _passes(
        self,
        blocks: Tensor,
        ids: Tensor | None,
        segments: Tensor | None,
        limit: float,
        before: Tensor,
        tried: Tensor,
    ) -> Tensor:
        """Return whether the last blocks pass with `tried` tokens after blocks with `before`."""
        count = blocks.shape[1]
        clips = None if segments is None else segments[:, : count * self.stride]
        lengths = torch.cat([before, tried], dim=1)
        ids = self._ids(blocks, lengths, clips) if ids is None else ids[:, :count]
        kept = torch.where(self._prefix(lengths), ids, self.dropped)
        shown = self._decoded(self.quantizer.vectors(kept), clips)
        shown = ((shown + 1) * 127.5).round() / 127.5 - 1  # as `decode` returns it
        error = (shown - blocks).square().mean((-1, -2))
        return error[:, before.shape[1] :] < limit

    def _prefix(self, lengths: Tensor) -> Tensor:
        """Return which slots (..., slots) are kept, exactly the first `lengths` (...)."""
        return torch.arange(self.slots, device=lengths.device) < lengths[..., None]

    def _kept(self, ids: Tensor, lengths: Tensor) -> Tokens:
        """Return tokens of ids ((b v), n, slots) cut to lengths ((b v), n)."""
        mask = self._prefix(lengths)
        both = (torch.where(mask, ids, self.dropped), mask)
        return Tokens(
            *(rearrange(x, "(b v) n s -> b n (v s)", v=len(self.images)) for x in both)
        )

    def _by_camera(self, values: Tensor) -> Tensor:
        """Return (b, n, v) of values ((b v), n)."""
        return rearrange(values, "(b v) n -> b n v", v=len(self.images))

    def _random_lengths(self, blocks: Tensor) -> Tensor:
        """Return lengths ((b v), n) for the loss: random, in evaluation the same even spread."""
        least, shape, device = self.config.min_tokens, blocks.shape[:2], blocks.device
        if self.training:
            return torch.randint(least, self.longest + 1, shape, device=device)
        spread = torch.arange(shape.numel(), device=device) * (self.longest + 1 - least)
        return (least + spread // shape.numel()).view(shape)
