"""Measured latency of a policy, and the time left before its deadline."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from latentplan.errors import PlanningError

KEPT = 10_000  # latest calls that the quantiles cover


@dataclass(frozen=True)
class Latency:
    """Quantiles of the duration of `act`, encoding included, over the latest calls."""

    count: int  # number of calls
    p50_ms: float
    p90_ms: float
    p99_ms: float


class Stopwatch:
    """The durations of the latest calls, and the time left in the present one."""

    def __init__(self) -> None:
        """Start without a call."""
        self._milliseconds: deque[float] = deque(maxlen=KEPT)
        self._began = 0.0  # of the present call, by perf_counter, s

    def start(self) -> None:
        """Begin a call; one that was not stopped is not counted."""
        self._began = perf_counter()

    def stop(self) -> None:
        """End the call and record its duration."""
        self._milliseconds.append(self._elapsed())

    def remaining(self, where: str, deadline_ms: float | None) -> float | None:
        """Return the time left before a deadline, ms; None without a deadline.

        Raises a PlanningError that begins with `where` if no time is left.
        """
        if deadline_ms is None:
            return None
        took = self._elapsed()
        if took >= deadline_ms:
            raise PlanningError(
                f"{where}: {deadline_ms:g} ms were over before planning began: encoding took "
                f"{took:.1f} ms; set it higher"
            )
        return deadline_ms - took

    @property
    def latency(self) -> Latency:
        """The quantiles; NaN before the first call."""
        if not self._milliseconds:
            return Latency(0, np.nan, np.nan, np.nan)
        p50, p90, p99 = np.percentile(self._milliseconds, (50, 90, 99))
        return Latency(len(self._milliseconds), float(p50), float(p90), float(p99))

    def _elapsed(self) -> float:
        return (perf_counter() - self._began) * 1e3
