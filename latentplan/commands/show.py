"""`latentplan show`: what is in an episode store or a run, in words and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentplan.files import replacing
from latentplan.types import Array, Spec

if TYPE_CHECKING:
    from latentplan.data.store import ZarrStore

EPISODES = 6  # rows of the contact sheet
STEPS = 10  # columns of the contact sheet
COLUMNS = 3  # of the curves
PIXELS = 128  # smallest side of one picture on it


def run(what: str, *, out: str | None = None) -> None:
    """Print what is in an episode store, a run folder or a checkpoint, and write a PNG of it.

    The picture is a contact sheet of a store (`DATA.png` beside it), or a run's curves
    (`RUN/curves.png`). Raises StoreError or CheckpointError where `what` is neither.
    """
    path = Path(what)
    if path.suffix == ".zarr" or (path / "zarr.json").exists():
        _show_store(path, Path(out) if out else path.with_suffix(".png"))
    else:
        _show_run(what, Path(out) if out else None)


def _show_store(path: Path, out: Path) -> None:
    from latentplan.data.store import ZarrStore

    with ZarrStore.open(path) as store:
        transitions = int(store.ends[-1]) - len(store) if len(store) else 0
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        print(f"{path}: {len(store)} episodes, {transitions} transitions, {size / 1e6:.1f} MB")
        _print_spec(store.spec)
        _print_mapping("settings", store.settings)
        if not len(store):
            return
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
        cameras = [k for k, a in store.spec.observation.items() if _is_picture(a.shape, a.dtype)]
        if cameras:
            _write(out, lambda draft: _contact_sheet(store, cameras, draft))


def _contact_sheet(store: ZarrStore, cameras: Sequence[str], file: Path) -> None:
    """Draw an episode a row, its steps from left to right, and every camera one above the other."""
    from PIL import Image

    rows = []
    for index in np.unique(np.linspace(0, len(store) - 1, EPISODES).astype(int)):
        episode = store.episode(int(index))
        for key in cameras:
            frames = episode.observations[key]
            scale = -(-PIXELS // min(frames.shape[1:3]))
            steps = np.linspace(0, len(frames) - 1, STEPS).astype(int)
            large = frames[steps].repeat(scale, axis=1).repeat(scale, axis=2)
            rows.append(np.concatenate([_framed(picture) for picture in large], axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0))) for r in rows]
    Image.fromarray(np.concatenate(padded)).save(file, format="png")


def _framed(picture: Array) -> Array:
    return np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=255)


def _is_picture(shape: tuple[int, ...], dtype: str) -> bool:
    return len(shape) == 3 and shape[-1] == 3 and dtype == "uint8"


def _show_run(what: str, out: Path | None) -> None:
    from latentplan.training import checkpoint, curves

    file = checkpoint.find(what)
    weights, header = checkpoint.read(file, format=checkpoint.FORMAT)
    numbers = sum(w.numel() for w in weights.values())
    print(f"{file}: {header['model']}, {numbers} weights, {file.stat().st_size / 1e6:.1f} MB")
    print(f"step         {header['step']}")
    _print_mapping("held out", header["metrics"])
    _print_mapping("config", header["config"])
    _print_spec(Spec.from_json(header["spec"]))
    points = curves.read(file.parent / "log.jsonl")
    if points:
        _write(out or file.parent / "curves.png", lambda draft: _draw_curves(points, draft))


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


def _seconds(dt: float | None) -> str:
    return "an action takes its time" if dt is None else f"{dt:g} s between observations"


def _print_mapping(title: str, values: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _print_mapping(title, value, f"{prefix}{key}.")
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            print(f"{title:12} {prefix}{key} = {shown}")


def _write(out: Path, draw: Callable[[Path], None]) -> None:
    """Let `draw` write a file that is there whole or not at all, and say where it is."""
    with replacing(out) as partial:
        draw(partial)
    print(f"picture      {out}")
