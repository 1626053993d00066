"""Progress of long work: a bar on a terminal, else a plain line every few seconds, on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from latentplan import types

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS = 5.0  # between plain lines


class Track(Protocol):
    """What `track` gives: call `advance` as the work gets on."""

    def advance(self, n: int = 1, **fields: object) -> None:
        """Count `n` more units done, and show `fields` (`loss=0.31`) beside them."""


@contextmanager
def track(total: int, what: str, unit: str, *, done: int = 0) -> Iterator[Track]:
    """Show rate and time left of `total` units of work, `done` of which an earlier run did."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(what, total=total, completed=done, note=unit)
            yield _Bar(progress, task, _Pace(total, unit, done))
    else:
        lines = _Lines(what, _Pace(total, unit, done))
        try:
            yield lines
        finally:
            lines.close()


class Bars:
    """An `on_progress` for any long call: a bar or lines for each of its tasks, one after another.

    The first report of a task is where an earlier call stopped, or its first unit of work.
    """

    def __init__(self) -> None:
        """Show nothing yet."""
        self._open = ExitStack()
        self._task, self._done = "", 0
        self._track: Track | None = None

    def __call__(self, progress: types.Progress) -> None:
        """Show how far the call has come."""
        if self._track is None or progress.task != self._task:
            self._open.close()
            shown = track(progress.total, progress.task, progress.unit, done=progress.done)
            self._track = self._open.enter_context(shown)
            self._task, self._done = progress.task, progress.done
        self._track.advance(progress.done - self._done, **progress.figures)
        self._done = progress.done

    def __enter__(self) -> Bars:
        """Return the bars."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar that is open."""
        self._open.close()


class _Pace:
    """Counts, and says the rate since the start of this run and the time that is left."""

    def __init__(self, total: int, unit: str, done: int) -> None:
        self.total, self.unit, self.done = total, unit, done
        self._before, self._start = done, monotonic()

    def __str__(self) -> str:
        new, seconds = self.done - self._before, monotonic() - self._start
        if new == 0 or seconds == 0:
            return self.unit
        left = timedelta(seconds=round((self.total - self.done) * seconds / new))
        ending = f"{left} left" if self.done < self.total else f"in {_duration(seconds)}"
        return f"{self.unit}, {new / seconds:.3g}/s, {ending}"


class _Bar:
    def __init__(self, progress: Progress, task: TaskID, pace: _Pace) -> None:
        self._progress, self._task, self._pace = progress, task, pace

    def advance(self, n: int = 1, **fields: object) -> None:
        self._pace.done += n
        note = f"{self._pace}{_show(fields)}"
        self._progress.update(self._task, completed=self._pace.done, note=note)


class _Lines:
    def __init__(self, what: str, pace: _Pace) -> None:
        self._what, self._pace = what, pace
        self._fields: dict[str, object] = {}
        self._printed, self._next = -1, monotonic() + SECONDS

    def advance(self, n: int = 1, **fields: object) -> None:
        self._pace.done += n
        self._fields |= fields
        if monotonic() >= self._next:
            self._print()

    def close(self) -> None:
        if self._pace.done != self._printed:
            self._print()

    def _print(self) -> None:
        pace = self._pace
        print(
            f"{self._what}: {pace.done}/{pace.total} {pace}{_show(self._fields)}",
            file=sys.stderr,
            flush=True,
        )
        self._printed, self._next = pace.done, monotonic() + SECONDS


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _show(fields: dict[str, object]) -> str:
    values = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in fields.values())
    return "".join(f", {k} {v}" for k, v in zip(fields, values, strict=True))
