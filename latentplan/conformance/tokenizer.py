"""Checks of every tokenizer: shapes, ids below the vocabulary, independent rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latentplan.conformance import data
from latentplan.conformance.suite import NotApplicable, Subject, refuses, require
from latentplan.errors import ShapeError
from latentplan.protocols import Learner, Tokenizer
from latentplan.types import Batch, Tensors, Tokens

ROWS, FRAMES = 2, 3  # videos, token frames
UPDATES, RATE = 8, 2e-3  # steps and learning rate of Adam, enough for the loss to fall
FIGURES = {"psnr", "usage", "perplexity"}  # required parts of the loss
ROUNDING = 1  # tolerance of a colour, since a batch changes the order of sums


def check_ids(subject: Subject) -> None:
    """Check that ids are int64 (B, T / stride, K) below the vocabulary, and a mask is bool."""
    tokenizer = built(subject)
    tokens = tokenizer.encode(images(tokenizer))
    ids, shape = tokens.ids, (ROWS, FRAMES, tokenizer.tokens)
    require(tuple(ids.shape) == shape, f"ids have shape {tuple(ids.shape)}, need {shape}")
    require(ids.dtype == torch.int64, f"ids are {ids.dtype}, need int64")
    below = bool((ids >= 0).all()) and bool((ids < tokenizer.vocabulary).all())
    require(below, f"ids from {ids.min()} to {ids.max()}, vocabulary {tokenizer.vocabulary}")
    if tokens.mask is not None:
        fits = tokens.mask.shape == ids.shape and tokens.mask.dtype == torch.bool
        require(fits, f"the mask is {tokens.mask.dtype} {tuple(tokens.mask.shape)}")


def check_decoded(subject: Subject) -> None:
    """Check that tokens are decoded to uint8 images of every camera."""
    tokenizer = built(subject)
    shown = tokenizer.decode(tokenizer.encode(images(tokenizer)))
    length, cameras = FRAMES * tokenizer.stride, tokenizer.spec.observation
    require(set(shown) == set(cameras), f"cameras {sorted(shown)}, of its spec {sorted(cameras)}")
    for key, array in cameras.items():
        found, need = tuple(shown[key].shape), (ROWS, length, *array.shape)
        require(found == need, f"{key!r} has shape {found}, need {need}")
        require(shown[key].dtype == torch.uint8, f"{key!r} is {shown[key].dtype}, need uint8")


def check_others(subject: Subject) -> None:
    """Check that different images have different ids."""
    tokenizer = built(subject)
    first, other = (tokenizer.encode(images(tokenizer, seed)).ids for seed in (0, 1))
    require(not torch.equal(first, other), "all ids are equal")


def check_twice(subject: Subject) -> None:
    """Check that encoding and decoding are deterministic."""
    tokenizer = built(subject)
    first, again = (tokenizer.encode(images(tokenizer)) for _ in range(2))
    require(torch.equal(first.ids, again.ids), "ids differ the second time")
    shown, once_more = tokenizer.decode(first), tokenizer.decode(first)
    for key, value in shown.items():
        require(torch.equal(value, once_more[key]), f"images {key!r} differ the second time")


def check_rows(subject: Subject) -> None:
    """Check that ids and images of a video do not depend on the rest of the batch."""
    tokenizer = built(subject)
    whole = images(tokenizer)
    tokens = tokenizer.encode(whole)
    alone = tokenizer.encode({key: value[1:] for key, value in whole.items()})
    require(torch.equal(alone.ids[0], tokens.ids[1]), "ids differ, alone and in a batch")
    both, one = tokenizer.decode(tokens), tokenizer.decode(alone)
    for key, value in both.items():
        away = (one[key][0].int() - value[1].int()).abs().max().item()
        require(away <= ROUNDING, f"colours of {key!r} differ by {away}, alone and in a batch")


def check_every_id(subject: Subject) -> None:
    """Check that every id can be decoded, and that different ids give different images."""
    tokenizer = built(subject)
    ids = torch.arange(tokenizer.tokens) * 7 % tokenizer.vocabulary
    last = torch.full_like(ids, tokenizer.vocabulary - 1)
    shown = tokenizer.decode(Tokens(torch.stack([ids, last])[None]))
    frames = [(value[0, 0], value[0, tokenizer.stride]) for value in shown.values()]
    same = all(torch.equal(first, second) for first, second in frames)
    require(not same, "two frames of different ids are equal")


def check_too_few(subject: Subject) -> None:
    """Check that too few tokens, or a part of a token frame, raise ShapeError."""
    tokenizer = built(subject)
    ids = tokenizer.encode(images(tokenizer)).ids
    refuses("K - 1 tokens", ShapeError, lambda: tokenizer.decode(Tokens(ids[..., 1:])))
    if tokenizer.stride > 1:
        part = {key: value[:, 1:] for key, value in images(tokenizer).items()}
        refuses("T no multiple of the stride", ShapeError, lambda: tokenizer.encode(part))


def check_loss(subject: Subject) -> None:
    """Check that the loss of a trained tokenizer falls and has the required parts."""
    tokenizer: Any = built(subject)
    if not isinstance(tokenizer, Learner):
        raise NotApplicable("is not a Learner")
    seen = _batch(tokenizer)
    module: Any = tokenizer
    module.train()
    optimiser = torch.optim.Adam(module.parameters(), RATE)
    losses = []
    for _ in range(UPDATES):
        loss = tokenizer.loss(seen)
        optimiser.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.total.item())
    fell = losses[-1] < losses[0]
    require(fell, f"it is {losses[0]:.4g} at first and {losses[-1]:.4g} after {UPDATES} steps")
    missing = FIGURES - loss.parts.keys()
    require(not missing, f"its parts {sorted(loss.parts)} lack {sorted(missing)}")


def built(subject: Subject) -> Tokenizer:
    """Return a new tokenizer for the spec's images, with code books initialised from data."""
    torch.manual_seed(0)
    tokenizer: Any = subject.build(data.images(subject.spec or data.SPEC))
    if isinstance(tokenizer, Learner):
        tokenizer.loss(_batch(tokenizer, seed=9))  # initialises the code books
    module: Any = tokenizer
    made: Tokenizer = module.eval()
    return made


def images(tokenizer: Tokenizer, seed: int = 0) -> dict[str, Tensor]:
    """Return images (B, T, h, w, 3) of a few token frames."""
    return data.observations(tokenizer.spec, ROWS, FRAMES * tokenizer.stride, seed=seed)


def _batch(tokenizer: Any, seed: int = 0) -> Batch:
    seen: Tensors = images(tokenizer, seed)
    length = FRAMES * tokenizer.stride
    return Batch(seen, data.actions(tokenizer.spec, ROWS, length - 1))
