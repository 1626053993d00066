"""`latentplan.api.import_data`: a data set in another format, read into an episode store."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latentplan import config
from latentplan.api import stores
from latentplan.api.choice import Overrides, as_overrides, choose
from latentplan.budget import Budget
from latentplan.errors import Interrupted, SourceError, check_range
from latentplan.protocols import Source
from latentplan.types import OnProgress, Progress
from latentplan.urls import local

if TYPE_CHECKING:
    from latentplan.data.importing import Opening
    from latentplan.data.importing import Progress as Count
    from latentplan.data.store import ZarrStore


@dataclass(frozen=True)
class Imported:
    """An episode store after an import, and what the call added to it."""

    store: str  # path or URL
    episodes: int  # that the store holds
    transitions: int
    bytes: int  # of the store
    new_episodes: int  # that this call added
    new_transitions: int
    skipped: int  # damaged episodes that were left out
    reasons: Mapping[str, int]  # how many for which reason, in the words of the first of its kind
    notes: tuple[str, ...]  # what the source says of itself
    counts: Mapping[str, Mapping[str, int]]  # parts `kept` and left out by reason, see the source
    seconds: float


def import_data(
    format: str | type[Source],
    source: str | Path,
    *,
    out: str | Path,
    episodes: int | None = None,
    keys: Sequence[str] | None = None,
    image_size: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    budget: Budget | str | None = None,
    overrides: Overrides = (),
    on_progress: OnProgress | None = None,
) -> Imported:
    """Import until the store `out` (a path or URL) holds `episodes` (None: all there are).

    An existing store of the same settings is continued. `format` is a registered source or a
    class, and `source` the path of its data; `keys` are the observations to keep and `image_size`
    the pixels a side of images (None: as they are); `workers` processes read (0 or 1: this one,
    which writes; None: one a core beside it). Section of `overrides`: source. Raises SourceError at
    the first episode that is damaged, unless `skip_bad`, and Interrupted on Ctrl-C; what is done is
    kept. `budget` bounds what opening and each episode may claim, as a `Budget` or a text such as
    `bytes=8e9` (None: that of the environment, see docs/security.md); BudgetError beyond it.
    """
    from latentplan.data import importing

    if episodes is not None:
        check_range("import.episodes", episodes, 1)
    workers = workers if workers is not None else (os.cpu_count() or 1) - 1  # this one writes
    check_range("import.workers", workers, 0)
    if isinstance(budget, str):
        budget = Budget.parse(budget, where="import.budget")
    chosen = choose("source", format)
    settings = config.load(
        {"source": chosen.config},
        preset={"source": chosen.values},
        overrides=as_overrides(overrides),
    )
    opening = importing.Opening(
        chosen.make,
        local(source, where="import.source"),
        config=settings["source"],
        keys=None if keys is None else tuple(keys),
        image_size=image_size,
        budget=budget,
    )
    return _filled(opening, chosen.name, out, episodes, workers, skip_bad, on_progress)


def _filled(
    opening: Opening,
    name: str,
    out: str | Path,
    episodes: int | None,
    workers: int,
    skip_bad: bool,
    on_progress: OnProgress | None,
) -> Imported:
    """Return a store that was filled from a data set of the source `name`."""
    from latentplan.data import importing

    opened = opening.open()
    total = len(opened) if episodes is None else min(len(opened), episodes)
    settings = {"format": name, **opened.settings}
    begun, interrupted = time.monotonic(), False
    with stores.filling(out, opened.spec, settings) as store:
        report = _Report(f"import {name}", total, before=len(store), then=on_progress)
        try:
            report(importing.Progress())
            importing.add(
                store,
                opening,
                count=len(opened),
                episodes=episodes,
                workers=workers,
                skip_bad=skip_bad,
                report=report,
            )
        except KeyboardInterrupt:
            interrupted = True
    notes = tuple(opened.notes)
    if episodes is not None and episodes > len(opened):
        notes += (f"episodes: {episodes} asked for, the data set has {len(opened)}",)
    found = _summary(store, report.count, notes, opened.counts, time.monotonic() - begun)
    if interrupted:
        raise Interrupted(found)
    if found.skipped and not found.episodes:
        most = next(iter(found.reasons))
        raise SourceError(f"{opening.path}: all {found.skipped} episodes are damaged: {most}")
    return found


class _Report:
    """What was imported so far, which is passed on as the progress of a task."""

    count: Count

    def __init__(self, task: str, total: int, *, before: int, then: OnProgress | None) -> None:
        self._task, self._total, self._before, self._then = task, total, before, then

    def __call__(self, count: Count) -> None:
        self.count = count
        if self._then is not None:
            figures = {"transitions": count.transitions, "skipped": count.skipped}
            done = self._before + count.episodes
            self._then(Progress(self._task, "episodes", done, self._total, figures))


def _summary(
    store: ZarrStore,
    count: Count,
    notes: tuple[str, ...],
    counts: Mapping[str, Mapping[str, int]],
    seconds: float,
) -> Imported:
    held = stores.size(store)
    return Imported(
        store=str(store.path),
        episodes=held.episodes,
        transitions=held.transitions,
        bytes=held.bytes,
        new_episodes=count.episodes,
        new_transitions=count.transitions,
        skipped=count.skipped,
        reasons=count.reasons,
        notes=notes,
        counts=counts,
        seconds=seconds,
    )
