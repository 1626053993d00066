"""The budget of reading: how much a file of others may make this process allocate and do.

A file's own claims (a shape, a count, a compressed size) cost its author nothing. A reader
opens an account with `reading`, and `claim`s what it is about to allocate or visit; the claim that
exceeds the budget is a BudgetError, before anything is allocated.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields

from latentplan.errors import BudgetError, ConfigError

VARIABLE = "LATENTPLAN_BUDGET"  # of the environment: bytes=8e9,items=1e7,seconds=600
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Budget:
    """What the reading of one file or one episode may cost."""

    bytes: float = 2 << 30  # decoded: arrays, images, texts
    items: float = 1_000_000  # values, rows, members, elements
    seconds: float = 120.0  # of the processor

    def __post_init__(self) -> None:
        """Raise ConfigError unless every limit is positive."""
        for each in fields(self):
            value = getattr(self, each.name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"Budget.{each.name}: found {value}, need a positive number")

    @staticmethod
    def parse(text: str, *, where: str = VARIABLE) -> Budget:
        """Return the budget of a text such as `bytes=8e9,items=1e7`; the rest is default.

        Raises ConfigError, which begins with `where`, for another name or no positive number.
        """
        values: dict[str, float] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            try:
                values[name.strip()] = float(value)
            except ValueError:
                raise ConfigError(f"{where}: found {part!r}, need NAME=NUMBER") from None
        known = [each.name for each in fields(Budget)]
        for name in values:
            if name not in known:
                raise ConfigError(f"{where}: found {name!r}, known: {', '.join(known)}")
        try:
            return Budget(**{**asdict(Budget()), **values})
        except ConfigError as e:
            raise ConfigError(f"{where}: {e}") from None


class _Account:
    """What one reading has claimed so far."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.spent = {"bytes": 0.0, "items": 0.0}
        self._begun = time.thread_time()

    def claim(self, where: str, amounts: dict[str, float]) -> None:
        amounts["seconds"] = time.thread_time() - self._begun
        for name, amount in amounts.items():
            total = self.spent.get(name, 0) + amount
            limit = getattr(self.budget, name)
            if not total <= limit:  # a NaN is refused, too
                raise BudgetError(
                    f"{where}: needs {_shown(total, name)}, allowed are {_shown(limit, name)} for "
                    "one file or episode; if you trust its source, raise the budget: "
                    f"{VARIABLE}={name}={2 * total:.1g}"
                )
            if name in self.spent:
                self.spent[name] = total


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)
_account: ContextVar[_Account | None] = ContextVar("account", default=None)


def allowed() -> Budget:
    """Return the budget in force: of the innermost `using`, else the environment's, else default.

    Raises ConfigError if the environment's is none.
    """
    chosen = _budget.get()
    if chosen is not None:
        return chosen
    return Budget.parse(os.environ.get(VARIABLE, ""))


@contextmanager
def using(budget: Budget | None) -> Iterator[None]:
    """Set the budget inside the block; None keeps the one in force."""
    token = _budget.set(allowed() if budget is None else budget)
    try:
        yield
    finally:
        _budget.reset(token)


@contextmanager
def reading(*, apart: bool = False) -> Iterator[None]:
    """Add up all claims in the block: in the account that is open, or in a new one.

    With `apart` it is always a new one: for parts of a stream that do not stay in memory.
    """
    opened = None if apart else _account.get()
    token = _account.set(opened or _Account(allowed()))
    try:
        yield
    finally:
        _account.reset(token)


def claim(where: str, *, bytes: float = 0, items: float = 0) -> None:
    """Raise BudgetError if what is about to be allocated and visited exceeds the budget.

    `where` names the file, and the place in it. Outside `reading`, each claim has the budget to
    itself. A claim of nothing checks the time.
    """
    account = _account.get() or _Account(allowed())
    account.claim(where, {"bytes": bytes, "items": items})


def _shown(amount: float, name: str) -> str:
    if name == "seconds":
        return f"{amount:.3g} s of the processor"
    for size, prefix in UNITS:
        if amount >= size and name == "bytes":
            return f"{amount / size:.4g} {prefix}B"
    return f"{amount:,.0f} {name}"
