"""The recent observations and actions, as the context that a model plans from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from latentplan.nn.observations import checked, device_of, encode, frames_of, privileged_of
from latentplan.protocols import Dynamics
from latentplan.types import Array, Context, Observation


class _Step(NamedTuple):
    """An observation, and the action that led to it."""

    action: Tensor  # (1, A); zero motion if none was sent
    latent: Tensor  # (1, 1, D)


class ObservationHistory:
    """The last T latents of a model and the T - 1 actions sent between them.

    Observations are checked before they are encoded.
    """

    def __init__(self, model: Dynamics) -> None:
        """Start empty."""
        self.model, self.device = model, device_of(model)
        self._steps: deque[_Step] = deque(maxlen=model.context)
        # The last observations, as many as a latent is of, the newest last.
        self._inputs: deque[dict[str, Array]] = deque(maxlen=frames_of(model))
        action = model.spec.action
        rest = np.clip(np.zeros(action.size), action.low, action.high)
        self._rest = torch.tensor(rest[None], dtype=torch.float32, device=self.device)
        self._sent: Tensor | None = None  # (1, A) action since the last observation
        self._task: Tensor | None = None  # (1,) int64 id of the task

    def observe(self, where: str, observation: Observation) -> None:
        """Append an observation; ShapeError unless it has the model's keys."""
        inputs = checked(where, self.model, observation)
        self._steps.append(self._step(inputs))
        self._inputs.append(inputs)
        self._sent = None

    def instruct(self, text: str) -> None:
        """Set the task by name; a name that is not among the spec's tasks has id 0."""
        tasks = self.model.spec.tasks
        if tasks:
            number = tasks.index(text) + 1 if text in tasks else 0
            self._task = torch.tensor([number], device=self.device)

    @property
    def started(self) -> bool:
        """Whether an observation has been recorded in this episode."""
        return len(self._steps) > 0

    def send(self, action: Tensor) -> None:
        """Record the action (1, A) sent since the last observation, replacing an earlier one."""
        self._sent = action.to(self._rest)

    def clear(self) -> None:
        """Drop all observations and actions; the task stays."""
        self._steps.clear()
        self._inputs.clear()
        self._sent = None

    def context(self) -> Context:
        """Return the context (B = 1) that ends with the last observation.

        At the start of an episode it is padded with the first observation and zero motion.
        """
        return self._context(list(self._steps))

    def context_at(self, where: str, observation: Observation) -> Context:
        """Return the context that ends with `observation`, without recording it.

        If it equals the last observation, return the context of that one. Raises as `observe` does.
        """
        inputs = checked(where, self.model, observation)
        if self._inputs and _equal(inputs, self._inputs[-1]):
            return self.context()
        return self._context([*self._steps, self._step(inputs)])

    def _step(self, inputs: Mapping[str, Array]) -> _Step:
        began = self._sent is not None and self.started
        frames = [*self._inputs, inputs][-frames_of(self.model) :]
        return _Step(cast(Tensor, self._sent) if began else self._rest, encode(self.model, *frames))

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


class Histories:
    """The histories of several models, which record the same episode."""

    def __init__(self, models: Iterable[Dynamics]) -> None:
        """Start an empty history for each model."""
        self._by_model = {model: ObservationHistory(model) for model in models}

    def __getitem__(self, model: Dynamics) -> ObservationHistory:
        """Return the history of a model."""
        return self._by_model[model]

    @property
    def privileged(self) -> tuple[str, ...]:
        """The privileged observations that the models declare to read."""
        return tuple(sorted({key for each in self._by_model for key in privileged_of(each)}))

    def observe(self, where: str, observation: Observation) -> None:
        """Append an observation; ShapeError unless it has the keys of every model."""
        for each in self._by_model.values():
            each.observe(where, observation)

    def instruct(self, text: str) -> None:
        """Set the task by name."""
        for each in self._by_model.values():
            each.instruct(text)

    def send(self, action: Tensor) -> None:
        """Record the action (1, A) sent since the last observation, replacing an earlier one."""
        for each in self._by_model.values():
            each.send(action)

    def clear(self) -> None:
        """Drop all observations and actions; the task stays."""
        for each in self._by_model.values():
            each.clear()

    def blank(self) -> dict[str, Array]:
        """Return an observation of zeros with the keys of every model."""
        specs = [model.spec.observation for model in self._by_model]
        return {key: np.zeros(a.shape, a.dtype) for spec in specs for key, a in spec.items()}


def _equal(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return all(np.array_equal(value, other[key]) for key, value in one.items())
