"""`latentplan.api.export_data`: an episode store, written in another package's format."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from latentplan import config
from latentplan.api.choice import Overrides, as_overrides
from latentplan.errors import StoreError, unknown
from latentplan.types import OnProgress, Progress
from latentplan.urls import local

FORMATS = ("lerobot",)


@dataclass(frozen=True)
class Exported:
    """A folder that `export_data` has written."""

    folder: Path
    episodes: int
    frames: int
    fps: int  # frames a second
    bytes: int
    seconds: float  # that writing took


def export_data(
    data: str | Path,
    out: str | Path,
    *,
    format: str = "lerobot",
    fps: int | None = None,
    images: bool = False,
    overrides: Overrides = (),
    on_progress: OnProgress | None = None,
) -> Exported:
    """Write all episodes of the store `data` into the new folder `out`.

    `fps` frames a second (None: those of the store); with `images` they stay exact, as PNG, in
    place of a video. The folder appears whole or not at all. Section of `overrides`: export.
    """
    from latentplan.data.export import lerobot
    from latentplan.data.store import ZarrStore

    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    out = local(out, where="export.out")
    filled = config.load(
        {"export": lerobot.Config},
        preset={"export": {"video": not images}},
        overrides=as_overrides(overrides),
    )
    with ZarrStore.open(data) as store:
        if not len(store):
            raise StoreError(f"{store.path}: is empty; there is nothing to export")
        rate, begun = lerobot.whole_fps(store.spec, fps), time.monotonic()
        total, frames = len(store), 0
        with lerobot.writing(out, store.spec, fps=rate, config=filled["export"]) as writer:
            for index in range(total):
                episode = store.episode(index)
                writer.append(episode)
                frames += len(episode) + 1
                if on_progress is not None:
                    figures = {"frames": frames}
                    on_progress(
                        Progress(f"export {format}", "episodes", index + 1, total, figures)
                    )
    return Exported(
        folder=out,
        episodes=total,
        frames=frames,
        fps=rate,
        bytes=sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        seconds=time.monotonic() - begun,
    )
