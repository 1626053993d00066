"""Real-time scheduling of a control loop, if the system allows it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

PRIORITY = 10  # of 1 to 99; the kernel's own threads are at 50


@contextlib.contextmanager
def real_time() -> Iterator[bool]:
    """Give this thread real-time priority; yield whether the system allows it.

    It is scheduled by SCHED_FIFO, which Linux gives to root and to users with an `rtprio` limit;
    for others nothing changes. Processes and threads that it starts are scheduled as usual.
    """
    try:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(PRIORITY))
    except (AttributeError, OSError):  # another system, or not allowed
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, *before)


def next_tick(due: float, *, now: float, dt: float) -> float:
    """Return when the tick after the one that was due at `due` s begins.

    A late one is not caught up with: two setpoints at once would be a jerk. Nor does a clock that
    was set back delay the next tick.
    """
    after = due + dt
    return after if now <= after <= now + 2 * dt else now + dt
