"""The progress of long calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class Progress:
    """The progress of a long call; `on_progress` receives one after every unit of work."""

    task: str  # name such as "collect rope" or "train tokenizer"; a new name is a new task
    unit: str  # unit such as "episodes", "steps" or "trials"
    done: int  # number of units done, including those of an earlier, resumed call
    total: int  # number of units
    figures: Mapping[str, float | str] = field(default_factory=dict)  # by name, such as the loss


OnProgress: TypeAlias = Callable[[Progress], None]
