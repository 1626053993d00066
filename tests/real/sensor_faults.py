"""Faults of a simulated arm's sensors, by the name that a harness writes to stdin, a line each."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentplan.real_robot.backends.simulated_controller import JointStates

ALTERED: dict[str, Callable[[JointStates], JointStates]] = {
    "reordered": lambda s: s._replace(names=s.names[::-1], q=s.q[::-1], dq=s.dq[::-1]),
    "missing": lambda s: s._replace(names=s.names[1:], q=s.q[1:], dq=s.dq[1:]),
    "renamed": lambda s: s._replace(names=("elbow", *s.names[1:])),
    "nan": lambda s: s._replace(q=(float("nan"), *s.q[1:])),
    "nan velocity": lambda s: s._replace(dq=tuple(float("nan") for _ in s.dq)),
    "jumping": lambda s: s._replace(stamp=s.stamp + 5),
    "jumping back": lambda s: s._replace(stamp=s.stamp - 5),
    "nan stamp": lambda s: s._replace(stamp=float("nan")),
    "turning": lambda s: s._replace(dq=tuple(0.1 for _ in s.dq)),  # says that it moves
}


class SensorFaults:
    """Alters joint states by the last fault that came on stdin; `fine` leaves them as they are.

    The time at which a fault takes effect is printed, since an arm may send some more until then.
    """

    def __init__(self) -> None:
        self.fault = self._printed = "fine"
        self._sound = 0.0  # s, the newest stamp that went out
        threading.Thread(target=self._listen, daemon=True).start()

    def __call__(self, states: JointStates) -> JointStates | None:
        fault = self.fault
        if fault != self._printed:
            self._printed = fault
            event = {"event": "sensors", "fault": fault, "t": time.monotonic()}
            sys.stdout.write(json.dumps(event) + "\n")  # at once: several threads write
            sys.stdout.flush()
        return self._alter(states, fault)

    def _alter(self, states: JointStates, fault: str) -> JointStates | None:
        if fault == "silent":
            return None
        if fault == "frozen":
            return states._replace(stamp=self._sound)
        self._sound = states.stamp
        return ALTERED.get(fault, lambda s: s)(states)

    def _listen(self) -> None:
        for line in sys.stdin:
            self.fault = line.strip()
