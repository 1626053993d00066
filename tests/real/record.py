"""What a harness recorded of an arm, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

DT = 0.02  # s, a tick


@dataclass(frozen=True)
class Row:
    """What a fault came to."""

    backend: str
    fault: str
    reaction_ms: float | None  # from the fault until the first command that slows down
    rest_ms: float | None  # from the fault until the arm rests
    held: bool  # it stayed at rest when the fault was over and the planner went on
    reason: str  # as the node says it
    velocity: float  # share of the limit, at most, of all commands recorded since it was armed
    acceleration: float  # share
    non_finite: int  # commands


@dataclass(frozen=True)
class Commands:
    """Commands as they came: rows (N, 1 + J) of time, s, and positions, rad."""

    rows: Any

    @property
    def speeds(self) -> Any:
        """Return (N - 1, J) rad/s from each to the next, a tick apart."""
        return np.diff(self.rows[:, 1:], axis=0) / DT


@dataclass(frozen=True)
class Joints:
    """Joint states as they came."""

    rows: Any  # (N, 1 + J) time, s, and positions, rad
    dq: Any  # (N, J) rad/s
