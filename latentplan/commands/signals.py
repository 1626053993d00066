"""SIGTERM that ends a command as Ctrl-C does, so that an arm is stopped on the way out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TERMINATED = 143  # 128 + SIGTERM, what shells expect


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block with SystemExit."""

    def end(*_: object) -> None:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
