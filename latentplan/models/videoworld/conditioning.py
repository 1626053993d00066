"""What conditions the transformer beside single tokens: features of a whole frame, and tasks.

Both differ from the paper. Attention to single tokens learns slowly from few videos, so
convolutions encode the whole frame; and a task may be a sentence, so that a new wording maps to a
trained task.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError
from latentplan.nn import sentences as encoder
from latentplan.nn.quantizer import FSQCodebook

LARGE = 8  # tokens a side of a camera, above which the frame encoder halves the map


class FrameEncoder(nn.Module):
    """Convolutions from all tokens of a frame, as maps of their numbers, to one vector."""

    def __init__(
        self,
        tokens: int,
        *,
        levels: Sequence[int],
        views: int,
        width: int,
        channels: int,
        dropout: float,
    ) -> None:
        """Build the layers for `tokens` a frame; condition and result are of `width` numbers.

        Raises ConfigError unless the tokens are one square map a camera.
        """
        super().__init__()
        side = isqrt(tokens // views)
        self.shape = (views, side)
        if views * side**2 != tokens:
            raise ConfigError(
                f"VideoTransformer.views: {tokens} tokens are not {views} square maps"
            )
        self.codebook = FSQCodebook(tuple(levels))
        self.first = nn.Conv2d(views * len(levels), channels, 3, padding=1)
        self.condition = nn.Linear(width, channels)
        stride = 2 if side > LARGE else 1
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1), nn.ReLU(),
            nn.Conv2d(channels, channels // 2, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Dropout(dropout),
        )  # fmt: skip
        self.out = nn.Linear(channels // 2 * (-(-side // stride)) ** 2, width)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return (..., width) of frames (..., K), conditioned on vectors (..., width)."""
        views, side = self.shape
        maps = self.codebook.codes(tokens.flatten(0, -2))
        maps = rearrange(maps, "n (v y x) d -> n (v d) y x", v=views, y=side)
        x = self.first(maps) + self.condition(condition).flatten(0, -2)[:, :, None, None]
        features: Tensor = self.out(self.convolutions(F.relu(x)))
        return features.view(*tokens.shape[:-1], -1)


class TaskSentences(nn.Module):
    """An embedding of tasks that are sentences: standardised vectors, then a linear layer.

    Each number of the vectors has mean 0 and variance 1 over the tasks. Task id 0 is no task.
    """

    def __init__(self, sentences: Tensor, width: int) -> None:
        """Take the vectors (tasks, 384) of the sentences; they are saved with the weights."""
        super().__init__()
        self.sentences: Tensor
        self.register_buffer("sentences", sentences.clone())
        self.linear = nn.Linear(sentences.shape[1], width)
        self.no_task = nn.Parameter(0.02 * torch.randn(width))
        nn.init.normal_(self.linear.weight, std=1 / sentences.shape[1] ** 0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, task: Tensor) -> Tensor:
        """Return (..., width) of task ids (...)."""
        centred = self.sentences - self.sentences.mean(0)
        known = self.linear(centred / centred.square().mean(0).sqrt().clamp(min=1e-4))
        return torch.cat([self.no_task[None], known])[task]

    def nearest(self, text: str) -> tuple[int, float]:
        """Return the index of the known sentence nearest to a text, and the cosine.

        Raises MissingDependency without the extra `language`.
        """
        query = encoder.embed([text.replace("_", " ")]).to(self.sentences)
        cosine, index = (self.sentences @ query[0]).max(0)
        return int(index), float(cosine)
