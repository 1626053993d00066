"""Joint decoding of a frame: a masked prior of its tokens, given the frame before.

VideoWorld (arXiv 2501.09781) samples a frame's tokens one after the other. Where several share a
position of the transformer they are independent, and small objects are lost. Here they are decoded
jointly, in a few rounds, as in MaskGIT (arXiv 2202.04200) and TECO (arXiv 2210.02396):

    x = convolutions(frame before), scaled and shifted by the condition (arXiv 1709.07871)
    p(frame | x) = masked prior, which may copy tokens of the frame before

The condition is either the transformer's states after the frame and its codes, for video, or an
action, for rollouts: a step of training has both. A share of the frames before are the network's
own predictions, as they are when it imagines several frames (arXiv 1506.03099).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, prod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.models.frame_tokens import TOKENS
from latentplan.models.videoworld.video_transformer import HIDDEN
from latentplan.nn import images
from latentplan.nn.masked_prior import MaskedPrior
from latentplan.nn.quantizer import FSQCodebook
from latentplan.types import Batch, Loss, Spec


class FramePrior(nn.Module):
    """p(tokens of the next frame | tokens of a frame, states or action); a part of VideoWorld."""

    window, targets, reads = 3, (), ()

    @dataclass(frozen=True)
    class Config:
        """The networks; by default there are none."""

        channels: int = 0  # of the convolutions, a multiple of 8; 0: none, tokens are independent
        blocks: int = 3  # residual blocks, each with its condition
        patch: int = 2  # tokens a side that are masked and drawn together
        levels: tuple[int, ...] = (8, 5, 5, 5)  # the tokenizer's
        views: int = 1  # cameras
        noise: float = 0.01  # share of the tokens before that training replaces by any
        own: float = 0.5  # share of the frames before that training replaces by predictions
        prior: MaskedPrior.Config = MaskedPrior.Config(
            width=96, layers=3, draft=2, rounds=0
        )  # of the patches, filled in two steps and not revised

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            for name in ("blocks", "patch", "views"):
                check_range(f"FramePrior.{name}", getattr(self, name), 1)
            check_range("FramePrior.channels", self.channels, 0)
            for name in ("noise", "own"):
                check_range(f"FramePrior.{name}", getattr(self, name), 0.0, 1.0)
            if self.channels % 8:
                raise ConfigError(
                    f"FramePrior.channels: found {self.channels}, need a multiple of 8"
                )

    def __init__(self, spec: Spec, config: Config) -> None:
        """Build the networks for a store of tokens with the transformer's states.

        Raises ConfigError unless tokens are one square map a camera, whole in patches.
        """
        super().__init__()
        c = self.config = config
        self.spec = spec
        (tokens,) = spec.observation[TOKENS].shape  # K
        side = isqrt(tokens // c.views)
        if c.views * side**2 != tokens or side % c.patch:
            raise ConfigError(
                f"FramePrior.patch: {tokens} tokens are not {c.views} square maps whose side is a "
                f"multiple of {c.patch}"
            )
        self.codebook = FSQCodebook(c.levels)
        self.cells = {"v": c.views, "y": side // c.patch, "p": c.patch, "q": c.patch}
        colours, size = c.views * len(c.levels), side // c.patch
        self.frame = images.down(colours, (c.channels,), patch=c.patch)
        self.place = nn.Parameter(0.02 * torch.randn(c.channels, size, size))
        self.blocks = nn.ModuleList(images.Residual(c.channels) for _ in range(c.blocks))
        states, width = spec.observation[HIDDEN].shape
        self.of_states = nn.Linear(states * width, c.prior.width)
        self.of_action = nn.Linear(spec.action.size, c.prior.width)
        self.modulation = nn.Linear(c.prior.width, 2 * c.channels * c.blocks)  # scales, shifts
        self.out = nn.Conv2d(c.channels, c.views * c.channels, 1)
        self.prior = MaskedPrior(
            tokens,
            vocabulary=prod(c.levels),
            condition=c.channels + c.prior.width,
            group=c.patch**2,
            copies=True,
            config=c.prior,
        )

    def loss(self, batch: Batch) -> Loss:
        """Return the cross-entropy in nats a masked token; even rows have states, odd ones actions.

        `moved` is the share of masked tokens that changed and are the likeliest.
        """
        tokens, states = batch.observations[TOKENS].long(), batch.observations[HIDDEN]  # b t ...
        of_states = torch.arange(len(tokens), device=tokens.device) % 2 == 0

        def condition(step: int) -> Tensor:
            return torch.where(
                of_states[:, None],
                self.condition(states=states[:, step]),
                self.condition(action=batch.actions[:, step]),
            )

        before, last, wanted = tokens[:, :3].unbind(1)
        given = last
        if self.training:
            own = torch.rand(len(tokens), device=tokens.device) < self.config.own
            if own.any():
                drawn = self.sample(before[own], condition(0)[own], temperature=0.0)
                given = given.index_put((own,), drawn)
            other = torch.rand(given.shape, device=given.device) < self.config.noise
            given = torch.where(other, torch.randint_like(given, self.prior.vocabulary), given)
        conditions = self.features(given, condition(1))
        found = self.prior.loss(self._grouped(wanted), conditions, self._grouped(given))
        moved = self._grouped(wanted != last) & found.masked
        parts = {
            "hits": found.hits,
            "moved": (found.right & moved).sum() / moved.sum().clamp(min=1),
        }
        return Loss(found.nats, parts)

    def condition(self, *, states: Tensor | None = None, action: Tensor | None = None) -> Tensor:
        """Return the condition (n, width) of states (n, H + 1, ...) or actions (n, A)."""
        if states is not None:
            return F.silu(self.of_states(states.flatten(1).to(self.of_states.weight.dtype)))
        assert action is not None
        return F.silu(self.of_action(action))

    def features(self, before: Tensor, condition: Tensor) -> Tensor:
        """Return the prior's conditions (n, P, C) of frames before (n, K)."""
        v, y = self.cells["v"], self.cells["y"]
        maps = rearrange(
            self.codebook.codes(before), "n (v y x) d -> n (v d) y x", v=v, y=y * self.cells["p"]
        )
        x = self.frame(maps) + self.place
        scales, shifts = self.modulation(condition)[..., None, None].chunk(2, dim=1)
        each = len(self.blocks)
        for block, scale, shift in zip(
            self.blocks, scales.chunk(each, dim=1), shifts.chunk(each, dim=1), strict=True
        ):
            x = block(x * (1 + scale) + shift)
        cells = rearrange(self.out(x), "n (v c) y x -> n (v y x) c", v=v)
        shared = condition[:, None].expand(-1, cells.shape[1], -1)
        return torch.cat([cells, shared], dim=-1)

    @torch.no_grad()
    def sample(
        self,
        before: Tensor,
        condition: Tensor,
        *,
        temperature: float = 0.0,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return the tokens (n, K) after frames (n, K), under conditions (n, width)."""
        drawn = self.prior.sample(
            self.features(before, condition),
            self._grouped(before),
            temperature=temperature,
            generator=generator,
        )
        return rearrange(drawn, "n (v y x p q) -> n (v y p x q)", x=self.cells["y"], **self.cells)

    def rollout(
        self,
        tokens: Tensor,
        actions: Tensor,
        *,
        temperature: float = 0.0,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return frames (n, H, K) after each of the actions (n, H, A), from frames (n, K)."""
        after = []
        for action in actions.unbind(1):
            condition = self.condition(action=action)
            tokens = self.sample(
                tokens, condition, temperature=temperature, generator=generator
            )
            after.append(tokens)
        return torch.stack(after, dim=1)

    def _grouped(self, tokens: Tensor) -> Tensor:
        """Return (n, K) with the tokens of a patch adjacent, of rows (n, K)."""
        return rearrange(
            tokens, "n (v y p x q) -> n (v y x p q)", x=self.cells["y"], **self.cells
        )
