"""What an episode store or a run holds, in words and images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentplan import registry
from latentplan.errors import ConfigError
from latentplan.files import replacing
from latentplan.protocols import Illustrated
from latentplan.types import Spec
from latentplan.urls import HIDDEN, is_url, local, place

if TYPE_CHECKING:
    from latentplan.data.store import ZarrStore

COLUMNS = 3  # of the curves
LONG = 8  # lists are counted, not shown


def describe(
    what: str | Path,
    *,
    out: str | Path | None = None,
    episode: int | None = None,
    data: str | Path | None = None,
) -> Iterator[str]:
    """Yield lines about an episode store, a run folder or a checkpoint, and draw it to `out`.

    Of a store, a .png is a contact sheet with histograms (default: `DATA.png` beside it), a .mp4
    the video of an episode; with `episode` a sheet shows all of that one. Of a run, a .png has its
    curves (`RUN/curves.png`); a model that is `Illustrated` draws images beside it, of held-out
    episodes of `data`, by default what it was trained on. Raises StoreError or CheckpointError if
    `what` is neither, ConfigError for an `out` or `episode` that does not fit.
    """
    what, path = str(what), Path(what)
    is_store = is_url(what) or path.suffix == ".zarr" or (path / "zarr.json").exists()
    suffixes = (".png", ".mp4") if is_store else (".png",)
    out = None if out is None else local(out, where="show.out")
    if out is not None and out.suffix not in suffixes:
        raise ConfigError(f"show.out: {str(out)!r} must end with {' or '.join(suffixes)}")
    if is_store:
        beside = Path(Path(place(what)).name) if is_url(what) else path
        yield from _store(what, out or beside.with_suffix(".png"), episode)
    elif episode is not None:
        raise ConfigError(f"show.episode: {what} is a run; only stores have episodes")
    else:
        yield from _run(what, out, data)


def _store(what: str, out: Path, episode: int | None) -> Iterator[str]:
    from latentplan.api import store_images
    from latentplan.data.store import ZarrStore

    with ZarrStore.open(what) as store:
        transitions = int(store.ends[-1]) - len(store) if len(store) else 0
        size = store.disk_bytes() / 1e6
        yield f"{store.path}: {len(store)} episodes, {transitions} transitions, {size:.1f} MB"
        yield from _spec(store.spec)
        yield from _mapping("settings", store.settings)
        if not len(store):
            return
        yield from _values(store)
        yield from _labels(store)
        chosen = None if episode is None else store_images.number(store, episode)
        if out.suffix == ".mp4":
            frames = store_images.video(store, out, episode=chosen or 0)
            yield f"video        {out}, {frames} frames of episode {chosen or 0}"
        else:
            yield _draw(out, lambda draft: store_images.draw(store, draft, episode=chosen))


def _values(store: ZarrStore) -> Iterator[str]:
    lengths = np.diff(store.ends, prepend=0) - 1
    yield f"lengths      {lengths.min()} to {lengths.max()}, median {np.median(lengths):g}"
    actions = np.delete(store.rows("action", 0, int(store.ends[-1])), store.ends - 1, axis=0)
    for name, value in (
        ("least", actions.min(0)),
        ("mean", actions.mean(0)),
        ("largest", actions.max(0)),
    ):
        yield f"action {name:8} {', '.join(f'{x:.3f}' for x in value)}"
    yield f"seeds        {store.episode(0).seed} (first) to {store.episode(-1).seed} (last)"
    for name, values in store.info().items():
        said = values[~np.isnan(values)]
        if len(said):
            share = "" if len(said) == len(values) else f", of {len(said)} episodes"
            yield (
                f"episodes     {name}: {said.min():.4g} to {said.max():.4g}, "
                f"mean {said.mean():.4g}, sum {said.sum():.4g}{share}"
            )


def _labels(store: ZarrStore) -> Iterator[str]:
    said = [label for _, label in store.labels()]
    for task, count in sorted(Counter(label.task or label.text for label in said).items()):
        texts = {label.text for label in said if (label.task or label.text) == task}
        words = min(texts) if len(texts) == 1 else f"{min(texts)!r} and {len(texts) - 1} others"
        yield f"labels       {task}: {count}, {words}"


def _run(what: str, out: Path | None, data: str | Path | None) -> Iterator[str]:
    from latentplan.training import checkpoint, curves

    file = checkpoint.find(what)
    header, numbers = checkpoint.read_header(file), checkpoint.numbers(file)
    yield f"{file}: {header.name}, {numbers} weights, {file.stat().st_size / 1e6:.1f} MB"
    yield f"step         {header.step}"
    yield from _mapping("held out", header.metrics)
    yield from _mapping("config", header.config)
    yield from _spec(header.spec)
    points = curves.read(file.parent / "log.jsonl")
    if points:
        yield _draw(out or file.parent / "curves.png", lambda draft: _draw_curves(points, draft))
    kind = header.kind
    if kind in registry.BUILT_IN and header.name in registry.names(kind):
        if issubclass(registry.get(kind, header.name), Illustrated):
            model = checkpoint.load(file, kind=kind).model
            yield from _illustrations(model, file, (out or file).parent, data)


def _illustrations(
    model: Illustrated, file: Path, folder: Path, data: str | Path | None
) -> Iterator[str]:
    """Draw what a model has learnt of its data into a folder."""
    from latentplan.data.store import ZarrStore
    from latentplan.training import run_folder

    if data is None and (file.parent / run_folder.CONFIG).is_file():
        data = run_folder.data_path(file.parent)
        if HIDDEN in data:
            yield f"images       none: a run keeps no password of its data {data}; name other data"
            return
        if not is_url(data) and not Path(data).exists():
            yield f"images       none: its data {data} do not exist any more; name other data"
            return
    if data is None:
        yield "images       none: the checkpoint does not say what it was trained on; name data"
        return
    with ZarrStore.open(data) as store:
        for image, about in model.illustrate(store, folder):
            yield f"image        {image}: {about}" if about else f"image        {image}"


def _draw_curves(points: Sequence[Mapping[str, float]], file: Path) -> None:
    """Draw each curve of a log.jsonl over the training steps."""
    from matplotlib.figure import Figure

    names = sorted({name for point in points for name in point} - {"step"})
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.8 * rows), layout="constrained")
    for position, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, COLUMNS, position, title=name, xlabel="step")
        known = [(point["step"], point[name]) for point in points if name in point]
        axes.plot(*zip(*known, strict=True))
        axes.grid(alpha=0.3)
    figure.savefig(file, format="png", dpi=100)


def _spec(spec: Spec) -> Iterator[str]:
    yield f"env          {spec.env or 'unknown'}, {_seconds(spec.dt)}"
    for key, array in spec.observation.items():
        privileged = ", privileged" if key in spec.privileged else ""
        yield f"observation  {key} {array.shape} {array.dtype}{privileged}: {array.meaning}"
    yield f"action       ({spec.action.size},) float32: {spec.action.meaning}"
    yield f"bounds       {list(spec.action.low)} to {list(spec.action.high)}"
    if spec.action.convention is not None:
        said = asdict(spec.action.convention).items()
        yield f"convention   {', '.join(f'{name} {value}' for name, value in said if value != '')}"


def _seconds(dt: float | None) -> str:
    return "an action takes its time" if dt is None else f"{dt:g} s between observations"


def _mapping(title: str, values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _mapping(title, value, f"{prefix}{key}.")
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            if isinstance(value, list) and len(value) > LONG:
                shown = f"{len(value)} values"
            yield f"{title:12} {prefix}{key} = {shown}"


def _draw(out: Path, draw: Callable[[Path], None]) -> str:
    """Let `draw` write a file that is there whole or not at all; return a line about it."""
    with replacing(out) as partial:
        draw(partial)
    return f"image        {out}"
