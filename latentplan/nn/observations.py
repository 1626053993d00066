"""Observations as a model reads them: checked, copied to its device, encoded one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from latentplan.errors import LatentplanError, PlanningError, ShapeError
from latentplan.protocols import Dynamics, FrameStacking, PrivilegedModel
from latentplan.shapes import check_finite
from latentplan.types import Array, Observation


def privileged_of(model: Dynamics) -> tuple[str, ...]:
    """Return the privileged observations that a model declares to read."""
    return model.privileged if isinstance(model, PrivilegedModel) else ()


def checked(where: str, model: Dynamics, observation: Observation) -> dict[str, Array]:
    """Return copies of the arrays that a model reads, of the dtypes of its spec.

    Raises ShapeError that begins with `where` unless the observation has them, finite.
    """
    if not isinstance(observation, Mapping):
        found = type(observation).__name__
        raise ShapeError(f"{where}: found {found}, need a mapping from names to arrays")
    inputs = {}
    hidden = {*model.spec.privileged} - {*privileged_of(model)}
    for key, array in model.spec.observation.items():
        if key in hidden:
            continue
        if key not in observation:
            given = ", ".join(sorted(observation)) or "nothing"
            raise ShapeError(f"{where}: the observation has no {key!r}, only {given}")
        value, wanted = np.asarray(observation[key]), np.dtype(array.dtype)
        if value.shape != array.shape:
            raise ShapeError(f"{where}[{key!r}]: found shape {value.shape}, need {array.shape}")
        if value.dtype != wanted and (value.dtype.kind, wanted.kind) != ("f", "f"):
            raise ShapeError(f"{where}[{key!r}]: found {value.dtype}, need {wanted}")
        with np.errstate(over="ignore"):  # an overflow is found infinite below
            value = np.array(value, wanted, order="C")  # a copy: torch needs it writable
        check_finite(f"{where}[{key!r}]", value)
        inputs[key] = value
    return inputs


def frames_of(model: object) -> int:
    """Return how many observations in a row a latent of a model is of."""
    return model.frames if isinstance(model, FrameStacking) else 1


def encode(model: Dynamics, *inputs: Mapping[str, Array]) -> Tensor:
    """Return the latent (1, 1, D) of the last of `checked` arrays in a row.

    Raises PlanningError if the model raises.
    """
    device = device_of(model)
    try:
        with torch.no_grad():
            rows = {key: np.stack([each[key] for each in inputs]) for key in inputs[-1]}
            tensors = {key: torch.from_numpy(x).to(device)[None] for key, x in rows.items()}
            return model.encode(tensors)[:, -1:]
    except LatentplanError:
        raise
    except Exception as e:
        name = type(model).__name__
        raise PlanningError(f"{name}.encode raised {type(e).__name__}: {e}") from e


def device_of(model: Dynamics) -> torch.device:
    """Return the device of the model's weights."""
    module = cast(nn.Module, model)
    weight = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if weight is None else weight.device
