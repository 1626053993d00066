"""Parallel map over indices by worker processes, which are replaced if they die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

from latentplan.errors import LatentplanError

T = TypeVar("T")
AHEAD = 4  # indices in flight per worker, which keeps it busy and bounds memory
DEATHS = 3  # workers that die at one index before it is an error


class WorkerDied(LatentplanError):
    """Every worker died at the same index."""

    def __init__(self, index: int, deaths: int) -> None:
        """Take the index and the number of workers that died at it."""
        super().__init__(
            "a worker process died (killed, out of memory, or what it ran crashed), "
            f"{deaths} times at episode {index}"
        )


def each(
    make: Callable[[], Callable[[int], T]], indices: range, *, workers: int, ahead: int = AHEAD
) -> Generator[T]:
    """Yield `make()(index)` for every index in order, computed by `workers` processes.

    `make` is called once in every worker; it must be importable or a partial of something
    importable. At most `ahead` indices per worker are in flight, which bounds memory. Raises
    WorkerDied if an index ends its process `DEATHS` times, and any error of the function.
    """
    crew = [_Worker(make) for _ in range(workers)]
    idle: SimpleQueue[_Worker[T]] = SimpleQueue()
    for worker in crew:
        idle.put(worker)

    def do(index: int) -> T:
        worker = idle.get()
        try:
            return worker.do(index)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(workers)  # each waits for one process
    with _one_thread_each():
        try:
            flying: deque[Future[T]] = deque()
            for index in indices:
                with _interrupts_wait():  # submit may start a thread, which starts a worker
                    flying.append(threads.submit(do, index))
                if len(flying) >= workers * ahead:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)
            for worker in crew:
                worker.stop()


class _Worker(Generic[T]):
    """A process that computes one index at a time and is replaced if it dies.

    Each has its own pipe, which closes if the process is killed while it sends a result. A shared
    queue (concurrent.futures) would wait for the rest of that result forever.
    """

    def __init__(self, make: Callable[[], Callable[[int], T]]) -> None:
        self._make = make
        self._process: SpawnProcess | None = None

    def do(self, index: int) -> T:
        for _ in range(DEATHS):
            if self._process is None:
                self._start()
            try:
                self._pipe.send(index)
                result, error, trace = self._pipe.recv()
            except (EOFError, OSError):  # the process died; errors of the function are `error`
                self.stop()
                continue
            if error is not None:
                error.add_note(trace)
                raise error
            return cast(T, result)
        raise WorkerDied(index, DEATHS)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._close = weakref.finalize(self, self._pipe.close)  # lets the process end at exit
        process = context.Process(target=_serve, args=(theirs, self._make))
        process.start()
        self._process = process
        theirs.close()  # so that the pipe closes when the process ends

    def stop(self) -> None:
        """Stop the process, which is idle or dead."""
        if self._process is not None:
            self._close()
            self._process.join()
            self._process = None


def _serve(pipe: Connection, make: Callable[[], Callable[[int], Any]]) -> None:
    """Send (result, error, traceback) for each received index, until the parent ends.

    Ctrl-C is handled by the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    made = cache(make)  # called with the first index, so that its errors are sent
    with suppress(EOFError, ConnectionError):  # the parent closed the pipe
        while True:
            index = pipe.recv()
            try:
                answer = ForkingPickler.dumps((made()(index), None, ""))
            except Exception as e:
                answer = _failure(e)
            pipe.send_bytes(answer)


def _failure(error: Exception) -> memoryview:
    trace = f"In a worker process:\n{traceback.format_exc()}"
    try:
        return ForkingPickler.dumps((None, error, trace))
    except Exception:  # an error that cannot be pickled is sent as text
        return ForkingPickler.dumps((None, RuntimeError(repr(error)), trace))


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Delay Ctrl-C inside the block; processes started inside it ignore Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Limit every worker started inside the block to one core."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
