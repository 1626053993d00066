"""Discrete codes: finite scalar quantization, or a learned code book.

Both wrap vector-quantize-pytorch.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range


class Quantized(NamedTuple):
    """The quantization of vectors (..., width)."""

    vectors: Tensor  # (..., width), with the gradient of the input
    ids: Tensor  # (...) int64
    loss: Tensor  # (), to be added to the model's


class Quantizer(nn.Module):
    """A map from vectors to ids and back.

    `fsq`: each of len(levels) numbers is rounded to one of so many values (Mentzer et al., arXiv
    2309.15505). `vq`: the nearest of `prod(levels)` learned vectors (van den Oord et al., arXiv
    1711.00937), moved by running means. Before either, batch normalisation without weights brings
    the numbers to mean 0 and variance 1, so that they use all levels from the first step. `whiten`
    decorrelates them as well, since two equal numbers waste one. Without `normalise` the numbers
    stay as they are.
    """

    def __init__(
        self,
        width: int,
        *,
        levels: tuple[int, ...],
        kind: str = "fsq",
        whiten: bool = False,
        normalise: bool = True,
    ) -> None:
        """Make the projections, and the book of a `vq`."""
        super().__init__()
        from vector_quantize_pytorch import FSQ, VectorQuantize

        self.kind, self.size = kind, prod(levels)
        numbers = len(levels)
        self.before = nn.Linear(width, numbers)
        self.spread: nn.Module = nn.Identity()
        if normalise:
            self.spread = Whitening(numbers) if whiten else nn.BatchNorm1d(numbers, affine=False)
        self.after = nn.Linear(numbers, width)
        if kind == "fsq":
            self.book: Any = FSQ(levels=list(levels), dim=numbers)
        else:
            self.book = VectorQuantize(dim=numbers, codebook_size=self.size, rotation_trick=True)

    def forward(self, x: Tensor) -> Quantized:
        """Return the quantized vectors of x (..., width), their ids, and a loss."""
        flat = self.spread(self.before(x.reshape(-1, x.shape[-1])))[None]
        if self.kind == "fsq":
            vectors, ids = self.book(flat)
            loss = x.new_zeros(())
        else:
            vectors, ids, loss = self.book(flat)
            loss = loss.sum()
        return Quantized(self.after(vectors).view(x.shape), ids.view(x.shape[:-1]).long(), loss)

    def vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., width) of ids (...)."""
        flat = ids.reshape(1, -1)
        if self.kind == "fsq":
            found: Tensor = self.book.indices_to_codes(flat)
        else:
            found = self.book.get_output_from_indices(flat)
        vectors: Tensor = self.after(found).view(*ids.shape, -1)
        return vectors


class Whitening(nn.Module):
    """Numbers (n, d) brought to mean 0, variance 1 and no correlation, by the batch's statistics.

    Decorrelated batch normalisation (Huang et al., arXiv 1804.08450) by a Cholesky factor instead
    of an eigenvalue decomposition, whose gradient is undefined if two eigenvalues are equal.
    """

    def __init__(self, size: int, *, momentum: float = 0.05) -> None:
        """Take how many numbers there are, and the share of a batch in the running statistics."""
        super().__init__()
        self.momentum = momentum
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.covariance: Tensor
        self.register_buffer("covariance", torch.eye(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return x whitened (n, d), outside training by the running statistics."""
        with torch.autocast(x.device.type, enabled=False):  # factors need all their digits
            return self._white(x.to(self.mean.dtype))

    def _white(self, x: Tensor) -> Tensor:
        mean, covariance = self.mean, self.covariance
        if self.training:
            mean = x.mean(0)
            covariance = (x - mean).T @ (x - mean) / len(x)
            with torch.no_grad():
                self.mean.lerp_(mean, self.momentum)
                self.covariance.lerp_(covariance, self.momentum)
        least = 1e-3 * covariance.diagonal().mean() + 1e-6  # equal numbers would divide by 0
        # The check of `cholesky` would wait for the GPU; NaNs that it finds reach the loss anyway.
        ridge = least * torch.eye(len(mean), device=x.device)
        factor, _ = torch.linalg.cholesky_ex(covariance + ridge)
        white: Tensor = torch.linalg.solve_triangular(factor, (x - mean).T, upper=False).T
        return white


class FSQCodebook(nn.Module):
    """A map between ids of finite scalar quantization and their numbers; no weights."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        """Take how many values each number has."""
        super().__init__()
        from vector_quantize_pytorch import FSQ

        with torch.device("cpu"):  # FSQ reads its own numbers, which the meta device does not have
            self.fsq: Any = FSQ(levels=list(levels))
        half = torch.tensor(levels) // 2
        self.middle: Tensor
        self.register_buffer("middle", half, persistent=False)

    def level_indices(self, ids: Tensor) -> Tensor:
        """Return the index of each number's value: (..., len(levels)) of ids (...)."""
        found: Tensor = self.fsq.indices_to_level_indices(ids)
        return found.long()

    def codes(self, ids: Tensor) -> Tensor:
        """Return the numbers (..., len(levels)) in [-1, 1] that ids (...) stand for."""
        found: Tensor = self.fsq.indices_to_codes(ids.reshape(1, -1))[0]
        return found.view(*ids.shape, -1)

    def nearest(self, codes: Tensor) -> Tensor:
        """Return the ids (...) nearest to numbers (..., len(levels)): `codes` undone."""
        index = (codes * self.middle + self.middle).round().clamp(min=0)
        index = torch.minimum(index, (self.fsq._levels - 1).to(index))
        ids: Tensor = self.fsq.codes_to_indices((index - self.middle) / self.middle)
        return ids.long()


def usage(ids: Tensor, size: int) -> dict[str, Tensor]:
    """Return the share of `size` codes that occur in ids, and their perplexity."""
    flat = ids.reshape(-1)  # counted by addition: `bincount` waits for the GPU
    share = flat.new_zeros(size).scatter_add(0, flat, torch.ones_like(flat)).float()
    share = share / share.sum()
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {"usage": (share > 0).float().mean(), "perplexity": entropy.exp()}


def check(where: str, kind: str, levels: tuple[int, ...]) -> None:
    """Raise ConfigError unless the kind and levels make a quantizer."""
    if kind not in ("fsq", "vq"):
        raise ConfigError(f"{where}.quantizer: {kind!r} is not one of fsq, vq")
    if not levels:
        raise ConfigError(f"{where}.levels: found none, need at least one")
    for value in levels:
        check_range(f"{where}.levels", value, 3, 64)
