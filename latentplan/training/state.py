"""Everything that an exact resume needs, in one file: so a kill never leaves half of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from latentplan import schema
from latentplan.errors import CheckpointError
from latentplan.schema import AnyFloat
from latentplan.training import checkpoint, weights

FORMAT = "latentplan-training-1"
FILE = "state.safetensors"  # in the run folder


class State:
    """What changes while a run trains.

    No random state is kept: each step seeds itself from (seed, step).
    """

    def __init__(
        self, model: Any, *, optimizer: torch.optim.Optimizer, ema: AveragedModel | None
    ) -> None:
        """Start at step 0."""
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.step = 0  # done
        self.best = math.inf  # lowest held-out loss so far
        self.figures: dict[str, float] = {}  # held out, newest
        self._sums: dict[str, Tensor] = {}  # of the loss's parts since the last point of the curve
        self._count = 0

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Add the parts of one step's loss, without waiting for the GPU."""
        for key, value in parts.items():
            value = value.detach().double()
            self._sums[key] = self._sums[key] + value if self._count else value
        self._count += 1

    def finite(self) -> bool:
        """Return whether every part was finite since the last `mean`."""
        return all(math.isfinite(float(value)) for value in self._sums.values())

    def mean(self) -> dict[str, float]:
        """Return the mean of each part since the last call."""
        means = {key: float(self._sums[key]) / self._count for key in sorted(self._sums)}
        self._sums, self._count = {}, 0
        return means

    def save(self, run: Path) -> None:
        """Write state.safetensors, whole or not at all; CheckpointError if that fails."""
        tensors = _prefixed("model", self.model)
        if self.ema is not None:
            tensors |= _prefixed("ema", self.ema)
        for name, weight in self.model.named_parameters():
            for key, value in self.optimizer.state.get(weight, {}).items():
                tensors[f"optimizer/{name}/{key}"] = value
        tensors |= {f"sum/{key}": value for key, value in self._sums.items()}
        header = {
            "step": self.step,
            "best": self.best,
            "figures": self.figures,
            "count": self._count,
        }
        checkpoint.write(run / FILE, tensors, format=FORMAT, header=header)

    def restore(self, run: Path) -> None:
        """Load what `save` wrote; CheckpointError if it does not fit the model."""
        tensors, values = checkpoint.read(run / FILE, format=FORMAT)
        header = _header(values, run / FILE)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}, "sum": {}}
        for name, value in tensors.items():
            part, _, key = name.partition("/")
            if part not in parts:
                raise CheckpointError(f"{run / FILE}: found a tensor {name!r}, need model/...")
            parts[part][key] = value
        weights.fill(self.model, parts["model"], run / FILE)
        if self.ema is not None:
            weights.fill(self.ema, parts["ema"], run / FILE)
        elif parts["ema"]:
            raise CheckpointError(f"{run / FILE}: holds averaged weights, this training has none")
        self._restore_moments(parts["optimizer"], run / FILE)
        device = next(self.model.parameters()).device
        self._sums = {key: value.to(device) for key, value in parts["sum"].items()}
        self._count = header.count
        self.step, self.best, self.figures = header.step, header.best, dict(header.figures)

    def _restore_moments(self, found: Mapping[str, Tensor], file: Path) -> None:
        parameters = dict(self.model.named_parameters())
        for name, value in found.items():
            of, _, key = name.rpartition("/")
            weight = parameters.get(of)
            if weight is None or value.shape not in (weight.shape, ()) or value.isnan().any():
                raise CheckpointError(
                    f"{file}: optimizer/{name}: found {tuple(value.shape)} {value.dtype}, need "
                    f"{'no such tensor' if weight is None else f'{tuple(weight.shape)} or ()'} "
                    "without NaN; give another run folder"
                )
            # The step count, too: a fused optimizer reads it on the device.
            self.optimizer.state[weight][key] = _laid_out(value.to(weight.device), weight)


@dataclass(frozen=True)
class _Header:
    """What the file holds beside its tensors."""

    step: int
    best: AnyFloat  # infinite before the first held-out figures
    figures: dict[str, AnyFloat]
    count: int


def _header(values: Any, file: Path) -> _Header:
    found = schema.from_values(_Header, values, where=f"{file}: header", error=CheckpointError)
    if min(found.step, found.count) < 0:
        raise CheckpointError(f"{file}: header: found step {found.step} and count {found.count}")
    return found


def steps_done(run: Path) -> int:
    """Return the step that a resume continues from; 0 if nothing is saved."""
    if not (run / FILE).exists():
        return 0
    return _read_header(run).step


def has_best(run: Path) -> bool:
    """Return whether a run with a state has kept best weights so far."""
    return math.isfinite(_read_header(run).best)


def _read_header(run: Path) -> _Header:
    return _header(checkpoint.read_values(run / FILE, format=FORMAT), run / FILE)


def _laid_out(value: Tensor, weight: Tensor) -> Tensor:
    """Return a saved moment in the memory layout of its weight.

    Files hold contiguous tensors; a convolution's weight may be channels-last, and a fused
    optimizer reads weight and moments in the order of memory.
    """
    if value.shape != weight.shape:
        return value  # the step count
    return torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)


def _prefixed(part: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{part}/{key}": value for key, value in module.state_dict().items()}
