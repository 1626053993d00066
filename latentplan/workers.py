"""Numbered work done by processes of this machine, in order; one that dies is replaced."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import wait
from typing import Any, TypeVar

from latentplan.errors import LatentplanError

T = TypeVar("T")
AHEAD = 4  # pieces of work in flight for each worker: keeps it busy, and memory flat
DEATHS = 3  # of workers, with nothing done in between, before giving up


class WorkerDied(LatentplanError):
    """A piece of work ended every worker that did it."""

    def __init__(self, index: int, deaths: int) -> None:
        """Say that piece number `index` ended `deaths` workers."""
        super().__init__(
            "a worker process died (killed, out of memory, or what it ran crashed), "
            f"{deaths} times at episode {index}"
        )


def each(
    make: Callable[[], Callable[[int], T]], indices: range, *, workers: int, ahead: int = AHEAD
) -> Generator[T]:
    """Yield `make()(index)` of every index in order, worked out by `workers` processes.

    `make` is called once in every worker, so it must be importable, or a partial of what is; with
    `ahead` pieces of work for each, done or not, memory stays flat. Raises WorkerDied where a
    piece ends the process that does it, `DEATHS` times, and whatever the work raises.
    """
    deaths = 0
    while len(indices):
        made = _by_pool(make, indices, workers=workers, ahead=ahead)
        try:
            for result in made:
                yield result
                indices, deaths = indices[1:], 0
        except BrokenProcessPool:
            deaths += 1
            if deaths == DEATHS:
                raise WorkerDied(indices[0], DEATHS) from None
        finally:
            made.close()


def _by_pool(
    make: Callable[[], Callable[[int], T]], indices: range, *, workers: int, ahead: int
) -> Generator[T]:
    with _one_thread_each():
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(make,)
        )
        try:
            flying: deque[Future[T]] = deque()
            for index in indices:
                with _interrupts_wait():  # the first starts the workers
                    flying.append(pool.submit(_do, index))
                if len(flying) >= workers * ahead:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C wait in here; a process that is started in here is born deaf to it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_made: Callable[[], Callable[[int], Any]]  # of a worker process


def _start(make: Callable[[], Callable[[int], Any]]) -> None:
    """Prepare a worker: it leaves Ctrl-C to its parent, and does not outlive it."""
    global _made
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _made = cache(make)  # called by the first task, which can tell errors


def _do(index: int) -> Any:
    return _made()(index)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let every worker started within use one core."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
