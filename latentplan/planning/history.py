"""The last observations and actions, as the context that a model plans from."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from latentplan import shapes
from latentplan.errors import LatentplanError, PlanningError, ShapeError
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

    def observe(self, where: str, observation: Observation) -> None:
        """Append an observation; raises as `encode`."""
        inputs = self._checked(where, observation)
        self._steps.append(self._step(inputs))
        self._inputs, self._sent = inputs, None

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
        """Return the context of an observation without appending it; raises as `encode`.

        One that equals the last is taken for it, and not counted twice.
        """
        inputs = self._checked(where, observation)
        if self._inputs is not None and _equal(inputs, self._inputs):
            return self.context()
        return self._context([*self._steps, self._step(inputs)])

    def encode(self, where: str, observation: Observation) -> Tensor:
        """Return the latent (1, 1, D) of an observation.

        Raises ShapeError that begins with `where` unless it has the model's keys, PlanningError
        where the model raises.
        """
        return self._encode(self._checked(where, observation))

    def _step(self, inputs: Mapping[str, Array]) -> _Step:
        began = self._sent is not None and len(self._steps) > 0
        return _Step(cast(Tensor, self._sent) if began else self._rest, self._encode(inputs))

    def _context(self, steps: list[_Step]) -> Context:
        count = self.model.context
        steps = steps[-count:]
        filled = [_Step(self._rest, steps[0].latent)] * (count - len(steps)) + steps
        actions = [step.action[:, None] for step in filled[1:]]
        return Context(
            torch.cat([step.latent for step in filled], dim=1),
            torch.cat(actions, dim=1) if actions else self._rest[:, None][:, :0],
        )

    def _checked(self, where: str, observation: Observation) -> dict[str, Array]:
        """Return the arrays that the model reads, of the dtypes that it was trained on."""
        spec = self.model.spec
        if not isinstance(observation, Mapping):
            found = type(observation).__name__
            raise ShapeError(f"{where}: found {found}, need a mapping from names to arrays")
        inputs = {}
        for key, array in spec.observation.items():
            if key in spec.privileged:
                continue
            if key not in observation:
                given = ", ".join(sorted(observation)) or "nothing"
                raise ShapeError(f"{where}: the observation has no {key!r}, only {given}")
            value, wanted = np.asarray(observation[key]), np.dtype(array.dtype)
            if value.shape != array.shape:
                raise ShapeError(f"{where}[{key!r}]: found shape {value.shape}, need {array.shape}")
            if value.dtype != wanted and (value.dtype.kind, wanted.kind) != ("f", "f"):
                raise ShapeError(f"{where}[{key!r}]: found {value.dtype}, need {wanted}")
            with np.errstate(over="ignore"):  # what overflows is found infinite below
                value = np.array(value, wanted, order="C")  # a copy: torch wants it writable
            shapes.check_finite(f"{where}[{key!r}]", value)
            inputs[key] = value
        return inputs

    def _encode(self, inputs: Mapping[str, Array]) -> Tensor:
        tensors = {key: torch.from_numpy(x).to(self.device) for key, x in inputs.items()}
        try:
            with torch.no_grad():
                return self.model.encode({key: x[None, None] for key, x in tensors.items()})
        except LatentplanError:
            raise
        except Exception as e:
            name = type(self.model).__name__
            raise PlanningError(f"{name}.encode raised {type(e).__name__}: {e}") from e


def device_of(model: Dynamics) -> torch.device:
    """Return the device of the model's weights."""
    module = cast(nn.Module, model)
    weight = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if weight is None else weight.device


def _equal(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return all(np.array_equal(value, other[key]) for key, value in one.items())
