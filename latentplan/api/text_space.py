"""The space of latents and texts that `latentplan.load` fits to the labels of a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError
from latentplan.nn.observations import checked, encode, frames_of
from latentplan.objectives.text import TextGoal
from latentplan.objectives.text_space import FittedTextSpace, SentenceFeatures, WordFeatures
from latentplan.protocols import Dynamics
from latentplan.tokenizers.lqae.lqae import LQAE
from latentplan.training import checkpoint


def fit_text_space(model: Dynamics, config: TextGoal.Config) -> FittedTextSpace:
    """Return the space of a model's latents and of texts, fitted to the ends of labels.

    Raises ConfigError if the store has no labels or the tokenizer is no LQAE, StoreError or
    CheckpointError for a store or run that cannot be read, and ShapeError for other observations.
    """
    features = _features(model, config)
    with ZarrStore.open(config.data) as store:
        found = list(labelled(store, model, shots=config.shots))
    if not found:
        raise ConfigError(
            f"TextGoal.data: {config.data} has no labels; collect or import episodes with some"
        )
    latents = torch.cat([latent for latent, _ in found])
    return FittedTextSpace(
        features, latents, [text for _, text in found], ridge=config.ridge
    )


def labelled(
    store: ZarrStore, model: Dynamics, *, shots: int
) -> Iterator[tuple[Tensor, str]]:
    """Yield the latent (1, D) at the end of each label and its text, `shots` of a task at most."""
    counts: Counter[str] = Counter()
    for number, label in store.labels():
        task = label.task or label.text
        if not label.text or shots and counts[task] >= shots:
            continue
        counts[task] += 1
        seen = store.episode(number).observations
        last = range(len(next(iter(seen.values()))))[label.stop]
        rows = range(max(0, last + 1 - frames_of(model)), last + 1)
        inputs = [
            checked("TextGoal.data", model, {key: value[row] for key, value in seen.items()})
            for row in rows
        ]
        yield encode(model, *inputs)[:, 0], label.text


def _features(model: Dynamics, config: TextGoal.Config) -> Any:
    if not config.tokenizer.run:
        return SentenceFeatures(model)
    device = str(next(model.parameters()).device)  # type: ignore[attr-defined]
    file = checkpoint.find(config.tokenizer.run)
    words = checkpoint.load(file, kind="tokenizer", device=device).model
    if not isinstance(words, LQAE):
        raise ConfigError(
            f"TextGoal.tokenizer: {config.tokenizer.run} is {type(words).__name__}, need LQAE, "
            "whose tokens are words"
        )
    return WordFeatures(model, words.requires_grad_(False))
