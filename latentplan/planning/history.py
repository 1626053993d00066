"""What was seen of late, as the latents of a model: the context that it plans from."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import chain
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from latentplan import shapes
from latentplan.errors import LatentplanError, PlanningError, ShapeError
from latentplan.protocols import Dynamics
from latentplan.types import Observation


class Memory:
    """The last T latents of a model, of observations that are checked before it gets them."""

    def __init__(self, model: Dynamics) -> None:
        """Remember nothing yet."""
        self.model, self.device = model, _device(model)
        self._latents: deque[Tensor] = deque(maxlen=model.context)  # each (1, 1, D)

    def see(self, where: str, observation: Observation) -> None:
        """Remember an observation; raises as `encode`."""
        self._latents.append(self.encode(where, observation))

    def clear(self) -> None:
        """Forget everything."""
        self._latents.clear()

    def context(self, latest: Tensor | None = None) -> Tensor:
        """Return (1, T, D), as if `latest` (1, 1, D) had been seen as well.

        Before T observations were seen, the first stands for those before.
        """
        latents = deque(self._latents, self.model.context)
        if latest is not None:
            latents.append(latest)
        missing = self.model.context - len(latents)
        return torch.cat([*[latents[0]] * missing, *latents], dim=1)

    def encode(self, where: str, observation: Observation) -> Tensor:
        """Return the latent (1, 1, D) of an observation.

        Raises ShapeError that begins with `where` unless it has the model's keys, PlanningError
        where the model raises.
        """
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
            inputs[key] = torch.from_numpy(value).to(self.device)
        try:
            with torch.no_grad():
                return self.model.encode({key: x[None, None] for key, x in inputs.items()})
        except LatentplanError:
            raise
        except Exception as e:
            name = type(self.model).__name__
            raise PlanningError(f"{name}.encode raised {type(e).__name__}: {e}") from e


def _device(model: Dynamics) -> torch.device:
    """Return where the model's weights are."""
    module = cast(nn.Module, model)
    weight = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if weight is None else weight.device
