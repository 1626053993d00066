"""A bound on what building a network allocates, whatever its config says."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from latentplan import budget

ITEMS = 50  # that an operation counts for: the modules and parameters that come with it


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hold every tensor that is made in the block against the budget, before it is made.

    Raises BudgetError also after some 20,000 operations, such as of a million layers.
    """

    def __init__(self, where: str) -> None:
        """Take what the errors begin with."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._where = where

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing is compiled in the block, and Dynamo takes seconds to import."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        given = kwargs or {}
        made = 0.0
        if _makes(func) and not any(isinstance(each, Tensor) for each in args):
            itemsize = (given.get("dtype") or torch.get_default_dtype()).itemsize
            square = 2 if func is torch.ops.aten.eye.default else 1
            made = _size(args) ** square * itemsize
        budget.claim(self._where, bytes=made, items=ITEMS)
        return func(*args, **given)


@cache
def _makes(func: Any) -> bool:
    """Return whether an operation takes a device, as those do that make a tensor of nothing."""
    return any(each.name == "device" for each in func._schema.arguments)


def _size(arguments: Any) -> float:
    """Return no less than what `empty(sizes)`, `eye(n, m)` or `arange(0, 9, 0.1)` makes."""
    for each in arguments:
        if isinstance(each, list | tuple):
            return math.prod(each)
    numbers = [abs(each) for each in arguments if isinstance(each, int | float)]
    return math.prod(each if each >= 1 else 1 / each for each in numbers if each)
