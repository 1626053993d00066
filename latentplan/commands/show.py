"""`latentplan show`: what is in an episode store or a run, in words and as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentplan.errors import ConfigError
from latentplan.files import replacing
from latentplan.types import Spec

if TYPE_CHECKING:
    from latentplan.data.store import ZarrStore

COLUMNS = 3  # of the curves
LONG = 8  # lists are counted, not shown


def run(
    what: str, *, out: str | None = None, episode: int | None = None, data: str | None = None
) -> None:
    """Print what is in an episode store, a run folder or a checkpoint, and draw it to `out`.

    Of a store, a .png is a contact sheet with histograms (default: `DATA.png` beside it), a .mp4
    the film of an episode; with `episode` a sheet shows all of that one. Of a run, a .png has its
    curves (`RUN/curves.png`); of a VideoWorld there are pictures beside it, of held-out episodes of
    `data`, by default what it was trained on. Raises StoreError or CheckpointError where `what` is
    neither, ConfigError where `out` or `episode` cannot be.
    """
    path = Path(what)
    is_store = "://" in what or path.suffix == ".zarr" or (path / "zarr.json").exists()
    suffixes = (".png", ".mp4") if is_store else (".png",)
    if out is not None and Path(out).suffix not in suffixes:
        raise ConfigError(f"--out: {out!r} must end with {' or '.join(suffixes)}")
    if is_store:
        beside = Path(path.name) if "://" in what else path
        _show_store(what, Path(out) if out else beside.with_suffix(".png"), episode)
    elif episode is not None:
        raise ConfigError(f"--episode: {what} is a run; only stores have episodes")
    else:
        _show_run(what, Path(out) if out else None, data)


def _show_store(what: str, out: Path, episode: int | None) -> None:
    from latentplan.commands import show_data
    from latentplan.data.store import ZarrStore

    with ZarrStore.open(what) as store:
        transitions = int(store.ends[-1]) - len(store) if len(store) else 0
        size = store.disk_bytes() / 1e6
        print(f"{what}: {len(store)} episodes, {transitions} transitions, {size:.1f} MB")
        _print_spec(store.spec)
        _print_mapping("settings", store.settings)
        if not len(store):
            return
        _print_values(store)
        _print_labels(store)
        chosen = None if episode is None else show_data.number(store, episode)
        if out.suffix == ".mp4":
            frames = show_data.film(store, out, episode=chosen or 0)
            print(f"film         {out}, {frames} frames of episode {chosen or 0}")
        else:
            _write(out, lambda draft: show_data.draw(store, draft, episode=chosen))


def _print_values(store: ZarrStore) -> None:
    lengths = np.diff(store.ends, prepend=0) - 1
    print(f"lengths      {lengths.min()} to {lengths.max()}, median {np.median(lengths):g}")
    actions = np.delete(store.rows("action", 0, int(store.ends[-1])), store.ends - 1, axis=0)
    for name, value in (
        ("least", actions.min(0)),
        ("mean", actions.mean(0)),
        ("largest", actions.max(0)),
    ):
        print(f"action {name:8} {', '.join(f'{x:.3f}' for x in value)}")
    print(f"seeds        {store.episode(0).seed} (first) to {store.episode(-1).seed} (last)")
    for name, values in store.info().items():
        said = values[~np.isnan(values)]
        if len(said):
            share = "" if len(said) == len(values) else f", of {len(said)} episodes"
            print(
                f"episodes     {name}: {said.min():.4g} to {said.max():.4g}, "
                f"mean {said.mean():.4g}, sum {said.sum():.4g}{share}"
            )


def _print_labels(store: ZarrStore) -> None:
    said = [label for _, label in store.labels()]
    for task, count in sorted(Counter(label.task or label.text for label in said).items()):
        texts = {label.text for label in said if (label.task or label.text) == task}
        words = min(texts) if len(texts) == 1 else f"{min(texts)!r} and {len(texts) - 1} others"
        print(f"labels       {task}: {count}, {words}")


def _show_run(what: str, out: Path | None, data: str | None) -> None:
    from latentplan.training import checkpoint, curves

    file = checkpoint.find(what)
    weights, header = checkpoint.read(file, format=checkpoint.FORMAT)
    numbers = sum(w.numel() for w in weights.values())
    print(f"{file}: {header['name']}, {numbers} weights, {file.stat().st_size / 1e6:.1f} MB")
    print(f"step         {header['step']}")
    _print_mapping("held out", header["metrics"])
    _print_mapping("config", header["config"])
    _print_spec(Spec.from_json(header["spec"]))
    points = curves.read(file.parent / "log.jsonl")
    if points:
        _write(out or file.parent / "curves.png", lambda draft: _draw_curves(points, draft))
    if header["name"] == "videoworld":
        _show_videoworld(file, (out or file).parent, data)


def _show_videoworld(file: Path, folder: Path, data: str | None) -> None:
    """Draw what a VideoWorld makes of its data into a folder."""
    import yaml

    from latentplan.commands import show_videoworld
    from latentplan.data.store import ZarrStore
    from latentplan.models.videoworld.videoworld import VideoWorld
    from latentplan.training import checkpoint

    told = file.parent / "config.yaml"
    if data is None and told.is_file():
        data = str(yaml.safe_load(told.read_text(encoding="utf-8"))["data"]["path"])
        if "://" not in data and not Path(data).exists():
            print(f"pictures     none: its data {data} are not there any more; give --data DATA")
            return
    if data is None:
        print("pictures     none: the checkpoint does not say what it was trained on; give --data")
        return
    model = checkpoint.load(file).model
    assert isinstance(model, VideoWorld)
    with ZarrStore.open(data) as store:
        for picture in show_videoworld.draw(model, store, folder):
            print(f"picture      {picture}")


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


def _print_spec(spec: Spec) -> None:
    print(f"env          {spec.env or 'unknown'}, {_seconds(spec.dt)}")
    for key, array in spec.observation.items():
        privileged = ", privileged" if key in spec.privileged else ""
        print(f"observation  {key} {array.shape} {array.dtype}{privileged}: {array.meaning}")
    print(f"action       ({spec.action.size},) float32: {spec.action.meaning}")
    print(f"bounds       {list(spec.action.low)} to {list(spec.action.high)}")
    if spec.action.convention is not None:
        said = asdict(spec.action.convention).items()
        print(f"convention   {', '.join(f'{name} {value}' for name, value in said if value != '')}")


def _seconds(dt: float | None) -> str:
    return "an action takes its time" if dt is None else f"{dt:g} s between observations"


def _print_mapping(title: str, values: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _print_mapping(title, value, f"{prefix}{key}.")
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            if isinstance(value, list) and len(value) > LONG:
                shown = f"{len(value)} values"
            print(f"{title:12} {prefix}{key} = {shown}")


def _write(out: Path, draw: Callable[[Path], None]) -> None:
    """Let `draw` write a file that is there whole or not at all, and say where it is."""
    with replacing(out) as partial:
        draw(partial)
    print(f"picture      {out}")
