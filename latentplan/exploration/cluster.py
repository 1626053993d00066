"""Collection of episodes by actors on a Ray cluster (extra `ray`), replaced if they die."""

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

ANSWER = 10.0  # s, time limit of a connection to a cluster
START = 60.0  # s, time limit for the first actor to start
AHEAD = 2  # episodes in flight for each actor
WINDOW = 6  # episodes per actor, in flight or waiting for an earlier one; bounds memory
DEATHS = 3  # of actors at the same episode, or at the start, before it is an error
OBJECTS = 512 << 20  # bytes of the object store of a local Ray
# No usage statistics, and no change of the visible GPUs for actors that request none.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
PROBE = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level=40)"


def record(recipe: Recipe, indices: range, *, workers: int, address: str) -> Generator[Recording]:
    """Yield the episodes of `indices` in order, recorded by `workers` actors of one CPU each.

    `address` is HOST:PORT or ray://HOST:PORT of a cluster, `auto` for the one on this machine, or
    `local` to start one for this call. If Ray is connected already, that connection is used. An
    actor that dies, alone or with its node, is replaced, and its unfinished episodes are recorded
    again. Raises MissingDependency without Ray, LatentplanError if the cluster does not answer or
    has no free CPU, and WorkerDied if an episode ends every actor that records it.
    """
    with connected(address, workers=workers):
        actors = _Actors(recipe, workers)
        try:
            yield from actors.record(indices)
        finally:
            actors.close()


class _Actors:
    """A pool of actors, each with a few episodes to record."""

    def __init__(self, recipe: Recipe, workers: int) -> None:
        import ray

        self._ray, self._recipe, self._workers = ray, recipe, workers
        self._starting: dict[Any, Any] = {}  # actor by the reference of its `ping`
        self._making: dict[Any, tuple[Any, int]] = {}  # actor and episode by reference
        self._load: Counter[Any] = Counter()  # number of episodes in flight by actor
        self._failed_starts = 0
        self._deaths: Counter[int] = Counter()  # number of dead actors by episode
        for _ in range(workers):
            self._start()

    def record(self, indices: range) -> Iterator[Recording]:
        """Yield the episodes in order, each as soon as it and all before it are recorded."""
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
        self._starting[actor.ping.remote()] = actor

    def _give(self, todo: list[int], *, before: int) -> None:
        """Assign the next episodes of `todo` to the actors with the fewest in flight."""
        while todo and todo[-1] < before and self._load:
            actor = min(self._load, key=self._load.__getitem__)
            if self._load[actor] >= AHEAD:
                return
            index = todo.pop()
            self._making[actor.record.remote(index)] = actor, index
            self._load[actor] += 1

    def _wait(self) -> list[Any]:
        """Return the references that are ready; LatentplanError if no actor starts in time."""
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
        """Keep the episode of an actor; if the actor died, return its episodes to `todo`."""
        actor, index = self._making.pop(ref)
        try:
            made[index] = self._ray.get(ref)
            self._load[actor] -= 1
        except self._ray.exceptions.RayTaskError as e:
            raise e.cause or e from None  # the error of the env
        except self._ray.exceptions.RayError:
            lost = [r for r, (other, _) in self._making.items() if other is actor]
            again = sorted([index, *(self._making.pop(r)[1] for r in lost)], reverse=True)
            self._deaths[again[-1]] += 1  # the one that it was recording
            if self._deaths[again[-1]] == DEATHS:
                raise WorkerDied(again[-1], DEATHS) from None
            todo[:] = sorted([*todo, *again], reverse=True)
            del self._load[actor]
            self._ray.kill(actor)  # it may live if only its result was lost
            self._start()


class _Actor:
    """A recorder on a node of the cluster."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._recorder: Recorder | None = None

    def ping(self) -> None:
        """Return once the actor has started."""

    def record(self, index: int) -> Recording:
        """Record the episode of an index."""
        if self._recorder is None:  # not in __init__, whose errors Ray does not pass on
            self._recorder = Recorder(self._recipe)
        return self._recorder.record(index)


@contextmanager
def connected(address: str, *, workers: int) -> Iterator[None]:
    """Connect to a cluster for the duration of a context; raises as `record` does."""
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
        modules = {"PYTHONPATH": os.pathsep.join(sys.path)}  # all that this process can import
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
    """Raise LatentplanError unless a process can connect to the cluster within `ANSWER` seconds.

    `ray.init` retries for minutes and cannot be interrupted, so that a child process calls it.
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
