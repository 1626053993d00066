"""The velocities of joints whose driver measures positions alone."""

from __future__ import annotations

from collections import deque

from latentplan.types import Array


class MeasuredVelocity:
    """The slope of the positions of joints over a window of time."""

    def __init__(self, window: float) -> None:
        """Take the length of the window, s."""
        self._window = window
        self._past: deque[tuple[float, Array]] = deque()  # stamps and positions in the window

    def take(self, stamp: float, q: Array, *, least: float = 0.0) -> Array | None:
        """Take positions q (n,), rad, at `stamp` s; return the velocities (n,), rad/s.

        None while the positions span less than `least` s. A stamp that goes back starts again.
        """
        if self._past and not stamp > self._past[-1][0]:
            self._past.clear()
        self._past.append((stamp, q))
        while len(self._past) > 2 and stamp - self._past[1][0] >= self._window:
            self._past.popleft()
        first, start = self._past[0]
        if len(self._past) < 2 or stamp - first < least:
            return None
        velocity: Array = (q - start) / (stamp - first)
        return velocity
