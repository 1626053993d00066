"""Decorator of methods that only one thread at a time may execute."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

from latentplan.nn.torch_settings import own_torch_settings

P = ParamSpec("P")
R = TypeVar("R")


class Lockable(Protocol):
    """An object with a reentrant lock."""

    lock: threading.RLock


S = TypeVar("S", bound=Lockable)


def exclusive(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Return the method, which waits for other exclusive methods of the same object to end.

    It then runs with torch's default settings (see `own_torch_settings`), whatever the caller's.
    """

    @wraps(method)
    def locked(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock, own_torch_settings():
            return method(self, *args, **kwargs)

    return cast(Callable[Concatenate[S, P], R], locked)
