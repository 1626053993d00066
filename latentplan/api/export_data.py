"""`latentplan export`: an episode store, written in another package's format."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from latentplan import config
from latentplan.errors import ConfigError, StoreError, unknown

FORMATS = ("lerobot",)


def run(
    format: str,
    data: str | Path,
    *,
    out: str | Path,
    fps: int | None = None,
    images: bool = False,
    overrides: Sequence[str] = (),
) -> None:
    """Write all episodes of the store `data` into the new folder `out` and print what was done.

    `fps` frames a second (None: those of the store), `images` keeps pictures exact, as PNG, in
    place of a video. The folder appears whole or not at all. Section of `overrides`: export.
    """
    from latentplan.commands.progress import track
    from latentplan.data.export import lerobot
    from latentplan.data.store import ZarrStore

    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if "://" in str(out):
        raise ConfigError(f"{out}: export writes into a folder of this machine, not to a URL")
    chosen = config.load(
        {"export": lerobot.Config}, preset={"export": {"video": not images}}, overrides=overrides
    )
    with ZarrStore.open(data) as store:
        if not len(store):
            raise StoreError(f"{data}: is empty; there is nothing to export")
        rate, started = lerobot.whole_fps(store.spec, fps), time.monotonic()
        folder = lerobot.writing(Path(out), store.spec, fps=rate, config=chosen["export"])
        with folder as writer, track(len(store), f"export {format}", "episodes") as bar:
            for index in range(len(store)):
                episode = store.episode(index)
                writer.append(episode)
                bar.advance(1, frames=len(episode) + 1)
        seconds, frames = time.monotonic() - started, int(store.ends[-1])
    size = sum(file.stat().st_size for file in Path(out).rglob("*") if file.is_file())
    print(
        f"{out}: {len(store)} episodes, {frames} frames at {rate} a second, {size / 1e6:.1f} MB; "
        f"{frames / max(seconds, 1e-9):.1f} frames/s"
    )
