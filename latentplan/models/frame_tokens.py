"""Tokens of single frames, on which several models of video are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentplan.errors import ConfigError
from latentplan.types import Array, ArraySpec, Episode, Tokens

TOKENS = "tokens"  # observation (K,) of a store of tokens
FRAMES = 64  # tokenized at a time


def token_array(tokenizer: Any) -> ArraySpec:
    """Return the spec of the tokens (K,) of a frame."""
    return ArraySpec((tokenizer.tokens,), "int32", "tokens of the frame, all cameras")


def check_stride(where: str, tokenizer: Any, name: str) -> None:
    """Raise ConfigError unless the tokenizer called `name` takes single frames."""
    if tokenizer.stride != 1:
        raise ConfigError(
            f"{where}: {name} takes {tokenizer.stride} observations a token frame, need 1; take "
            "one of single frames, such as vqvae"
        )


@torch.no_grad()
def tokens_of(
    episode: Episode, tokenizer: Any, *, ids: Callable[[Tokens], Tensor] = lambda tokens: tokens.ids
) -> Array:
    """Return the tokens (L + 1, K) int32 of an episode's frames; `ids` reads encoded frames."""
    device = next(tokenizer.parameters()).device
    seen = {key: torch.from_numpy(episode.observations[key]) for key in tokenizer.spec.observation}
    found = []
    for start in range(0, len(episode) + 1, FRAMES):
        some = {key: each[None, start : start + FRAMES].to(device) for key, each in seen.items()}
        found.append(ids(tokenizer.encode(some))[0].int().cpu())
    tokens: Array = torch.cat(found).numpy()
    return tokens
