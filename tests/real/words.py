"""How the sensors of a simulated arm fail, as a harness tells it on stdin, a word a line."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentplan.real_robot.stand_in import JointStates

FAULTS: dict[str, Callable[[JointStates], JointStates]] = {
    "reordered": lambda s: s._replace(names=s.names[::-1], q=s.q[::-1], dq=s.dq[::-1]),
    "missing": lambda s: s._replace(names=s.names[1:], q=s.q[1:], dq=s.dq[1:]),
    "renamed": lambda s: s._replace(names=("elbow", *s.names[1:])),
    "nan": lambda s: s._replace(q=(float("nan"), *s.q[1:])),
    "jumping": lambda s: s._replace(stamp=s.stamp + 5),
    "turning": lambda s: s._replace(dq=tuple(0.1 for _ in s.dq)),  # says that it moves
}


class Faults:
    """Alters joint states by the last word that came on stdin; `fine` leaves them as they are."""

    def __init__(self) -> None:
        self.word = "fine"
        self._frozen: float | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def __call__(self, states: JointStates) -> JointStates | None:
        if self.word == "silent":
            return None
        if self.word != "frozen":
            self._frozen = None
        elif self._frozen is None:
            self._frozen = states.stamp
        if self._frozen is not None:
            return states._replace(stamp=self._frozen)
        return FAULTS.get(self.word, lambda s: s)(states)

    def _listen(self) -> None:
        for line in sys.stdin:
            self.word = line.strip()
