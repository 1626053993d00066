"""The last observations and actions, as the context that a model plans from."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from latentplan.nn.observations import checked, device_of, encode
from latentplan.protocols import Dynamics
from latentplan.types import Array, Context, Observation


class _Step(NamedTuple):
    """An observation, and the action that led to it."""

    action: Tensor  # (1, A); no motion where none was sent
    latent: Tensor  # (1, 1, D)


class ObservationHistory:
    """The last T latents of a model and the T - 1 actions sent between them.

    Observations are checked before the model encodes them.
    """

    def __init__(self, model: Dynamics) -> None:
        """Start empty."""
        self.model, self.device = model, device_of(model)
        self._steps: deque[_Step] = deque(maxlen=model.context)
        self._inputs: dict[str, Array] | None = None  # of the last observation
        action = model.spec.action
        rest = np.clip(np.zeros(action.size), action.low, action.high)
        self._rest = torch.tensor(rest[None], dtype=torch.float32, device=self.device)
        self._sent: Tensor | None = None  # action (1, A) since the last observation
        self._task: Tensor | None = None  # (1,) int64 id of the task

    def observe(self, where: str, observation: Observation) -> None:
        """Append an observation; ShapeError unless it has the model's keys."""
        inputs = checked(where, self.model.spec, observation)
        self._steps.append(self._step(inputs))
        self._inputs, self._sent = inputs, None

    def instruct(self, text: str) -> None:
        """Set the task by its name; of a name that the model has no id for, the id is 0."""
        tasks = self.model.spec.tasks
        if tasks:
            number = tasks.index(text) + 1 if text in tasks else 0
            self._task = torch.tensor([number], device=self.device)

    @property
    def started(self) -> bool:
        """Whether there is an observation."""
        return len(self._steps) > 0

    def send(self, action: Tensor) -> None:
        """Record the action (1, A) sent since the last observation, in place of one before."""
        self._sent = action.to(self._rest)

    def clear(self) -> None:
        """Start an episode."""
        self._steps.clear()
        self._inputs = self._sent = None

    def context(self) -> Context:
        """Return the context (B = 1) of the last observation.

        Until T observations are there, the first is repeated, with no motion in between.
        """
        return self._context(list(self._steps))

    def context_at(self, where: str, observation: Observation) -> Context:
        """Return the context of an observation, without appending it.

        One that equals the last is taken for it, and not counted twice. Raises as `observe`.
        """
        inputs = checked(where, self.model.spec, observation)
        if self._inputs is not None and _equal(inputs, self._inputs):
            return self.context()
        return self._context([*self._steps, self._step(inputs)])

    def _step(self, inputs: Mapping[str, Array]) -> _Step:
        began = self._sent is not None and self.started
        return _Step(cast(Tensor, self._sent) if began else self._rest, encode(self.model, inputs))

    def _context(self, steps: list[_Step]) -> Context:
        count = self.model.context
        steps = steps[-count:]
        filled = [_Step(self._rest, steps[0].latent)] * (count - len(steps)) + steps
        actions = [step.action[:, None] for step in filled[1:]]
        return Context(
            torch.cat([step.latent for step in filled], dim=1),
            torch.cat(actions, dim=1) if actions else self._rest[:, None][:, :0],
            task=self._task,
        )


def _equal(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return all(np.array_equal(value, other[key]) for key, value in one.items())
