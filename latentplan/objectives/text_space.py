"""A space of latents and texts, fitted by a linear map to a few labelled observations.

The few-shot protocol of LQAE (Liu et al., arXiv 2302.00902, section 4) with a ridge regression in
place of a large language model: features of labelled latents are mapped to vectors of their texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentplan.errors import ConfigError, ShapeError
from latentplan.nn import sentences
from latentplan.protocols import DecodableDynamics, Dynamics
from latentplan.tokenizers.lqae.lqae import LQAE

FEWEST_TEXTS = 2  # a map of one text describes everything by it


class SentenceFeatures:
    """Latents as they are, beside the sentence embeddings of texts."""

    def __init__(self, model: Dynamics) -> None:
        """Take the model of the latents."""
        self.size = model.latent_dim

    def of_latents(self, latents: Tensor) -> Tensor:
        """Return the features (n, F) of latents (n, D)."""
        return latents

    def of_text(self, text: str) -> Tensor:
        """Return the vector (E,) of a text; MissingDependency without the extra `language`."""
        return sentences.embed([text])[0]


class WordFeatures:
    """The words that LQAE reads in decoded latents, beside the words of texts."""

    def __init__(self, model: Dynamics, words: LQAE) -> None:
        """Take the model of the latents, and the LQAE; ConfigError if they do not fit."""
        if not isinstance(model, DecodableDynamics):
            raise ConfigError(
                f"objective text: {type(model).__name__} does not decode latents, from which LQAE "
                "would read words; leave the tokenizer out, or take a model such as teco"
            )
        for key, array in words.spec.observation.items():
            if model.spec.observation.get(key) != array:
                raise ConfigError(
                    f"objective text: LQAE reads {key!r} {array.shape}, which the model does not "
                    "decode; train it on the model's cameras: tokenizer.images=[...]"
                )
        self.model, self.words, self.size = model, words, model.latent_dim

    def of_latents(self, latents: Tensor) -> Tensor:
        """Return the mean word vectors (n, 384) of latents (n, D)."""
        return self.words.pooled(self.words.encode(self.model.decode(latents[:, None])))[:, 0]

    def of_text(self, text: str) -> Tensor:
        """Return the mean word vector (384,) of a text; ConfigError if it has no known word."""
        return self.words.text_vector(text)


class FittedTextSpace:
    """A `protocols.TextSpace`: a linear map of features to text vectors, both centred."""

    def __init__(
        self,
        features: SentenceFeatures | WordFeatures,
        latents: Tensor,
        texts: Sequence[str],
        *,
        ridge: float = 0.1,
    ) -> None:
        """Fit the map to latents (n, D), each with a text that it satisfies.

        `ridge` is the weight decay, as a share of the mean variance of a feature. Raises
        ConfigError if there is one text alone, or if LQAE reads the same words in all latents.
        """
        if len({*texts}) < FEWEST_TEXTS:
            raise ConfigError(
                f"objective text: the labels have {len({*texts})} texts, need at least "
                f"{FEWEST_TEXTS}; take a store with more tasks"
            )
        self.features = features
        x = features.of_latents(latents)
        y = torch.stack([features.of_text(text) for text in texts]).to(x)
        self.center, self.origin = x.mean(0), y.mean(0)
        x, y = x - self.center, y - self.origin
        variance = x.square().mean()
        if variance < 1e-10:
            raise ConfigError(
                f"objective text: all {len(x)} labelled latents have the same features, as those "
                "of a collapsed code book; train the tokenizer longer, or another"
            )
        # The smaller of the two systems: n x n, not F x F.
        decay = ridge * len(x) * variance * torch.eye(len(x)).to(x)
        self.map: Tensor = x.T @ torch.linalg.solve(x @ x.T + decay, y)  # F E

    def describe(self, latents: Tensor) -> Tensor:
        """Return the vectors (..., E) of latents (..., D), relative to their mean."""
        if latents.shape[-1] != self.features.size:
            shape = tuple(latents.shape)
            raise ShapeError(f"TextSpace.latents: found {shape}, need (..., {self.features.size})")
        x = self.features.of_latents(latents.flatten(0, -2))
        return ((x - self.center) @ self.map).view(*latents.shape[:-1], -1)

    def text_vector(self, text: str) -> Tensor:
        """Return the vector (E,) of a text, relative to the mean of the labels' texts."""
        return self.features.of_text(text).to(self.origin) - self.origin
