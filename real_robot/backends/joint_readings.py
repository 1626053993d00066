"""The joint readings of an arm, from the messages of one or more drivers.

Many drivers send no velocities, or NaN in their place; some arms have two drivers that publish half
of the joints each. Joints of anything else, such as wheels or another arm, are left out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np

from latentplan.real_robot.backends.measured_velocity import MeasuredVelocity
from latentplan.real_robot.robot import Reading, in_order, missing
from latentplan.types import Array

PATIENCE = 1.0  # s in which messages without some of the joints are no error
WINDOW = 0.1  # s over which a velocity is measured that no message has
NAMED = 50  # other joints that an error names
_log = logging.getLogger(__name__)


class JointReadings:
    """The newest reading of all joints, joined from the messages of one or more drivers.

    A message that lacks a joint of the earlier messages of its driver is an error. The reading is
    as old as its oldest part, so a driver that falls silent is noticed beside one that goes on.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Take the names of the joints (J,) in messages, in the arm's order."""
        self._names = tuple(names)
        self._parts: dict[frozenset[str], _Part] = {}
        self._others: dict[str, None] = {}  # names of other joints so far, the oldest first
        self._begin: float | None = None  # s, monotonic: time of the first message
        self._warned = False  # that velocities are missing

    def take(
        self,
        names: Sequence[str],
        positions: Sequence[float],
        velocities: Sequence[float],
        *,
        stamp: float,
        received: float,
    ) -> None:
        """Take a message; RobotError if a joint is missing, named twice, or without a value."""
        self._begin = received if self._begin is None else self._begin
        if len(self._others) < NAMED:
            self._others |= dict.fromkeys(name for name in names if name not in self._names)
        own = [name for name in self._names if name in names]
        if not own:
            return
        q = in_order(own, names, positions)
        dq = in_order(own, names, velocities) if len(velocities) else np.full(len(own), np.nan)
        self._part(own, names).take(q, dq, stamp=stamp, received=received)
        unknown = [name for name, v in zip(own, dq, strict=True) if np.isnan(v)]
        if unknown and not self._warned:
            self._warned = True
            _log.warning(
                "joint_states.velocity: none of %s; velocities are measured from positions, over "
                "%s s",
                ", ".join(unknown),
                WINDOW,
            )

    def reading(self, gripper: float) -> Reading | None:
        """Return the newest reading, with the width of the gripper, m; None before the first.

        Raises RobotError if a joint has not come for `PATIENCE` s since the first message.
        """
        known = set[str]().union(*self._parts)
        absent = [name for name in self._names if name not in known]
        if absent:
            if self._begin is not None and time.monotonic() - self._begin > PATIENCE:
                raise missing(absent, [*self._others, *sorted(known)])
            return None
        parts = list(self._parts.values())
        if any(np.isnan(part.dq).any() for part in parts):
            return None  # a velocity has yet to be measured
        place = {name: i for i, name in enumerate(self._names)}
        order = [place[name] for part in parts for name in part.names]
        q, dq = np.empty(len(order)), np.empty(len(order))
        q[order] = np.concatenate([part.q for part in parts])
        dq[order] = np.concatenate([part.dq for part in parts])
        stamp = float(np.mean([part.stamp for part in parts]))  # so that a jump of any clock shows
        return Reading(stamp, min(part.received for part in parts), q, dq, gripper)

    def _part(self, own: list[str], names: Sequence[str]) -> _Part:
        """Return the part of the joints `own`; RobotError if a joint of their driver is missing."""
        group = frozenset(own)
        for known in list(self._parts):
            if group > known:
                del self._parts[known]  # the first messages of a driver may lack some
            elif group != known and group & known:
                raise missing([name for name in self._names if name in known - group], names)
        return self._parts.setdefault(group, _Part(own))


class _Part:
    """The joints of one driver."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.stamp = self.received = -np.inf
        self.q = self.dq = np.full(len(names), np.nan)
        self._velocity = MeasuredVelocity(WINDOW)

    def take(self, q: Array, dq: Array, *, stamp: float, received: float) -> None:
        """Take positions and velocities (n,), NaN for an unknown velocity."""
        if stamp == self.stamp:
            return  # frozen, which counts as silent
        measured = self._velocity.take(stamp, q, least=WINDOW / 2)
        dq = np.where(np.isnan(dq), self.dq if measured is None else measured, dq)
        self.stamp, self.received, self.q, self.dq = stamp, received, q, dq
