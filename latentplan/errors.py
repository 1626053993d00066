"""The errors that latentplan raises for a user's mistake: each is one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

LONGEST = 2000  # characters of a message


class LatentplanError(Exception):
    """Base class; the command line prints its text as one line and exits with 2."""

    def __str__(self) -> str:
        """Return one line that a terminal prints as it is, also if it quotes a file of others."""
        text = super().__str__()
        if not text.isprintable():
            text = "".join(c if c.isprintable() else _escaped(c) for c in text)
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-300:]}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class ConfigError(LatentplanError, ValueError):
    """A preset, an override or a field does not fit its schema."""


class ContractError(LatentplanError, TypeError):
    """A class or an object lacks what its kind must offer (see `protocols`)."""


class ShapeError(LatentplanError, ValueError):
    """An array at a seam has the wrong shape, dtype or a non-finite value."""


class UnknownName(LatentplanError, LookupError):
    """A name that no registry holds."""


class MissingDependency(LatentplanError, ImportError):
    """A package, a library or a device that a feature needs is not there."""


class StoreError(LatentplanError):
    """An episode store is missing, empty, corrupt, of another schema or of another spec."""


class SourceError(LatentplanError):
    """A data set in another format is missing, damaged, or of another format than declared."""


class BudgetError(LatentplanError):
    """A file of others needs more memory, values or time than the budget allows."""


class CheckpointError(LatentplanError):
    """A run or checkpoint is missing, corrupt, or does not fit what it is used with."""


class TrainingError(LatentplanError):
    """Training diverged; the last good checkpoint is kept."""


class PlanningError(LatentplanError):
    """A model, objective or planner gave no finite plan; nothing was sent."""


class RobotError(LatentplanError):
    """An arm, its sensors or its planner failed or refused a command; the arm stops first."""


class UnstablePhysics(LatentplanError):
    """The simulator diverged; the episode must be dropped."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a long call that keeps what it has done; `result` is what the call returns."""

    def __init__(self, result: Any) -> None:
        """Take what has been done so far."""
        super().__init__()
        self.result = result


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, the name of its class if it has none."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """Return the error for a name that is not among `known`, with the nearest one."""
    names = sorted(known)
    near = get_close_matches(name, names, 1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return UnknownName(f"no {kind} named {name!r};{hint} known: {', '.join(names)}")


_records: list[dict[str, tuple[float | None, float | None]]] = []


@contextmanager
def ranges() -> Iterator[dict[str, tuple[float | None, float | None]]]:
    """Give the bounds that `check_range` compares with inside the block, by the field's name."""
    record: dict[str, tuple[float | None, float | None]] = {}
    _records.append(record)
    try:
        yield record
    finally:
        _records.remove(record)


def check_range(
    where: str, value: float, low: float | None = None, high: float | None = None
) -> None:
    """Raise ConfigError unless `low <= value <= high` (a NaN never passes).

    `where` names the field (`CEM.elites`); a bound of None is open.
    """
    for record in _records:
        record[where.rpartition(".")[2]] = (low, high)
    if (low is None or value >= low) and (high is None or value <= high) and value == value:
        return
    if low is not None and high is not None:
        raise ConfigError(f"{where}: {value} is not within [{low}, {high}]")
    bound = f"at least {low}" if low is not None else f"at most {high}"
    raise ConfigError(f"{where}: {value} must be {bound}")
