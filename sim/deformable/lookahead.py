"""An expert that simulates candidate actions before it executes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from latentplan.errors import UnstablePhysics
from latentplan.types import Array, Observation

WIDTH = 3  # best single actions that are extended by a second one
BETTER = 0.1  # share of the cost that a single action must save, else pairs are simulated


class Simulator(Protocol):
    """A simulator whose states can be restored."""

    def snapshot(self) -> Any:
        """Return the state."""

    def attempt(self, state: Any, action: Array) -> Observation:
        """Return the keypoints after an action in a state; UnstablePhysics if it diverges."""

    def rewind(self, state: Any) -> None:
        """Restore a state."""


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
    """Return the proposed action of the least cost, or the first of the best pair of actions.

    Pairs, which extend the WIDTH best single actions, are simulated only if no single one reduces
    the cost by the share BETTER. `seen` are the current keypoints; the simulator is left in this
    state. Raises UnstablePhysics if every action diverges.
    """

    def outcomes(state: Any, seen: Observation) -> list[Candidate]:
        candidates = []
        for action in propose(seen):
            try:
                after = simulator.attempt(state, action)
            except UnstablePhysics:
                continue
            candidates.append(Candidate(cost(after), action, simulator.snapshot(), after))
        return sorted(candidates, key=lambda t: t.cost)

    start, now = simulator.snapshot(), cost(seen)
    try:
        singles = outcomes(start, seen)
        if not singles:
            raise UnstablePhysics("oracle: the simulation diverges for every action; reset")
        chosen, least = singles[0], singles[0].cost
        if least > now - BETTER * now:
            for single in singles[:WIDTH]:
                for second in outcomes(single.state, single.seen)[:1]:
                    if second.cost < least:
                        chosen, least = single, second.cost
    finally:
        simulator.rewind(start)
    return np.asarray(chosen.action, np.float32)
