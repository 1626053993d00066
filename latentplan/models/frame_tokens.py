"""Tokens of single frames, on which several models of video are trained.

Each declares a tokenizer, a store of tokens, and what is trained on that store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latentplan import registry
from latentplan.errors import ConfigError
from latentplan.nn import images
from latentplan.types import (
    Array,
    ArraySpec,
    Derived,
    Episode,
    Part,
    Spec,
    Stage,
    Tokens,
    Training,
)

TOKENS = "tokens"  # observation (K,) of a store of tokens
FRAMES = 64  # tokenized at a time


def of_cameras(where: str, chosen: Sequence[str], spec: Spec) -> Spec:
    """Return the spec of square cameras alone, by default all; ConfigError if there are none."""
    cameras = images.keys(where, chosen, spec)
    images.square(where, cameras, spec)
    seen = {key: spec.observation[key] for key in cameras}
    return replace(spec, observation=seen, privileged=())


def ordered(config: Any, tokenizer: Any) -> Any:
    """Return a config whose `images` are in the order in which a given tokenizer takes them.

    That of a run may have another order than the data. Its embeddings are in that order, in which
    the tokenizer has to be built again when the model is loaded.
    """
    if tokenizer is None:
        return config
    return replace(config, images=tuple(tokenizer.spec.observation))


def tokenizer_stage(where: str, part: Part, cameras: Spec, training: Training) -> Stage:
    """Return the stage of the tokenizer of `cameras`: one to train, or that of a run."""
    return Stage.of_part(
        "tokenizer", part, lambda spec, parts: build_tokenizer(where, part, cameras), training
    )


def build_tokenizer(where: str, part: Part, cameras: Spec) -> Any:
    """Return an untrained tokenizer; ConfigError unless it encodes single frames."""
    made = registry.build(part, cameras)
    check_stride(f"{where}.tokenizer", made, part.name)
    return made


def token_store(
    name: str,
    spec: Callable[[Any], Spec],
    make: Callable[[Episode, Any], Episode],
    *,
    of: Mapping[str, Any],
) -> Derived:
    """Return the store of tokens whose spec and episodes these functions make, by the tokenizer.

    `of` holds all else that they depend on.
    """
    return Derived(
        name,
        lambda _, parts: spec(parts["tokenizer"]),
        lambda episodes, parts: [make(each, parts["tokenizer"]) for each in episodes],
        of,
        parts=("tokenizer",),
        codebooks={TOKENS: "tokenizer"},
    )


def token_spec(spec: Spec, tokenizer: Any, others: Mapping[str, ArraySpec] | None = None) -> Spec:
    """Return the spec of a store of tokens and of other observations, made of data of `spec`."""
    seen = {TOKENS: token_array(tokenizer), **(others or {})}
    return replace(spec, observation=seen, privileged=(), pick=None, planar=None)


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
