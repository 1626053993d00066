"""Numbered pieces of work, done in order by processes that are replaced if they die."""

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
AHEAD = 4  # pieces of work in flight per worker: keeps it busy, and memory flat
DEATHS = 3  # workers that one piece of work may end before it is given up


class WorkerDied(LatentplanError):
    """A piece of work ended every worker that did it."""

    def __init__(self, index: int, deaths: int) -> None:
        """Take the number of the piece of work and of the workers that it ended."""
        super().__init__(
            "a worker process died (killed, out of memory, or what it ran crashed), "
            f"{deaths} times at episode {index}"
        )


def each(
    make: Callable[[], Callable[[int], T]], indices: range, *, workers: int, ahead: int = AHEAD
) -> Generator[T]:
    """Yield `make()(index)` for every index in order, computed by `workers` processes.

    `make` is called once in every worker, so it must be importable, or a partial of
    something importable. At most `ahead` pieces per worker are in flight, so that memory stays
    flat. Raises WorkerDied if a piece ends its process `DEATHS` times, and any error of the work.
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
                with _interrupts_wait():  # the first starts the threads, which start the workers
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
    """A process that does one piece of work at a time, and is replaced if it dies.

    It has a pipe of its own, which closes if it is killed while it sends a result. A queue that
    all workers share (concurrent.futures) would wait for the rest of that result for ever.
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
            except (EOFError, OSError):  # errors of the work arrive as `error`
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
        self._close = weakref.finalize(self, self._pipe.close)  # otherwise the exit waits for it
        process = context.Process(target=_serve, args=(theirs, self._make))
        process.start()
        self._process = process
        theirs.close()  # the last copy here: the pipe ends when the process does

    def stop(self) -> None:
        """Stop the process, which is idle or dead."""
        if self._process is not None:
            self._close()
            self._process.join()
            self._process = None


def _serve(pipe: Connection, make: Callable[[], Callable[[int], Any]]) -> None:
    """Send (result, error, its traceback) for each index received.

    Ctrl-C is handled by the parent; the process ends with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    made = cache(make)  # with the first piece, whose errors are sent
    with suppress(EOFError, ConnectionError):  # the parent has closed its end
        while True:
            index = pipe.recv()
            try:
                answer = ForkingPickler.dumps((made()(index), None, ""))
            except Exception as e:
                answer = _told(e)
            pipe.send_bytes(answer)


def _told(error: Exception) -> memoryview:
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
