"""Drawings of an episode store: a contact sheet with histograms, or the video of an episode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentplan.data.images import SMALLEST, is_image
from latentplan.errors import ConfigError, StoreError
from latentplan.types import Array, ArraySpec, Episode, Label

if TYPE_CHECKING:
    from latentplan.data.store import ZarrStore

EPISODES = 6  # rows of the contact sheet
STEPS = 10  # columns of the contact sheet
PIXELS = 128  # smallest side of one image on it
SIDE = 320  # pixels, about the side of one image of a video
BAR = 24  # pixels of a line of text
INK = (228, 228, 231)  # its colour
PANELS = 5  # histograms in a row
FPS = 4  # of a video of actions that take their time


def cameras(store: ZarrStore) -> list[str]:
    """Return the observations to draw: images (h, w, 3) uint8, and planes (h, w) or (h, w, 1)."""
    arrays = store.spec.observation.items()
    return [key for key, array in arrays if is_image(array) or _is_plane(array)]


def draw(store: ZarrStore, file: Path, *, episode: int | None = None) -> None:
    """Write a PNG: episodes from top to bottom, their steps from left to right, histograms below.

    Of one `episode` every step is shown. Above an episode stand its labels. Histograms are of all
    actions, and of the numbers that episodes say. A store without images has histograms alone.
    """
    from PIL import Image

    keys = cameras(store)
    rows = [] if not keys else _sheet(store, keys, episode)
    width = max((row.shape[1] for row in rows), default=STEPS * (PIXELS + 2))
    rows.append(_histograms(store, width))
    padded = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0))) for r in rows]
    Image.fromarray(np.concatenate(padded)).save(file, format="png")


def video(store: ZarrStore, file: Path, *, episode: int) -> int:
    """Write an mp4 of an episode, all cameras side by side, and return its number of frames.

    Raises StoreError if the store has no images.
    """
    from latentplan.mp4 import encode

    keys = cameras(store)
    if not keys:
        raise StoreError(f"{store.path}: no images to make a video of; a .png shows its actions")
    dt = store.spec.dt
    frames = _frames(store.episode(episode), keys, f"episode {episode}")
    return encode(file, frames, fps=FPS if dt is None else max(1, round(1 / dt)))


def number(store: ZarrStore, episode: int) -> int:
    """Return the number of an episode that may count from the end; ConfigError beyond it."""
    try:
        return range(len(store))[episode]
    except IndexError:
        raise ConfigError(
            f"show.episode: {episode} is not within [{-len(store)}, {len(store) - 1}]"
        ) from None


def _is_plane(array: ArraySpec) -> bool:
    shape = array.shape
    return len(shape) >= 2 and min(shape[:2]) >= SMALLEST and shape[2:] in ((), (1,))


def _visible(images: Array) -> Array:
    """Return images (n, h, w, ...) as (n, h, w, 3) uint8; depth and the like in grey."""
    if images.shape[3:] == (3,):
        return images
    values = images.reshape(images.shape[:3]).astype(np.float64)
    seen = values[np.isfinite(values)]
    low, high = (seen.min(), seen.max()) if len(seen) else (0.0, 0.0)
    grey = (np.nan_to_num(values, posinf=high) - low) / max(high - low, 1e-9)
    return np.repeat((grey.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)


def _sheet(store: ZarrStore, keys: Sequence[str], episode: int | None) -> list[Array]:
    """Return rows (h, w, 3) of framed images, the cameras one above the other."""
    chosen = np.linspace(0, len(store) - 1, EPISODES) if episode is None else np.array([episode])
    rows = []
    for index in np.unique(chosen.astype(int)):
        whole = store.episode(int(index))
        observations = whole.observations
        if whole.labels:
            rows.append(_written(index, whole.labels))
        for key in keys:
            images = _visible(observations[key])
            steps = np.arange(len(images))
            if episode is None and len(steps) > STEPS:
                steps = np.linspace(0, len(steps) - 1, STEPS).astype(int)
            scale = -(-PIXELS // min(images.shape[1:3]))
            large = images[steps].repeat(scale, axis=1).repeat(scale, axis=2)
            for first in range(0, len(large), STEPS):
                part = [_framed(image) for image in large[first : first + STEPS]]
                rows.append(np.concatenate(part, axis=1))
    return rows


def _written(index: int, said: Sequence[Label]) -> Array:
    """Return a line (h, w, 3) of what an episode is about; its labels, with their steps."""
    from PIL import Image, ImageDraw, ImageFont

    ends = ["the end" if label.stop < 0 else label.stop for label in said]
    spans = [f"{x.start} to {end}: {x.text or x.task}" for x, end in zip(said, ends, strict=True)]
    line = Image.new("RGB", (STEPS * (PIXELS + 2), BAR))
    text = f"episode {index}   {'   '.join(spans)}"
    ImageDraw.Draw(line).text((4, BAR / 2), text, INK, ImageFont.load_default(13), anchor="lm")
    return np.asarray(line)


def _framed(image: Array) -> Array:
    return np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=255)


def _histograms(store: ZarrStore, width: int) -> Array:
    """Return an image (h, width, 3) of how often actions and numbers of episodes had a value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = _values(store)
    rows = -(-len(shown) // PANELS)
    figure = Figure(figsize=(width / 100, 1.8 * rows), dpi=100, layout="constrained")
    for place, (title, values) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(rows, PANELS, place)
        axes.set_title(title, fontsize=9)
        axes.hist(values, bins=40)
        axes.tick_params(labelsize=7)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :width, :3]


def _values(store: ZarrStore) -> Mapping[str, Array]:
    actions = np.delete(store.rows("action", 0, int(store.ends[-1])), store.ends - 1, axis=0)
    shown = {f"action {place}": values for place, values in enumerate(actions.T)}
    for name, values in store.info().items():
        if not np.isnan(values).all():
            shown[name] = values[np.isfinite(values)]
    return shown


def _frames(episode: Episode, keys: Sequence[str], title: str) -> Iterator[Array]:
    from PIL import Image, ImageDraw, ImageFont

    images = [_visible(episode.observations[key]) for key in keys]
    factors = [max(1, round(SIDE / max(p.shape[1:3]))) for p in images]
    widths = [p.shape[2] * f for p, f in zip(images, factors, strict=True)]
    tall = max(p.shape[1] * f for p, f in zip(images, factors, strict=True))
    size = (sum(widths) + sum(widths) % 2, tall + BAR + tall % 2)  # even, as mp4 wants it
    font = ImageFont.load_default(13)
    for step in range(len(episode) + 1):
        frame = Image.new("RGB", size)
        for camera, left in enumerate(np.cumsum([0, *widths[:-1]]).tolist()):
            image = images[camera][step]
            large = image.repeat(factors[camera], axis=0).repeat(factors[camera], axis=1)
            frame.paste(Image.fromarray(large), (left, BAR))
        numbers = ", ".join(f"{x:.2f}" for x in episode.actions[step - 1]) if step else "start"
        line = f"{title}  step {step}  {numbers}"
        ImageDraw.Draw(frame).text((4, BAR / 2), line, INK, font, anchor="lm")
        yield np.asarray(frame)
