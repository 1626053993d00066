"""The global random generators that RLBench draws from, saved and restored."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np


class Randomness(NamedTuple):
    """The states of numpy's global generator and of Python's."""

    numpy: Any
    python: Any


def seeded(seed: int) -> Randomness:
    """Return the states that follow from a seed."""
    return Randomness(np.random.RandomState(seed).get_state(), random.Random(seed).getstate())


def current() -> Randomness:
    """Return the present states of the global generators."""
    return Randomness(np.random.get_state(), random.getstate())


def install(states: Randomness) -> None:
    """Set the global generators to these states."""
    np.random.set_state(states.numpy)
    random.setstate(states.python)
