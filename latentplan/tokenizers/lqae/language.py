"""A small masked language model over frozen word embeddings.

BERT (Devlin et al., arXiv 1810.04805), with the transformer of this package: words in, masked words
out. Differs: sequences are sentences packed to one length, since LQAE fills all of its positions,
and as many words are masked as LQAE masks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentplan.nn.transformer import Transformer

SCALE = 10.0  # initial sharpness: the logits are that times the cosines


class MaskedLanguageModel(nn.Module):
    """Hidden states (n, L, width) of word vectors (n, L, size), and logits over a code book."""

    def __init__(self, size: int, *, width: int, layers: int, heads: int) -> None:
        """Make the layers; `width` is a multiple of twice `heads`."""
        super().__init__()
        self.into = nn.Linear(size, width)
        self.body = Transformer(width, layers=layers, heads=heads, causal=False)
        self.out = nn.Linear(width, size)
        self.scale = nn.Parameter(torch.tensor(SCALE))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the last hidden states (n, L, width) of word vectors (n, L, size)."""
        hidden: Tensor = self.body(self.into(vectors))
        return hidden

    def logits(self, hidden: Tensor, book: Tensor) -> Tensor:
        """Return the logits (..., V) of the words of `book` (V, size), of unit length."""
        return self.scale * F.normalize(self.out(hidden), dim=-1) @ book.T

    def loss(self, ids: Tensor, masked: Tensor, *, book: Tensor, blank: Tensor) -> Tensor:
        """Return the cross-entropy () of the `masked` (n, L) words of ids (n, L), in nats.

        `blank` (size,) is the vector of a masked word.
        """
        hidden = self(torch.where(masked[..., None], blank, book[ids]))
        return cross_entropy(self.logits(hidden, book), ids, masked)


def cross_entropy(logits: Tensor, ids: Tensor, masked: Tensor) -> Tensor:
    """Return the mean cross-entropy () of ids (n, L) at the `masked` (n, L) positions."""
    nats = F.cross_entropy(logits.flatten(0, -2), ids.flatten(), reduction="none")
    return (nats * masked.flatten()).sum() / masked.sum().clamp(min=1)


def draw_mask(shape: Sequence[int], share: float, *, device: torch.device) -> Tensor:
    """Return a mask (n, L) bool of that share of positions in each row, at random.

    At least one position is masked, and one is not.
    """
    rank = torch.rand(*shape, device=device).argsort(-1).argsort(-1)
    return rank < min(max(1, round(share * shape[-1])), shape[-1] - 1)


def fit(
    model: MaskedLanguageModel,
    sentences: Sequence[Sequence[int]],
    *,
    book: Tensor,
    blank: Tensor,
    length: int,
    share: float,
    steps: int,
    batch: int = 16,
    learning_rate: float = 2e-3,
) -> Tensor:
    """Train the model on sentences of word ids, packed to `length`; return the last loss ().

    The caller seeds torch; the order of the sentences depends on it alone.
    """
    draw = random.Random(int(torch.randint(2**31, ()).item()))
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1
    )
    loss = book.new_zeros(())
    model.requires_grad_(True)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.tensor([_packed(sentences, length, draw) for _ in range(batch)])
            ids = rows.to(book.device)
            masked = draw_mask(ids.shape, share, device=book.device)
            loss = model.loss(ids, masked, book=book, blank=blank)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.requires_grad_(False)
    return loss.detach()


def _packed(sentences: Sequence[Sequence[int]], length: int, draw: random.Random) -> list[int]:
    """Return `length` word ids of random sentences in a row, the last one cut."""
    row: list[int] = []
    while len(row) < length:
        row += draw.choice(sentences)
    return row[:length]
