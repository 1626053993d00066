"""Episodes made by actors on a Ray cluster (extra `ray`); those that die are replaced."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from latentplan.errors import LatentplanError, MissingDependency
from latentplan.exploration.recorder import Recipe, Recorder, Recording
from latentplan.workers import WorkerDied

ANSWER = 10.0  # s that a cluster has to answer
START = 60.0  # s that it has to give the first of its CPUs
AHEAD = 2  # episodes in flight for each actor
WINDOW = 6  # episodes for each actor, in flight or waiting for an earlier one: memory stays flat
DEATHS = 3  # of the actors that make the same episode, or start, before giving up
OBJECTS = 512 << 20  # bytes that a local Ray may keep episodes in
# Ray tells nobody, hides no GPU from actors that ask for none, and says so only when wrong.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
PROBE = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level=40)"


def record(recipe: Recipe, indices: range, *, workers: int, address: str) -> Generator[Recording]:
    """Yield the episodes of `indices` in order, made by `workers` actors of one CPU each.

    `address` is HOST:PORT or ray://HOST:PORT of a cluster, `auto` for the one on this machine, or
    `local` to start one for this call. Where Ray is connected already, that connection is used.
    An actor that dies, alone or with its node, is replaced, and what it had to do is done again.
    Raises MissingDependency without Ray, LatentplanError where the cluster does not answer or has
    no CPU to give, WorkerDied where an episode ends every actor that makes it.
    """
    with connected(address, workers=workers):
        actors = _Actors(recipe, workers)
        try:
            yield from actors.record(indices)
        finally:
            actors.close()


class _Actors:
    """Actors that come and go, each with a few episodes to make."""

    def __init__(self, recipe: Recipe, workers: int) -> None:
        import ray

        self._ray, self._recipe, self._workers = ray, recipe, workers
        self._starting: dict[Any, Any] = {}  # actor by what it answers when it is there
        self._making: dict[Any, tuple[Any, int]] = {}  # actor and episode by what is awaited
        self._load: Counter[Any] = Counter()  # episodes each actor is to make
        self._failed_starts = 0
        self._deaths: Counter[int] = Counter()  # by episode
        for _ in range(workers):
            self._start()

    def record(self, indices: range) -> Iterator[Recording]:
        """Yield in order; waits only where the next episode is not there yet."""
        todo, made = list(reversed(indices)), dict[int, Recording]()
        for index in indices:
            while index not in made:
                self._give(todo, before=index + self._workers * WINDOW)
                for ref in self._wait():
                    if ref in self._starting:
                        self._join(ref)
                    elif ref in self._making:
                        self._take(ref, todo, made)
            yield made.pop(index)

    def close(self) -> None:
        """End every actor."""
        for actor in {*self._starting.values(), *self._load}:
            self._ray.kill(actor)

    def _start(self) -> None:
        kind: Any = self._ray.remote(num_cpus=1)(_Actor)
        actor = kind.remote(self._recipe)
        self._starting[actor.here.remote()] = actor

    def _give(self, todo: list[int], *, before: int) -> None:
        """Hand out the first episodes of `todo`, to the worker that has the fewest."""
        while todo and todo[-1] < before and self._load:
            actor = min(self._load, key=self._load.__getitem__)
            if self._load[actor] >= AHEAD:
                return
            index = todo.pop()
            self._making[actor.record.remote(index)] = actor, index
            self._load[actor] += 1

    def _wait(self) -> list[Any]:
        """Return what is ready; LatentplanError where no actor is there and none comes."""
        limit = None if self._making else START
        ready, _ = self._ray.wait([*self._starting, *self._making], timeout=limit)
        if not ready:
            raise LatentplanError(
                f"collect.ray: the cluster gave no CPU for a worker within {START:g} s "
                f"(it has {self._ray.cluster_resources().get('CPU', 0):g}); wait until some "
                "are free, or use another address"
            )
        return list(ready)

    def _join(self, ref: Any) -> None:
        actor = self._starting.pop(ref)
        try:
            self._ray.get(ref)
        except self._ray.exceptions.RayError as e:
            self._failed_starts += 1
            if self._failed_starts == DEATHS * self._workers:
                reason = str(e).strip().splitlines()[-1]
                raise LatentplanError(f"collect.ray: workers do not start ({reason})") from None
            self._start()
        else:
            self._load[actor] = 0

    def _take(self, ref: Any, todo: list[int], made: dict[int, Recording]) -> None:
        """Keep what an actor made; where it died, give back what it had to do."""
        actor, index = self._making.pop(ref)
        try:
            made[index] = self._ray.get(ref)
            self._load[actor] -= 1
        except self._ray.exceptions.RayTaskError as e:
            raise e.cause or e from None  # the error of the env, as in any process
        except self._ray.exceptions.RayError:
            lost = [r for r, (other, _) in self._making.items() if other is actor]
            again = sorted([index, *(self._making.pop(r)[1] for r in lost)], reverse=True)
            self._deaths[again[-1]] += 1  # the one it was at
            if self._deaths[again[-1]] == DEATHS:
                raise WorkerDied(again[-1], DEATHS) from None
            todo[:] = sorted([*todo, *again], reverse=True)
            del self._load[actor]
            self._ray.kill(actor)  # where only its answer was lost
            self._start()


class _Actor:
    """A recorder on some node of the cluster."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._recorder: Recorder | None = None

    def here(self) -> None:
        """Answer, so that the caller knows that this actor is there."""

    def record(self, index: int) -> Recording:
        """Return episode number `index`."""
        if self._recorder is None:  # here, where an error of the env reaches the caller
            self._recorder = Recorder(self._recipe)
        return self._recorder.record(index)


@contextmanager
def connected(address: str, *, workers: int) -> Iterator[None]:
    """Be connected to a cluster within, and leave it as it was; errors as `record` has them."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise MissingDependency('collect.ray needs ray: pip install "latentplan[ray]"') from None
    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = {}
    if address == "local":
        cpus = max(workers, os.cpu_count() or 1)
        modules = {"PYTHONPATH": os.pathsep.join(sys.path)}  # what this process can import
        own = {
            "num_cpus": cpus,
            "object_store_memory": OBJECTS,
            "include_dashboard": False,
            "runtime_env": {"env_vars": modules},
        }
    else:
        _check_answers(address)
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise LatentplanError unless the cluster lets a process in within `ANSWER` seconds.

    `ray.init` itself tries for minutes and cannot be interrupted, so another process tries it.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    what = "start one with `ray start --head`, or set ray=local"
    if address != "auto":
        if not (host and port.isdecimal()):
            raise LatentplanError(
                f"collect.ray: found {address!r}, needs HOST:PORT, ray://HOST:PORT, auto or local"
            )
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER).close()
        except (OSError, OverflowError) as e:
            raise LatentplanError(f"collect.ray {address}: does not answer ({e}); {what}") from None
    try:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE, address], capture_output=True, text=True, timeout=ANSWER
        )
    except subprocess.TimeoutExpired:
        raise LatentplanError(
            f"collect.ray {address}: no Ray cluster answers there within {ANSWER:g} s; {what}"
        ) from None
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LatentplanError(f"collect.ray {address}: cannot be used ({reason}); {what}")
