"""`latentplan import`: a data set in another format, read into an episode store."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentplan import config, registry
from latentplan.errors import SourceError, check_range

if TYPE_CHECKING:
    from latentplan.data.importing import Progress
    from latentplan.data.store import ZarrStore


def run(
    format: str,
    source: str | Path,
    *,
    out: str | Path,
    episodes: int | None = None,
    keys: Sequence[str] | None = None,
    image_size: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    overrides: Sequence[str] = (),
) -> None:
    """Import until the store `out` (a path or URL) holds `episodes` (None: all there are).

    Goes on where an existing store of the same settings ends. `format` is a registry name of a
    source and `source` where its data lies; `keys` are the observations to keep and `image_size`
    the pixels a side of pictures (None: as they are); `workers` processes read (0 or 1: this one,
    which writes; None: one a core beside it). Raises SourceError at the first episode that is
    damaged, or says how many were with `skip_bad`. Section of `overrides`: source.
    """
    from latentplan.commands.progress import track
    from latentplan.data import importing
    from latentplan.data.location import locate
    from latentplan.data.store import ZarrStore, check_same

    if episodes is not None:
        check_range("--episodes", episodes, 1)
    workers = workers if workers is not None else (os.cpu_count() or 1) - 1  # this one writes
    check_range("--workers", workers, 0)
    preset = config.resolve("source", format)
    source_class = registry.get("source", preset.base)
    chosen = config.load(
        {"source": source_class.Config}, preset={"source": preset.values}, overrides=overrides
    )
    opening = importing.Opening(
        source_class,
        Path(source),
        config=chosen["source"],
        keys=None if keys is None else tuple(keys),
        image_size=image_size,
    )
    opened = opening.open()
    for note in opened.notes:
        print(note)
    settings = {"format": preset.base, **opened.settings}
    count = len(opened)
    total = count if episodes is None else min(count, episodes)
    if locate(out).exists():
        store = ZarrStore.open(out, "a")
    else:
        store = ZarrStore.create(out, opened.spec, settings=settings)
    with store:
        advice = "use the same settings to go on, or another --out"
        check_same(f"{out}: settings", store.settings, settings, advice=advice)
        check_same(f"{out}: spec", store.spec.to_json(), opened.spec.to_json(), advice=advice)
        started, done = time.monotonic(), importing.Progress()
        try:
            with track(total, f"import {format}", "episodes", done=len(store)) as bar:

                def report(progress: Progress) -> None:
                    nonlocal done
                    new, done = progress.episodes - done.episodes, progress
                    bar.advance(new, transitions=done.transitions, skipped=done.skipped)

                importing.add(
                    store,
                    opening,
                    count=count,
                    episodes=episodes,
                    workers=workers,
                    skip_bad=skip_bad,
                    report=report,
                )
        finally:  # Ctrl-C and a damaged file keep what was done, so say what that is
            seconds = time.monotonic() - started
            store.close()
            print(_summary(store, done, seconds))
    if done.skipped and not len(store):
        raise SourceError(f"{source}: all {done.skipped} episodes are damaged: {done.reasons[0]}")


def _summary(store: ZarrStore, done: Progress, seconds: float) -> str:
    rows = int(store.ends[-1]) if len(store) else 0
    lines = [
        f"{store.path}: {len(store)} episodes, {rows - len(store)} transitions, "
        f"{store.disk_bytes() / 1e6:.1f} MB; new {done.episodes} episodes, "
        f"{done.transitions} transitions at {done.transitions / max(seconds, 1e-9):.1f}/s"
    ]
    if done.skipped:
        lines.append(f"{done.skipped} episodes skipped, for instance:")
        lines += [f"  {reason}" for reason in done.reasons]
    return "\n".join(lines)
