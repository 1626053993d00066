"""The test that the end effector stays in its box: first a cheap bound, then the exact path."""

from __future__ import annotations

import numpy as np

from latentplan.robots.chain import Chain
from latentplan.types import Array

STEP = 1e-6  # rad, of the derivative


class Workspace:
    """A box for the end effector of an arm.

    The last linearisation bounds the effect of a short joint motion d. A radian of joint j moves
    the end effector by at most its `reach`, which is enough for faces that are far away. For near
    faces, forward kinematics x(q) is almost linear: with the Jacobian J, |x(q + d) - x(q) - J d|
    is at most 1/2 sum |d| sum(reach |d|), since the derivative of a column of J by any joint before
    it is no longer than the column's own reach.
    """

    def __init__(self, chain: Chain, low: Array, high: Array) -> None:
        """Take the arm, and the corners (3,) of its box, m."""
        self._chain = chain
        self._centre, self._size = (low + high) / 2, (high - low) / 2
        joints = len(chain.reach)
        self._turned = STEP * np.concatenate([np.zeros((1, joints)), np.eye(joints)])
        self._reach: list[float] = chain.reach.tolist()
        self._at: list[float] = [0.0] * joints  # rad, at the last linearisation
        # From there, m to each face, and m towards it per radian of each joint.
        self._faces: list[tuple[float, list[float]]] = [(-1.0, self._at)]

    def surely_holds(self, least: list[float], most: list[float]) -> bool:
        """Return whether it surely contains all positions between joints `least` and `most` (J,).

        If False, `holds` decides. The arguments are lists, because arrays are slower for so few.
        """
        ways: list[tuple[float, float]] = []
        turned = moved = 0.0  # rad and m at most
        for low, high, at, reach in zip(least, most, self._at, self._reach, strict=True):
            back, forth = low - at, high - at
            way = max(forth, -back)
            ways.append((back, forth))
            turned += way
            moved += way * reach
        bent = (turned / 2 + STEP) * moved
        for left, towards in self._faces:
            if moved <= left:
                continue
            nearer = bent
            for (back, forth), each in zip(ways, towards, strict=True):
                nearer += each * (forth if each > 0 else back)
            if not nearer <= left:
                return False
        return True

    def holds(self, path: Array) -> bool:
        """Return whether it contains all positions (M, J); linearise at the first."""
        turned = path[0] + self._turned
        ee = self._chain.ee(np.concatenate([turned, path[1:]]))
        count = len(turned)
        jacobian = (ee[1:count] - ee[0]) / STEP  # J 3
        off = ee[0] - self._centre
        left = [*(self._size - off).tolist(), *(self._size + off).tolist()]
        self._at = path[0].tolist()
        self._faces = list(zip(left, [*jacobian.T.tolist(), *(-jacobian.T).tolist()], strict=True))
        rest = np.abs(ee[count:] - self._centre)
        return min(left) >= 0 and bool((rest <= self._size).all())
