"""Everything that an exact resume needs, in one file: so a kill never leaves half of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from latentplan.errors import CheckpointError
from latentplan.training import checkpoint

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
        tensors, header = checkpoint.read(run / FILE, format=FORMAT)
        device = next(self.model.parameters()).device
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}, "sum": {}}
        for name, value in tensors.items():
            part, _, key = name.partition("/")
            parts.setdefault(part, {})[key] = value.to(device)
        weights = dict(self.model.named_parameters())
        try:
            self.model.load_state_dict(parts["model"])
            if self.ema is not None:
                self.ema.load_state_dict(parts["ema"])
            for name, value in parts["optimizer"].items():
                weight, _, key = name.rpartition("/")
                self.optimizer.state[weights[weight]][key] = _laid_out(value, weights[weight])
            self.step, self._count = int(header["step"]), int(header["count"])
            self.best, self.figures = float(header["best"]), dict(header["figures"])
        except (RuntimeError, KeyError, TypeError, ValueError) as e:
            found = (str(e).splitlines() or [""])[0]
            raise CheckpointError(
                f"{run / FILE}: does not fit the model ({type(e).__name__}: {found}); put the "
                "run's own back, or train into another folder"
            ) from e
        self._sums = parts["sum"]


def steps_done(run: Path) -> int:
    """Return the step that a resume continues from; 0 if nothing is saved."""
    return int(_header(run)["step"]) if (run / FILE).exists() else 0


def has_best(run: Path) -> bool:
    """Return whether a run with a state has kept best weights so far."""
    return math.isfinite(_header(run)["best"])


def _header(run: Path) -> dict[str, Any]:
    """Return the header of a state; CheckpointError unless it is one."""
    header = checkpoint.read_header(run / FILE, format=FORMAT)
    if not isinstance(header, dict) or not {"step", "best", "figures", "count"} <= header.keys():
        raise CheckpointError(f"{run / FILE}: is no state of a training; put the run's own back")
    for key in ("step", "count", "best"):
        if isinstance(header[key], bool) or not isinstance(header[key], int | float):
            raise CheckpointError(f"{run / FILE}: {key} is {header[key]!r}, need a number")
    return header


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
