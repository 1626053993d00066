"""The layers of the latent dynamics model: its encoder's, its queries' and its decoder's."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class CausalInTime(nn.Module):
    """A residual convolution over (t, y, x), causal in time and padded with zeros."""

    def __init__(self, width: int) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.LayerNorm(width)  # over channels: statistics over time would not be causal
        self.temporal = nn.Conv3d(width, width, (3, 1, 1))
        self.spatial = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, c, t, y, x)."""
        y = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        y = F.silu(self.temporal(F.pad(y, (0, 0, 0, 0, 2, 0))))
        b = len(y)
        y = self.spatial(rearrange(y, "b c t y x -> (b t) c y x"))
        out: Tensor = x + rearrange(y, "(b t) c y x -> b c t y x", b=b)
        return out


class CrossAttention(nn.Module):
    """Masked cross-attention from queries to tokens, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the layers."""
        super().__init__()
        self.heads = heads
        self.norm_queries, self.norm_tokens = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return (b, H, width) of queries (b, H, width), tokens (b, n, width), mask (H, n)."""
        q = rearrange(self.q(self.norm_queries(queries)), "b l (h d) -> b h l d", h=self.heads)
        k, v = rearrange(
            self.kv(self.norm_tokens(tokens)), "b l (n h d) -> n b h l d", n=2, h=self.heads
        )
        values = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        queries = queries + self.out(rearrange(values, "b h l d -> b l (h d)"))
        out: Tensor = queries + self.mlp(queries)
        return out


class Conditioned(nn.Module):
    """A residual convolution with feature-wise scale and shift from a condition."""

    def __init__(self, width: int) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.GroupNorm(8, width, affine=False)
        self.scale = nn.Linear(width, 2 * width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return (n, width, y, x) of x and conditions (n, width)."""
        scale, shift = self.scale(condition)[:, :, None, None].chunk(2, dim=1)
        y = F.silu(self.norm(x) * (1 + scale) + shift)
        out: Tensor = x + self.second(F.silu(self.first(y)))
        return out
