"""An expert that simulates candidate actions before it executes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from latentplan.errors import UnstablePhysics
from latentplan.types import Array, Observation

WIDTH = 3  # actions after which a second one is tried
BETTER = 0.1  # share of the cost that an action saves, with which the expert is content


class Simulator(Protocol):
    """A simulator whose states can be restored."""

    def snapshot(self) -> Any:
        """Return the state."""

    def attempt(self, state: Any, action: Array) -> Observation:
        """Return the keypoints after an action in a state; raises UnstablePhysics."""

    def rewind(self, state: Any) -> None:
        """Go back to a state."""


class Candidate(NamedTuple):
    """A candidate action and its outcome."""

    cost: float
    action: Array
    state: Any
    seen: Observation


def best(
    simulator: Simulator,
    seen: Observation,
    *,
    propose: Callable[[Observation], Iterable[Array]],
    cost: Callable[[Observation], float],
) -> Array:
    """Return the proposed action with the least cost, or the first of two that cost least.

    Two in a row, the second after the WIDTH best, are tried only if no single one reduces the cost
    by the share BETTER. `seen` are the keypoints now; the simulator is left in this state.
    Raises UnstablePhysics if every action diverges.
    """

    def tried(state: Any, seen: Observation) -> list[Candidate]:
        leads = []
        for action in propose(seen):
            try:
                after = simulator.attempt(state, action)
            except UnstablePhysics:
                continue
            leads.append(Candidate(cost(after), action, simulator.snapshot(), after))
        return sorted(leads, key=lambda t: t.cost)

    start, now = simulator.snapshot(), cost(seen)
    try:
        singles = tried(start, seen)
        if not singles:
            raise UnstablePhysics("oracle: the simulation diverges whatever is done; reset")
        chosen, least = singles[0], singles[0].cost
        if least > now - BETTER * now:
            for single in singles[:WIDTH]:
                for second in tried(single.state, single.seen)[:1]:
                    if second.cost < least:
                        chosen, least = single, second.cost
    finally:
        simulator.rewind(start)
    return np.asarray(chosen.action, np.float32)
