"""Episodes, and the batches that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from latentplan.errors import ShapeError
from latentplan.types.arrays import Array, Observation, Tensors

if TYPE_CHECKING:
    from torch import Tensor


class Step(NamedTuple):
    """The result of `Env.step`: the five values of gymnasium, named."""

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


@dataclass(frozen=True)
class Label:
    """A language annotation of a part of an episode; parts may overlap."""

    text: str  # an instruction such as "open the drawer"
    task: str = ""  # the name of the task, such as "open_drawer"
    start: int = 0  # first observation of the part
    stop: int = -1  # its last observation, included; -1: the episode's last


@dataclass(frozen=True)
class Episode:
    """One real episode of L actions and L + 1 observations."""

    observations: Mapping[str, Array]  # each (L + 1, ...)
    actions: Array  # (L, A) float32; actions[t] leads from observation t to t + 1
    rewards: Array  # (L,) float32
    terminated: bool = False
    truncated: bool = False
    seed: int = -1  # seed of the reset; -1 unknown
    info: Mapping[str, float] = field(default_factory=dict)  # numbers by name, such as randomised
    labels: tuple[Label, ...] = ()

    def __post_init__(self) -> None:
        """Raise ShapeError if the lengths do not match."""
        steps = len(self.actions)
        if self.actions.ndim != 2 or steps < 1:
            raise ShapeError(f"Episode.actions: got shape {self.actions.shape}, need (L >= 1, A)")
        if len(self.rewards) != steps:
            raise ShapeError(f"Episode.rewards: got {len(self.rewards)} for {steps} actions")
        for key, value in self.observations.items():
            if len(value) != steps + 1:
                raise ShapeError(
                    f"Episode.observations[{key!r}]: got {len(value)} rows for {steps} actions, "
                    f"need {steps + 1}"
                )

    def __len__(self) -> int:
        """Return the number of actions, L."""
        return len(self.actions)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (population) of each number of an array over the data."""

    mean: Array  # float64, of the shape of a row
    std: Array  # float64; exactly 0 for a constant


@dataclass(frozen=True)
class Batch:
    """Training windows: T observations with the T - 1 actions between them."""

    observations: Tensors  # each (B, T, ...); images stay uint8 (B, T, h, w, 3)
    actions: Tensor  # (B, T - 1, A) float32
    # The fields below are filled only for a learner that reads them.
    rewards: Tensor | None = None  # (B, T - 1) float32
    task: Tensor | None = None  # (B, T) int64 task ids: index in Spec.tasks plus 1, 0 for none
    segments: Tensor | None = None  # (B, T) int64, equal within an episode; -1 is padding
    targets: Tensors = field(default_factory=dict)  # privileged, (B, T, ...): Learner.targets


@dataclass(frozen=True)
class Tokens:
    """Observations as discrete tokens."""

    ids: Tensor  # (B, T / stride, K) int64
    mask: Tensor | None = None  # (B, T / stride, K) bool, True for tokens in use; None for all
