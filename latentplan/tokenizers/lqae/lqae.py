"""An autoencoder of images whose tokens are words, through a frozen language model.

Language-Quantized AutoEncoder (Liu et al., arXiv 2302.00902, section 3): an encoder makes a vector
of each patch, the nearest word embedding replaces it, half of the words are masked, a frozen masked
language model reads them, and a decoder makes the image of its hidden states. Differs: the words
are those of a physical vocabulary; the language model is a small one, trained on instructions
before the first step (`pretrain`), where the paper has RoBERTa-base; convolutions, those of VQVAE,
take the place of vision transformers, which learned much slower here; images are differences from
the mean image; the nearest word is found among the first principal directions of the centred
embeddings, normalised over the batch. With all directions a handful of words is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.nn import images, quantizer, sentences
from latentplan.shapes import check
from latentplan.tokenizers.lqae import language, vocabulary
from latentplan.types import Batch, Loss, Spec, Tensors, Tokens

BOOKS = ("words", "shuffled", "random")
MASK = "[MASK]"  # word of the embeddings that stands for a masked one
FEWEST = 8  # words of a code book


class LQAE(nn.Module):
    """A `protocols.Tokenizer` whose ids are words: K = cameras x (side / factor)^2 a time step.

    `factor` is the patch, doubled for every number of channels but the first.

    Until `pretrain` puts in the word embeddings and fits the language model, both are random.
    """

    stride = 1  # observations a token frame
    window, targets, reads = 1, (), ()

    @dataclass(frozen=True)
    class Config:
        """The vocabulary, the language model, and the autoencoder."""

        images: tuple[str, ...] = ()  # observation keys of the cameras; () for all of the spec
        words: tuple[str, ...] = ()  # codes, each one token; () for those of vocabulary.py
        book: str = "words"  # controls: shuffled (words have others' embeddings), random (numbers)
        directions: int = 16  # principal ones of the embeddings, in which words are compared
        mask: float = 0.5  # share of the words that training masks
        patch: int = 4  # pixels a side of one cell of the first map
        channels: tuple[int, ...] = (64, 128)  # each but the first halves the map's side
        blocks: int = 1  # residual blocks at each size, in the encoder and the decoder
        language_width: int = 128  # of the language model
        language_layers: int = 2  # of the language model
        language_heads: int = 4  # of its attention
        language_steps: int = 300  # of its training, before that of the autoencoder
        language_weight: float = 1e-4  # of its cross-entropy in the loss
        commitment_weight: float = 0.005  # of the distance between vectors and their words

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            if not self.channels:
                raise ConfigError("LQAE.channels: found none, need at least one")
            for value in self.channels:
                check_range("LQAE.channels", value, 8, 4096)
                if value % 8:
                    raise ConfigError(f"LQAE.channels: {value} is not a multiple of 8")
            check_range("LQAE.patch", self.patch, 1, 64)
            check_range("LQAE.blocks", self.blocks, 0, 100)
            check_range("LQAE.directions", self.directions, 2, sentences.SIZE)
            for name in ("width", "layers", "heads", "steps"):
                check_range(f"LQAE.language_{name}", getattr(self, f"language_{name}"), 1)
            if self.language_width % (2 * self.language_heads):
                raise ConfigError(
                    f"LQAE.language_width: {self.language_width} is not a multiple of 2 "
                    f"language_heads={2 * self.language_heads}"
                )
            check_range("LQAE.mask", self.mask, 0.01, 0.99)
            check_range("LQAE.language_weight", self.language_weight, 0.0)
            check_range("LQAE.commitment_weight", self.commitment_weight, 0.0)
            if self.book not in BOOKS:
                raise ConfigError(f"LQAE.book: {self.book!r} is not one of {', '.join(BOOKS)}")
            _check_words(self.words)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build the network for the images of `spec`; ConfigError if they do not fit."""
        super().__init__()
        c = config or self.Config()
        c = self.config = replace(c, words=c.words or vocabulary.words())
        self.images = images.keys("LQAE.images", c.images, spec)
        seen = {key: spec.observation[key] for key in self.images}
        self.spec = replace(spec, observation=seen, privileged=())
        side = images.square("LQAE.images", self.images, spec)
        factor = images.factor(c.channels, patch=c.patch)
        if side % factor:
            raise ConfigError(
                f"LQAE.channels: patches of {c.patch} and {len(c.channels)} sizes need images "
                f"whose side is a multiple of {factor}, found {side} pixels"
            )
        self.grid = side // factor
        views, width = len(self.images), c.channels[-1]
        self.tokens = views * self.grid**2  # K
        if self.tokens < 2:
            raise ConfigError(
                f"LQAE.channels: an image of {side} pixels has 1 word, need at least 2, since some "
                "are masked; take fewer channels or a smaller patch"
            )
        self.vocabulary = len(c.words)
        if c.directions > self.vocabulary:
            raise ConfigError(
                f"LQAE.directions: {c.directions} are more than the {self.vocabulary} words"
            )
        self._ids = {word: number for number, word in enumerate(c.words)}
        self.encoder = images.down(3, c.channels, patch=c.patch, blocks=c.blocks)
        self.to_words = nn.Linear(width, c.directions)
        self.normalise = nn.BatchNorm1d(c.directions, affine=False)
        self.language = language.MaskedLanguageModel(
            sentences.SIZE,
            width=c.language_width,
            layers=c.language_layers,
            heads=c.language_heads,
        ).requires_grad_(False)
        self.from_words = nn.Linear(c.language_width, width)
        self.decoder = images.up(c.channels, 3, patch=c.patch, blocks=c.blocks)
        # Embeddings of the position, so that words need not encode the static background.
        self.places = nn.ParameterList(torch.zeros(self.tokens, width) for _ in range(2))
        self.book: Tensor  # (V, size), unit vectors
        self.register_buffer("book", torch.empty(self.vocabulary, sentences.SIZE))
        self.blank: Tensor  # (size,), of a masked word
        self.register_buffer("blank", torch.empty(sentences.SIZE))
        self.basis: Tensor  # (directions, size), orthonormal
        self.register_buffer("basis", torch.empty(c.directions, sentences.SIZE))
        self.mean: Tensor  # (v, 3, h, w), running
        self.register_buffer("mean", torch.zeros(views, 3, side, side))
        self.batches: Tensor
        self.register_buffer("batches", torch.zeros(()))
        with torch.device("cpu"):
            self._set_book(F.normalize(torch.randn(self.vocabulary + 1, sentences.SIZE), dim=-1))

    def pretrain(self, texts: Sequence[str]) -> None:
        """Set the code book, and fit the language model on `texts` and the built-in sentences.

        Words of a text that are not in the code book are left out. Training calls it once, before
        the first step. Raises MissingDependency without the extra `language`, and ConfigError if a
        word of the config is not one token of its embeddings.
        """
        c = self.config
        if c.book != "random":
            found = sentences.word_vectors((*c.words, MASK))
            found = F.normalize(found - found[:-1].mean(0), dim=-1)
            if c.book == "shuffled":
                found[:-1] = found[torch.randperm(self.vocabulary)]
            self._set_book(found)
        corpus = [self.word_ids(each) for each in map(vocabulary.split, texts)]
        corpus += [self.word_ids(each) for each in vocabulary.sentences()]
        corpus = [each for each in corpus if each]
        if not corpus:  # an own vocabulary that shares no word with any sentence
            raise ConfigError(
                "LQAE.words: no sentence of the data or of vocabulary.py has any of these "
                f"{self.vocabulary} words; name the words of the instructions"
            )
        language.fit(
            self.language,
            corpus,
            book=self.book,
            blank=self.blank,
            length=self.tokens,
            share=c.mask,
            steps=c.language_steps,
        )

    def encode(self, observations: Tensors) -> Tokens:
        """Return the ids (B, T, K) of the words of images (B, T, h, w, 3) uint8."""
        views = images.stack(observations, self.images)
        return Tokens(self._nearest(self._vectors(views)).view(*views.shape[:2], self.tokens))

    def decode(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return the cameras' images (B, T, h, w, 3) uint8 of tokens (B, T, K).

        A token that the mask leaves out is masked for the language model, too.
        """
        check("LQAE.decode", tokens.ids, "B T K", K=self.tokens)
        vectors = self.book[tokens.ids]
        if tokens.mask is not None:
            vectors = torch.where(tokens.mask[..., None], vectors, self.blank)
        decoded = self._decode(self.language(vectors.flatten(0, 1)), tokens.ids.shape[1])
        shown = images.to_uint8(decoded)
        return {key: shown[:, :, view] for view, key in enumerate(self.images)}

    def loss(self, batch: Batch) -> Loss:
        """Return the loss of a frame a window, with PSNR in dB and the words' usage.

        Squared error through the language model, with masked words; the language model's
        cross-entropy at these; and the commitment of vectors to their words.
        """
        c = self.config
        frames = {key: batch.observations[key][:, :1] for key in self.images}
        views = images.stack(frames, self.images)
        if self.training:
            self._update_mean(views)
        vectors = self._vectors(views)
        ids = self._nearest(vectors)
        words = self.book[ids]
        masked = language.draw_mask(ids.shape, c.mask, device=ids.device)
        lifted = vectors @ self.basis
        through = lifted + (words - lifted).detach()  # straight-through
        hidden = self.language(torch.where(masked[..., None], self.blank, through))
        decoded = self._decode(hidden, 1)
        error = F.mse_loss(decoded, views)
        nats = language.cross_entropy(self.language.logits(hidden, self.book), ids, masked)
        commitment = (self._directions(words) - vectors).square().sum(-1).mean()
        total = error + c.commitment_weight * commitment + c.language_weight * nats
        parts = {"mse": error.detach(), "psnr": images.psnr(decoded.detach(), views)}
        parts["nats"] = nats.detach()
        return Loss(total, parts | quantizer.usage(ids, self.vocabulary))

    def words(self, tokens: Tokens) -> list[list[str]]:
        """Return the words of every frame, row after row, each a list of K."""
        named = self.config.words
        return [[named[number] for number in frame] for frame in tokens.ids.flatten(0, 1).tolist()]

    def word_ids(self, words: Sequence[str]) -> list[int]:
        """Return the ids of those of `words` that are codes."""
        return [self._ids[word] for word in words if word in self._ids]

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the mean word vector (B, T, 384) of tokens, of unit length."""
        return F.normalize(self.book[tokens.ids].mean(2), dim=-1)

    def text_vector(self, text: str) -> Tensor:
        """Return the mean word vector (384,) of a text, of unit length.

        Raises ConfigError if it has no word of the code book.
        """
        ids = self.word_ids(vocabulary.split(text))
        if not ids:
            raise ConfigError(
                f"goal.text: {text!r} has none of the {self.vocabulary} words of LQAE's code book; "
                "use words of its config, such as those of the instructions in the data"
            )
        return F.normalize(self.book[ids].mean(0), dim=-1)

    @torch.no_grad()
    def _set_book(self, vectors: Tensor) -> None:
        """Set the words' unit vectors, the last of which is that of a masked word."""
        self.book.copy_(vectors[:-1])
        self.blank.copy_(vectors[-1])
        _, _, rows = torch.linalg.svd(vectors[:-1], full_matrices=False)
        self.basis.copy_(rows[: self.config.directions])

    @torch.no_grad()
    def _update_mean(self, views: Tensor) -> None:
        """Update the mean image with views (b, t, v, 3, h, w)."""
        self.batches += 1
        self.mean += (views.mean(dim=(0, 1)) - self.mean) / self.batches.clamp(max=100)

    def _directions(self, words: Tensor) -> Tensor:
        """Return word vectors (..., size) in the principal directions, of unit length."""
        return F.normalize(words @ self.basis.T, dim=-1)

    def _vectors(self, views: Tensor) -> Tensor:
        """Return unit vectors (n, K, directions) of views, one to be replaced by each word."""
        flat = rearrange(views - self.mean, "b t v c h w -> (b t v) c h w")
        maps = self.encoder(flat.contiguous(memory_format=torch.channels_last))
        cells = rearrange(maps, "(n v) c y x -> n (v y x) c", v=len(self.images))
        features = self.to_words(cells + self.places[0])
        return F.normalize(self.normalise(features.flatten(0, 1)).view(features.shape), dim=-1)

    def _nearest(self, vectors: Tensor) -> Tensor:
        """Return the ids (n, K) of the words nearest to unit vectors."""
        cosines = vectors.detach() @ self._directions(self.book).T
        return cosines.argmax(-1)

    def _decode(self, hidden: Tensor, frames: int) -> Tensor:
        """Return images (b, t, v, 3, h, w) of hidden states (n, K, width), n = b t."""
        axes = {"v": len(self.images), "y": self.grid, "x": self.grid}
        cells = self.from_words(hidden) + self.places[1]
        maps = rearrange(cells, "n (v y x) c -> (n v) c y x", **axes)
        out = self.decoder(maps.contiguous(memory_format=torch.channels_last))
        away: Tensor = rearrange(out, "(b t v) c h w -> b t v c h w", t=frames, v=axes["v"])
        return self.mean + away


def _check_words(words: Sequence[str]) -> None:
    if 0 < len(words) < FEWEST:
        raise ConfigError(f"LQAE.words: found {len(words)}, need at least {FEWEST}, or () for all")
    if len(set(words)) < len(words):
        twice = next(word for word in words if words.count(word) > 1)
        raise ConfigError(f"LQAE.words: {twice!r} is there twice; name each word once")
    for word in words:
        if vocabulary.split(word) != [word]:
            raise ConfigError(
                f"LQAE.words: {word!r} is not one word of the letters a to z; write it in lower "
                "case, without spaces or punctuation"
            )
