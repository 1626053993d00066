"""Joint paths, and their timing within an arm's limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev

from latentplan.errors import MissingDependency, PlanningError, ShapeError, check_range
from latentplan.robots.description import Arm
from latentplan.shapes import check_finite
from latentplan.types import Array

CHECKS = 64  # instants of each piece of a profile at which limits are checked


@dataclass(frozen=True)
class Limits:
    """The limits of the joints, each (J,): rad/s, rad/s^2, rad/s^3."""

    velocity: Array
    acceleration: Array
    jerk: Array

    @staticmethod
    def of(arm: Arm, *, share: float = 1.0) -> Limits:
        """Return an arm's limits, slowed down: velocity to `share` of the maker's limit.

        A motion that takes 1 / share of the time has share^2 of the acceleration and share^3 of
        the jerk, so these limits are scaled alike.
        """
        check_range("Limits.share", share, 1e-3, 1)
        columns = ("velocity", "acceleration", "jerk")
        return Limits(*(arm.column(name) * share ** (i + 1) for i, name in enumerate(columns)))


class Path:
    """A smooth curve q(s), s from 0 to 1, through way points at `nodes(K)`.

    It is a polynomial in Chebyshev form, which for the short, smooth pieces of a straight motion of
    the end effector converges to the exact joint path with a few points, and has all derivatives.
    """

    def __init__(self, points: Array) -> None:
        """Take the joint positions (K, J), rad, at `nodes(K)`; two are a straight line."""
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or len(points) < 2:
            raise ShapeError(f"Path.points: found shape {points.shape}, need (K >= 2, J)")
        check_finite("Path.points", points)
        self.start, self.end = points[0], points[-1]
        x = 2 * nodes(len(points)) - 1  # Chebyshev polynomials are defined on [-1, 1]
        coefficients = chebyshev.chebfit(x, points, len(points) - 1)
        self._derivatives = [coefficients]
        for _ in range(3):
            self._derivatives.append(2 * chebyshev.chebder(self._derivatives[-1]))

    def at(self, s: Array, *, order: int = 0) -> Array:
        """Return the order-th derivative by s (S, J) at s (S,)."""
        return np.asarray(chebyshev.chebval(2 * np.asarray(s) - 1, self._derivatives[order]).T)


def nodes(count: int) -> Array:
    """Return s (count,) of a path's way points: Chebyshev's, ends included."""
    return np.asarray((1 - np.cos(np.pi * np.arange(count) / (count - 1))) / 2)


class Trajectory:
    """A path from rest to rest as fast as limits on velocity, acceleration and jerk allow.

    One jerk-limited profile s(t) (Ruckig, Berscheid and Kroeger 2021, arXiv 2105.04830) times the
    path, so that all joints arrive together and the end effector stays on it. It is time-optimal
    for straight joint paths; on curved ones it is slowed down until q'(s) and the higher
    derivatives keep every joint within its limits.
    """

    def __init__(self, path: Path, limits: Limits, *, speed: float = np.inf) -> None:
        """Time `path`; `speed` bounds ds/dt as well, 1/s. MissingDependency without ruckig."""
        self.path = path
        bounds = (limits.velocity, limits.acceleration, limits.jerk)
        steepest = np.abs(path.at(np.linspace(0, 1, CHECKS), order=1)).max(0)  # (J,)
        if steepest.max() < 1e-9:  # start and end are the same
            self.duration, self._times, self._pieces = 0.0, np.zeros(1), np.zeros((1, 4))
            return
        rates = [float((bound / np.maximum(steepest, 1e-12)).min()) for bound in bounds]
        rates[0] = min(rates[0], speed)
        self._times, self._pieces = _profile(*rates)
        self.duration = float(self._times[-1])
        # At t * r the derivatives shrink by r, r^2, r^3, so the smallest r that fits is exact.
        derivatives = self._checked()
        excess = [
            float((np.abs(derivative) / bound).max() ** (1 / order))
            for order, derivative, bound in zip((1, 2, 3), derivatives, bounds, strict=True)
        ]
        self._stretch(max(1.0, *excess) * 1.001)

    def at(self, t: Array) -> tuple[Array, Array, Array, Array]:
        """Return q, dq, ddq, dddq, each (S, J), at times t (S,) s; at rest before and after."""
        t = np.clip(np.asarray(t, np.float64), 0, self.duration)
        piece = np.clip(np.searchsorted(self._times, t, "right") - 1, 0, len(self._pieces) - 1)
        return self._inside(piece, t - self._times[piece])

    def _inside(self, piece: Array, u: Array) -> tuple[Array, Array, Array, Array]:
        """Return q and its derivatives (S, J) at u (S,) s after the starts of pieces (S,)."""
        s0, v0, a0, jerk = self._pieces[piece].T
        s = np.clip(s0 + u * (v0 + u * (a0 / 2 + u * jerk / 6)), 0, 1)
        v = (v0 + u * (a0 + u * jerk / 2))[:, None]
        a = (a0 + u * jerk)[:, None]
        jerk = jerk[:, None]
        q, first, second, third = (self.path.at(s, order=order) for order in range(4))
        return (
            q,
            first * v,
            first * a + second * v**2,
            first * jerk + 3 * second * v * a + third * v**3,
        )

    def _checked(self) -> tuple[Array, Array, Array]:
        """Return velocity, acceleration, jerk at many instants, with both ends of each piece."""
        durations = np.diff(self._times)
        piece = np.repeat(np.arange(len(durations)), CHECKS)
        u = np.linspace(0, 1, CHECKS)[None] * durations[:, None]
        return self._inside(piece, u.reshape(-1))[1:]

    def _stretch(self, factor: float) -> None:
        """Slow the profile down by `factor`."""
        self._times = self._times * factor
        self._pieces = self._pieces / factor ** np.arange(4)
        self.duration = float(self._times[-1])


def _profile(velocity: float, acceleration: float, jerk: float) -> tuple[Array, Array]:
    """Return the fastest s(t) from 0 to 1: times (P + 1,), and s, ds, dds, ddds (P, 4) there."""
    try:
        import ruckig
    except ImportError as e:
        raise MissingDependency(f'the arm needs {e.name}: pip install "latentplan[arm]"') from None
    task: Any = ruckig.InputParameter(1)
    task.current_position, task.target_position = [0.0], [1.0]
    task.max_velocity, task.max_acceleration, task.max_jerk = [velocity], [acceleration], [jerk]
    found: Any = ruckig.Trajectory(1)
    result = ruckig.Ruckig(1).calculate(task, found)
    if result not in (ruckig.Result.Working, ruckig.Result.Finished):
        raise PlanningError(f"Trajectory: ruckig found no profile ({result})")
    profile = found.profiles[0][0]
    durations = np.asarray(profile.t)
    pieces = np.stack([profile.p[:-1], profile.v[:-1], profile.a[:-1], profile.j], axis=1)
    moving = durations > 0
    return np.concatenate([[0.0], np.cumsum(durations[moving])]), pieces[moving]
