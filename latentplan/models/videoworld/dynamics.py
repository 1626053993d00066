"""The action-conditioned mode: one step of a frame's tokens under an action.

VideoWorld generates without actions. Here a small transformer attends to the frame's tokens, or
patches of them, and to the action as one more token, and predicts all tokens of the next frame at
once. That is fast enough to score hundreds of candidates; sampling token by token is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.models.frame_tokens import TOKENS
from latentplan.nn.quantizer import FSQCodebook
from latentplan.types import Batch, Loss, Spec


class TokenDynamics(nn.Module):
    """One-step dynamics from a frame's FSQ numbers and an action; a part of VideoWorld.

    A frame is the (K d) numbers of its K tokens (finite scalar quantization). The prediction is
    their expectation, so that distances in a plan are smooth.
    """

    window, targets, reads = 2, (), ()

    @dataclass(frozen=True)
    class Config:
        """What the network is made of."""

        levels: tuple[int, ...] = (8, 5, 5, 5)  # the tokenizer's
        views: int = 1  # cameras
        patch: int = 1  # tokens a side that are one position
        width: int = 96  # of the transformer
        layers: int = 3  # of the transformer
        heads: int = 4  # of its attention
        ahead: int = 3  # steps unrolled in training, at most a window's actions: 1 in this stage

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            for name in ("views", "patch", "width", "layers", "heads", "ahead"):
                check_range(f"TokenDynamics.{name}", getattr(self, name), 1)
            if self.width % self.heads:
                raise ConfigError(
                    f"TokenDynamics.width: {self.width} is not a multiple of heads={self.heads}"
                )

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the network for a store of tokens.

        Raises ConfigError unless these are one square map a camera, whole in patches.
        """
        super().__init__()
        c = self.config = config or self.Config()
        self.spec = spec
        self.tokens = spec.observation[TOKENS].shape[0]
        self.numbers = len(c.levels)
        self.codebook = FSQCodebook(c.levels)
        side = isqrt(self.tokens // c.views)
        if c.views * side**2 != self.tokens or side % c.patch:
            raise ConfigError(
                f"TokenDynamics.patch: {self.tokens} tokens are not {c.views} square maps whose "
                f"side is a multiple of {c.patch}"
            )
        positions = self.tokens // c.patch**2
        self.cells = {"v": c.views, "y": side // c.patch, "a": c.patch, "b": c.patch}
        self.frame = nn.Linear(self.numbers * c.patch**2, c.width)
        self.action = nn.Linear(spec.action.size, c.width)
        self.position = nn.Parameter(0.02 * torch.randn(positions + 1, c.width))
        layer = nn.TransformerEncoderLayer(
            c.width, c.heads, 2 * c.width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, c.layers, enable_nested_tensor=False)
        # A number of a token is a class: one logit for each of its levels.
        self.head = nn.Linear(c.width, sum(c.levels) * c.patch**2)

    def forward(self, z: Tensor, action: Tensor) -> list[Tensor]:
        """Return logits (n, K, level) of each number, given z (n, K d) and actions (n, A)."""
        cells = rearrange(
            z, "n (v y a x b d) -> n (v y x) (a b d)", d=self.numbers, **self.cells
        )
        x = torch.cat([self.frame(cells), self.action(action)[:, None]], dim=1) + self.position
        out = rearrange(
            self.head(self.body(x)[:, :-1]),
            "n (v y x) (a b l) -> n (v y a x b) l",
            **self.cells,
        )
        return list(out.split(self.config.levels, dim=-1))

    def expected(self, logits: list[Tensor]) -> Tensor:
        """Return the expected numbers (n, K d) under logits."""
        numbers = [
            (each.softmax(-1) * values).sum(-1)
            for each, values in zip(logits, self._values(logits[0]), strict=True)
        ]
        return torch.stack(numbers, dim=-1).flatten(1)  # n (k d)

    def rollout(self, z: Tensor, actions: Tensor) -> Tensor:
        """Return (B, N, H, K d) after each action (B, N, H, A), from z (B, K d)."""
        b, n = actions.shape[:2]
        now = z.repeat_interleave(n, dim=0)
        after = []
        for action in actions.flatten(0, 1).unbind(1):
            now = self.expected(self(now, action))
            after.append(now)
        return torch.stack(after, dim=1).view(b, n, len(after), -1)

    def loss(self, batch: Batch) -> Loss:
        """Return the cross-entropy of the next frames' numbers, in nats a number."""
        tokens = batch.observations[TOKENS].long()  # b t k
        codes = self.codebook.codes(tokens)  # b t k d
        classes = self.codebook.level_indices(tokens)
        now = codes[:, 0].flatten(1)
        nats, hits, still = [], [], []
        for step in range(min(self.config.ahead, batch.actions.shape[1])):
            logits = self(now, batch.actions[:, step])
            for d, each in enumerate(logits):
                wanted = classes[:, step + 1, :, d]
                nats.append(F.cross_entropy(each.flatten(0, 1), wanted.flatten()))
                moved = wanted != classes[:, step, :, d]
                right = (each.detach().argmax(-1) == wanted).float()
                hits.append((right * moved).sum() / moved.sum().clamp(min=1))
                still.append(1 - moved.float().mean())
            now = self.expected(logits)
        parts = {"moved": torch.stack(hits).mean(), "still": torch.stack(still).mean()}
        return Loss(torch.stack(nats).mean(), parts)

    def _values(self, like: Tensor) -> list[Tensor]:
        """Return the values in [-1, 1] of each number's levels."""
        return [
            (torch.arange(level, device=like.device, dtype=like.dtype) - level // 2) / (level // 2)
            for level in self.config.levels
        ]
