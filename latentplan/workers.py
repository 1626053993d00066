"""Numbered work done by processes of this machine, in order; one that dies is replaced."""

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
AHEAD = 4  # pieces of work in flight for each worker: keeps it busy, and memory flat
DEATHS = 3  # of workers at one piece of work before giving up


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
    """A process that does one piece of work at a time, and is replaced where it dies.

    Its pipe is its own: where it is killed while it hands in a result, the pipe ends with it. In
    a queue of all workers (concurrent.futures) the rest of that result is waited for for ever.
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
            except (EOFError, OSError):  # what the work raises comes as `error`
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
        self._close = weakref.finalize(self, self._pipe.close)  # or the exit would wait for it
        process = context.Process(target=_serve, args=(theirs, self._make))
        process.start()
        self._process = process
        theirs.close()  # the last copy here: the pipe ends when the process does

    def stop(self) -> None:
        """Let the process end, which has nothing to do or is dead."""
        if self._process is not None:
            self._close()
            self._process.join()
            self._process = None


def _serve(pipe: Connection, make: Callable[[], Callable[[int], Any]]) -> None:
    """Answer each index with (result, error, its traceback).

    Ctrl-C is left to the parent, which is not outlived.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    made = cache(make)  # by the first piece, which can tell errors
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
    except Exception:  # of what cannot be pickled, the text
        return ForkingPickler.dumps((None, RuntimeError(repr(error)), trace))


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C wait in here; a process that is started in here is born deaf to it."""
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
