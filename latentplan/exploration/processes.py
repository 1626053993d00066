"""Episodes made by processes of this machine; one that dies is replaced."""

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

from latentplan.exploration.recorder import Recipe, Recorder, Recording, WorkerDied

AHEAD = 4  # episodes in flight for each worker: keeps it busy, and memory flat
DEATHS = 3  # of workers, with no episode made in between, before giving up


def record(recipe: Recipe, indices: range, *, workers: int) -> Generator[Recording]:
    """Yield the episodes of `indices` in order; 0 or 1 workers: made by this process.

    Raises WorkerDied where an episode ends the process that makes it, `DEATHS` times.
    """
    if workers <= 1:
        recorder = Recorder(recipe)
        try:
            yield from map(recorder.record, indices)
        finally:
            recorder.env.close()
        return
    deaths = 0
    while len(indices):
        made = _by_pool(recipe, indices, workers)
        try:
            for recording in made:
                yield recording
                indices, deaths = indices[1:], 0
        except BrokenProcessPool:
            deaths += 1
            if deaths == DEATHS:
                raise WorkerDied(indices[0], DEATHS) from None
        finally:
            made.close()


def _by_pool(recipe: Recipe, indices: range, workers: int) -> Generator[Recording]:
    with _one_thread_each():
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(recipe,)
        )
        try:
            flying: deque[Future[Recording]] = deque()
            for index in indices:
                with _interrupts_wait():  # the first starts the workers
                    flying.append(pool.submit(_record, index))
                if len(flying) >= workers * AHEAD:
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


_recorder: Callable[[], Recorder]  # of a worker process


def _start(recipe: Recipe) -> None:
    """Prepare a worker: it leaves Ctrl-C to its parent, and does not outlive it."""
    global _recorder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _recorder = cache(lambda: Recorder(recipe))  # built by the first task, which can tell errors


def _record(index: int) -> Recording:
    return _recorder().record(index)


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
