"""A trained VideoWorld that acts in several episodes at once, in each as in `latentplan plan`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentplan.models.videoworld.videoworld import VideoWorld
from latentplan.training import checkpoint


def load(run: str) -> VideoWorld:
    """Return the model of a run in evaluation mode."""
    model = checkpoint.load(checkpoint.find(run), device="cpu").model
    assert isinstance(model, VideoWorld)
    return model.eval()


class Agent:
    """Policy that generates codes from the observed frames and decodes actions from them.

    The codes of the indices `intervene` are replaced with random ones before actions are decoded,
    as in table 4c of VideoWorld.
    """

    needs_images = True

    def __init__(self, model: VideoWorld, *, chunk: int = 1, intervene: Sequence[int] = ()) -> None:
        """Take the model, and the number of actions sent before codes are generated again."""
        self.model, self.chunk, self.intervene = model, chunk, tuple(intervene)

    def begin(self, envs: Sequence[Any], task: str, seeds: Sequence[int]) -> None:
        """Start episodes; ConfigError for a task that the model was not trained on."""
        self.task_id = self.model.transformer.task_id(task)
        self.frames = [deque[Tensor](maxlen=self.model.context) for _ in seeds]  # tokens (K,)
        self.planned = [deque[np.ndarray]() for _ in seeds]
        self.drawn = torch.Generator().manual_seed(min(seeds))

    @torch.no_grad()
    def act(self, lanes: Sequence[int], observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return the actions (n, A) of the episodes `lanes`."""
        images = {
            key: torch.from_numpy(np.stack([seen[key] for seen in observations]))[:, None]
            for key in self.model.config.images
        }
        tokens = self.model.tokenizer.encode(images).ids[:, 0]  # n K
        same_length: dict[int, list[int]] = {}
        for lane, frame in zip(lanes, tokens, strict=True):
            self.frames[lane].append(frame)
            if not self.planned[lane]:
                same_length.setdefault(len(self._context(lane)), []).append(lane)
        for group in same_length.values():
            context = torch.stack([self._context(lane) for lane in group])
            for lane, actions in zip(group, self._plans(context), strict=True):
                self.planned[lane].extend(actions[: self.chunk].numpy())
        return np.stack([self.planned[lane].popleft() for lane in lanes])

    def _context(self, lane: int) -> Tensor:
        """Return the frames (t, K) of an episode, without repeats of the first.

        As in training, the context is shorter at the start of an episode.
        """
        frames = torch.stack(list(self.frames[lane]))
        changed = (frames[1:] != frames[:-1]).any(-1).nonzero()
        return frames[int(changed[0]) if len(changed) else len(frames) - 1 :]

    def _plans(self, context: Tensor) -> Tensor:
        """Return the planned actions (n, chunk, A) after frames (n, t, K)."""
        transformer, inverse = self.model.transformer, self.model.inverse
        task = torch.full((len(context),), self.task_id)
        made = transformer.generate(context, task)
        codes, hidden = made.codes[:, 0], made.hidden[:, 0]
        for index in self.intervene:
            drawn = torch.randint(
                transformer.config.codes, (len(codes),), generator=self.drawn, dtype=codes.dtype
            )
            codes[:, index] = drawn
        if inverse.config.reads == "frames":
            after = transformer.imagine(context, codes, task)
            return inverse.actions(inverse(inverse.read_frames(context[:, -1], after, codes)))
        if self.intervene:
            hidden = transformer.plan_states(context, codes, task)
        return inverse.actions(inverse(inverse.read_hidden(hidden, context[:, -1])))
