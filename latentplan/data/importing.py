"""Import of a data set in another format: processes read its episodes, this one appends them.

Episodes are stored in the order of the source with their number in it, so that an import that was
stopped continues after the last.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from latentplan import budget
from latentplan import workers as pool
from latentplan.budget import Budget
from latentplan.data.selection import Selection
from latentplan.data.store import ZarrStore
from latentplan.errors import BudgetError, ShapeError, SourceError
from latentplan.protocols import Source
from latentplan.types import Episode
from latentplan.workers import WorkerDied

SOURCE_INDEX = "source_index"  # name in an episode's info: its number in the source
AHEAD = 2  # episodes in flight per worker; with large images they are large
REASONS = 20  # kinds of reasons for skipping that are counted, the rest together
OTHERS = "other reasons"
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Opening:
    """The arguments with which a source is opened, here and in every worker."""

    source: Callable[..., Source]  # importable class
    path: Path
    config: Any
    keys: tuple[str, ...] | None = None  # observations to keep; None: all
    image_size: int | None = None  # pixels a side; None: as they are
    budget: Budget | None = None  # of opening, and of each episode; None: the one in force

    def open(self) -> Selection:
        """Return the source with the selected observations; SourceError if it cannot be read.

        Raises BudgetError if it needs more than the budget.
        """
        with self.reading():
            source = self.source(self.path, self.config, keys=self.keys)
            return Selection(source, keys=self.keys, size=self.image_size)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold a block to the budget, and raise SourceError for files that may not be read."""
        try:
            with budget.using(self.budget), budget.reading():
                yield
        except OSError as e:  # of a folder, say: sources report on their files themselves
            where = self.path if e.filename is None else e.filename
            raise SourceError(f"{where}: cannot be read ({e.strerror or e})") from None


class Progress(NamedTuple):
    """Progress of an import, counted from the start of this call."""

    episodes: int = 0
    transitions: int = 0
    reasons: Mapping[str, int] = MappingProxyType({})  # skipped episodes, by the first of a kind

    @property
    def skipped(self) -> int:
        """How many damaged episodes were left out."""
        return sum(self.reasons.values())


def add(
    store: ZarrStore,
    opening: Opening,
    *,
    count: int,
    episodes: int | None = None,
    workers: int = 1,
    skip_bad: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Append to `store` until it holds `episodes`, or all `count` of the source; return Progress.

    Continues after the store's last episode. `workers` processes read (0 or 1: this one). `report`
    is called after every episode. Raises SourceError at the first damaged episode unless
    `skip_bad`, and WorkerDied if an episode ends its worker every time. Stored episodes are kept.
    """
    wanted = (count if episodes is None else episodes) - len(store)
    first = int(store.info()[SOURCE_INDEX][-1]) + 1 if len(store) else 0
    stop = count if skip_bad else min(count, first + wanted)
    progress, reasons = Progress(), Reasons()
    if wanted <= 0:
        return progress
    with closing(_read(opening, range(first, stop), workers=workers)) as found:
        for index, (episode, reason) in enumerate(found, start=first):
            if episode is not None:
                try:
                    store.append(episode)
                except ShapeError as e:
                    episode, reason = None, f"{opening.path}: episode {index}: {e}"
            if episode is None:
                if not skip_bad:
                    raise SourceError(f"{reason}; skip_bad leaves such episodes out")
                reasons.add(reason)
                progress = progress._replace(reasons=reasons.counts())
            else:
                progress = progress._replace(
                    episodes=progress.episodes + 1,
                    transitions=progress.transitions + len(episode),
                )
            report(progress)
            if progress.episodes == wanted:
                break
    return progress


class Reasons:
    """Counts of the reasons for skipping, of which those that differ in numbers alone are one."""

    def __init__(self) -> None:
        """Start without any."""
        self._first: dict[str, str] = {}  # the first text of a kind
        self._counts: Counter[str] = Counter()

    def add(self, reason: str) -> None:
        """Count one."""
        kind = NUMBER.sub("#", reason)
        if kind not in self._first and len(self._first) >= REASONS:
            reason = kind = OTHERS
        self._counts[self._first.setdefault(kind, reason)] += 1

    def counts(self) -> Mapping[str, int]:
        """Return the counts by the first text of each kind, the most frequent first."""
        return dict(self._counts.most_common())


class _Read(NamedTuple):
    """What a worker returns: an episode, or the reason why there is none."""

    episode: Episode | None
    reason: str = ""


def _read(opening: Opening, indices: range, *, workers: int) -> Generator[_Read]:
    make = partial(_reader, opening)
    if workers <= 1:
        yield from map(make(), indices)
        return
    try:
        yield from pool.each(make, indices, workers=workers, ahead=AHEAD)
    except WorkerDied as e:
        raise SourceError(
            f"{opening.path}: {e}; stored episodes are kept; run the same again to continue"
        ) from None


def _reader(opening: Opening) -> Callable[[int], _Read]:
    source = opening.open()

    def read(index: int) -> _Read:
        try:
            with opening.reading():
                episode = source.episode(index)
        except (SourceError, BudgetError) as e:
            return _Read(None, str(e))
        except ShapeError as e:
            return _Read(None, f"{opening.path}: episode {index}: {e}")
        info = {**episode.info, SOURCE_INDEX: float(index)}
        return _Read(replace(episode, info=info))

    return read
