"""Inverse dynamics: the actions that lead to generated codes or frames.

VideoWorld predicts actions from the transformer's hidden states at the last frame and its codes
(its released CALVIN policy), or from the frame, the next one and the codes (its paper). Both are
here. Differs: the first encodes the frame as well (`frame_encoder`), as the second does, since
hidden states keep only what the codes need. It trains on few labelled episodes. The transformer is
frozen, so its states are computed once (`stages.add_states`), with generated codes as at inference:
true codes carry information on the future, and a head trained on them would rely on codes too much.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.models.frame_tokens import TOKENS
from latentplan.models.videoworld.conditioning import FrameEncoder
from latentplan.models.videoworld.video_transformer import (
    CODES,
    HIDDEN,
    VideoTransformer,
)
from latentplan.types import Batch, Loss, Spec

EMBEDDED = 16  # width of a token's embedding, if frames are read


class InverseDynamics(nn.Module):
    """A network from generated codes to `chunk` actions; it holds the frozen transformer.

    Its spec is that of a store of tokens, with states if it reads them. A number of the action that
    is only ever -1 or 1 (a gripper's sign) is classified; the others are regressed.
    """

    targets, reads = (), ()

    @dataclass(frozen=True)
    class Config:
        """What the network is made of, and how it is trained."""

        reads: str = "hidden"  # states of the transformer, or `frames`: this, the next, the codes
        chunk: int = 4  # actions predicted from one plan
        frame_encoder: int = 64  # channels of the convolutions over the frame; 0: none
        width: int = 256  # of the hidden layers
        layers: int = 2  # hidden layers
        dropout: float = 0.1  # share of activations that training drops
        labelled: float = 1.0  # share of the training episodes whose actions are used

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            if self.reads not in ("hidden", "frames"):
                raise ConfigError(
                    f"InverseDynamics.reads: {self.reads!r} is not one of hidden, frames"
                )
            check_range("InverseDynamics.chunk", self.chunk, 1, 64)
            check_range("InverseDynamics.frame_encoder", self.frame_encoder, 0)
            check_range("InverseDynamics.width", self.width, 1)
            check_range("InverseDynamics.layers", self.layers, 1)
            check_range("InverseDynamics.dropout", self.dropout, 0.0, 0.9)
            check_range("InverseDynamics.labelled", self.labelled, 0.0001, 1.0)

    def __init__(
        self,
        spec: Spec,
        config: Config | None = None,
        *,
        transformer: VideoTransformer | None = None,
    ) -> None:
        """Build the network on top of a trained transformer."""
        super().__init__()
        c = self.config = config or self.Config()
        self.spec = spec
        self.transformer = transformer or VideoTransformer(spec)
        self.transformer.requires_grad_(False).eval()
        g = self.transformer.config
        self.window = c.chunk + 1
        self.size = spec.action.size
        size_in = self._make_reader(g)
        layers: list[nn.Module] = []
        for _ in range(c.layers):
            layers += [nn.Linear(size_in, c.width), nn.GELU(), nn.Dropout(c.dropout)]
            size_in = c.width
        self.head = nn.Sequential(*layers, nn.Linear(size_in, c.chunk * self.size))
        signs = spec.action.convention is not None and spec.action.convention.gripper.startswith(
            "close_is_"
        )
        self.signs: Tensor  # (A,) bool: only ever -1 or 1
        self.register_buffer("signs", torch.zeros(self.size, dtype=torch.bool), persistent=False)
        self.signs[-1] = signs
        self.has_sign = signs  # whether the last number is one
        low, high = spec.action.low, spec.action.high
        varied = [i for i in range(self.size - signs) if high[i] > low[i]]
        self.varied: Tensor  # indices of the others; a mask would wait for the GPU
        self.register_buffer("varied", torch.tensor(varied).long(), persistent=False)
        for name in ("low", "high"):
            bound = torch.tensor(getattr(spec.action, name), dtype=torch.float32)
            self.register_buffer(name, bound, persistent=False)
        self.low: Tensor
        self.high: Tensor

    def train(self, mode: bool = True) -> InverseDynamics:
        """Set the mode of all but the transformer, which stays in evaluation mode."""
        super().train(mode)
        self.transformer.eval()
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Return raw actions (n, chunk, A) of features; `actions` scales them to the bounds."""
        raw: Tensor = self.head(features).unflatten(-1, (self.config.chunk, self.size))
        return raw

    def actions(self, raw: Tensor) -> Tensor:
        """Return actions (n, chunk, A) within the bounds; signs are exactly -1 or 1."""
        middle, half = self._scale()
        real = (middle + half * raw).clamp(self.low, self.high)
        return torch.where(self.signs, torch.where(raw > 0, self.high, self.low), real)

    def read_hidden(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the head's features of hidden states (n, H + 1, width) and the frame (n, K)."""
        projected = self.project(hidden)  # n (H + 1) width
        plan = (self.weights.softmax(0)[:, None] * projected).sum(1)  # n width
        # The paper's weighted sum, and a small projection of each position.
        parts = [plan, self.project_each(hidden).flatten(1)]
        if self.frame_encoder is not None:
            parts.append(self.frame_encoder(tokens, plan))
        return torch.cat(parts, dim=-1)

    def read_frames(self, tokens: Tensor, after: Tensor, codes: Tensor) -> Tensor:
        """Return the head's features of two frames (n, K) each and the codes (n, H)."""
        frames = self.frame(torch.stack([tokens, after], dim=1)).flatten(1)
        return torch.cat([frames, self.code(codes).flatten(1)], dim=-1)

    def loss(self, batch: Batch) -> Loss:
        """Return the error of the chunk of actions after the context, and the signs' accuracy."""
        c = self.config
        tokens = batch.observations[TOKENS][:, :2].long()
        actions = batch.actions[:, : c.chunk]
        if c.reads == "hidden":
            raw = self(self.read_hidden(batch.observations[HIDDEN][:, 0].float(), tokens[:, 0]))
        else:
            codes = batch.observations[CODES][:, 0, : self.transformer.config.horizon].long()
            raw = self(self.read_frames(tokens[:, 0], tokens[:, 1], codes))
        middle, half = self._scale()
        wanted = (actions - middle) / half  # -1 .. 1
        far = F.smooth_l1_loss(raw, wanted, reduction="none", beta=0.1)
        signs = F.binary_cross_entropy_with_logits(raw, (wanted > 0).float(), reduction="none")
        error = torch.where(self.signs, 0.2 * signs, far)  # b chunk A
        parts = {}
        if len(self.varied):
            first = (raw - wanted)[:, 0, self.varied].square().mean()
            spread = wanted[:, 0, self.varied].var(0, correction=min(1, len(wanted) - 1))
            parts["r2"] = 1 - (first / spread.mean().clamp(min=1e-6)).detach()
        if self.has_sign:
            parts["signs"] = ((raw > 0) == (wanted > 0))[..., -1].float().mean()
        # The first action is the one that is sent; it weighs as much as all others together.
        ahead = error[:, 1:].mean() if c.chunk > 1 else error.new_zeros(())
        return Loss(error[:, 0].mean() + ahead, parts)

    def _scale(self) -> tuple[Tensor, Tensor]:
        """Return middle and half of the range of each number (A,), 1 for one that is constant."""
        half = (self.high - self.low) / 2
        return (self.high + self.low) / 2, torch.where(half > 0, half, 1)

    def _make_reader(self, g: VideoTransformer.Config) -> int:
        """Make the layers before the head, and return the width of its input."""
        c = self.config
        if c.reads == "hidden":
            self.project = nn.Sequential(nn.LayerNorm(g.width), nn.Linear(g.width, c.width))
            each = nn.Linear(g.width, c.width // 4)
            self.project_each = nn.Sequential(nn.LayerNorm(g.width), each)
            self.weights = nn.Parameter(torch.zeros(g.horizon + 1))
            self.frame_encoder = None
            if c.frame_encoder:
                self.frame_encoder = FrameEncoder(
                    self.transformer.tokens,
                    levels=g.levels,
                    views=g.views,
                    width=c.width,
                    channels=c.frame_encoder,
                    dropout=g.dropout,
                )
            return c.width + (g.horizon + 1) * (c.width // 4) + (c.width if c.frame_encoder else 0)
        self.frame = nn.Embedding(g.vocabulary, EMBEDDED)
        self.code = nn.Embedding(g.codes, EMBEDDED)
        return (2 * self.transformer.tokens + g.horizon) * EMBEDDED
