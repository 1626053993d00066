"""What a planner starts from and aims at, and the plan that it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentplan.types.arrays import Array, Observation

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Context:
    """The past that a model plans from."""

    latents: Tensor  # (B, T, D)
    actions: Tensor  # (B, T - 1, A) between the latents
    task: Tensor | None = None  # (B,) int64 task ids, 0 for none
    memory: Tensor | None = None  # (B, M, ...) retrieved items


@dataclass(frozen=True)
class Goal:
    """A goal, as an observation, a text, a mask or keypoints; an objective defines what it uses."""

    observation: Observation | None = None  # with the model's keys
    text: str = ""  # an instruction, or the name of a task
    mask: Array | None = None  # (h, w) bool, target region of the object in the image
    keypoints: Array | None = None  # (K, 2 or 3), target positions of keypoints

    @classmethod
    def of(cls, given: Observation | Goal | None, **parts: Any) -> Goal:
        """Return a goal as it is; the Goal of an observation and other parts otherwise."""
        return given if isinstance(given, Goal) else cls(observation=given, **parts)


@dataclass(frozen=True)
class Plan:
    """The result of a planner."""

    actions: Tensor  # (B, H, A), allowed by the space
    cost: Tensor  # (B,) predicted cost of the actions; lower is better
    violation: Tensor | None = None  # (B,), 0 if the constraints hold; None without any
    elites: Tensor | None = None  # (B, K, H, A) best candidates, for the next warm start
    iterations: int = 1  # number of rounds done
    complete: bool = True  # False if the deadline came before the last round
    milliseconds: float = float("nan")  # duration of the solve
