"""Figures of a VideoWorld on held-out episodes: reconstructions, futures, effects of codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latentplan.data.windows import is_test
from latentplan.errors import StoreError
from latentplan.files import replacing
from latentplan.protocols import EpisodeStore
from latentplan.types import Array, Episode, Tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from latentplan.models.videoworld.videoworld import VideoWorld

EPISODES = 40  # held-out episodes in the figures, at most
SHOWN = 8  # images reconstructed
CLIPS = 4  # futures, each of another task
VARIED = 9  # values tried for one code
PIXELS, GAP = 96, 4  # the side of an image as it is drawn, and the gap between two
LEFT, TOP, NOTE = 100, 60, 30  # pixels for names, for the title, for a line of notes
STRONGER = 2.0  # factor by which changes are amplified


@dataclass(frozen=True)
class Encoded:
    """Held-out frames with their tokens, codes and reconstructions; n frames, H codes, K tokens."""

    images: Mapping[str, Array]  # a camera: (n, h, w, 3) uint8
    reconstructed: Mapping[str, Array]  # the same, decoded from tokens
    tokens: Array  # (n, K)
    codes: Array  # (n, H) of the frames after each frame
    actions: Array  # (n, A) after each frame; NaN after an episode's last
    psnr: Mapping[str, float]  # a camera: dB, mean over frames


@dataclass(frozen=True)
class Clip:
    """A stretch of an episode: the context up to frame t, and the H frames after it."""

    task: str  # name of the task, and its sentence
    text: str
    before: Mapping[str, Array]  # a camera: (T, h, w, 3), frame t the last
    after: Mapping[str, Array]  # (H, h, w, 3)


def draw(model: VideoWorld, store: EpisodeStore, folder: Path) -> Iterator[tuple[Path, str]]:
    """Write reconstructions, futures, codes and usage (.png) into a folder.

    Yields each file with its figures. Raises StoreError if the store lacks what the model observes.
    """
    missing = [key for key in model.config.images if key not in store.spec.observation]
    if missing:
        known = ", ".join(store.spec.observation)
        need = f"which the model needs, only {known}"
        raise StoreError(f"data: has no {missing[0]!r}, {need}")
    episodes = held_out(store)
    encoded = encode(model, episodes)
    chosen = clips(model, episodes)
    psnr = [f"{key} {db:.1f} dB" for key, db in encoded.psnr.items()]
    used = []
    for index, each in enumerate(encoded.codes.T, start=1):
        _, count, perplexity = code_usage(each, model.ldm.vocabulary)
        used.append(f"code {index}: {count} of {model.ldm.vocabulary} in use, "
                    f"perplexity {perplexity:.1f}")  # fmt: skip
    figures: dict[str, tuple[str, Callable[[], Figure]]] = {
        "reconstructions": (
            f"held out, reconstructed: {', '.join(psnr)} over {len(encoded.tokens)} images",
            lambda: reconstructions(encoded),
        ),
        "futures": ("", lambda: futures(model, chosen)),
        "codes": ("", lambda: codes(model, chosen[0], encoded)),
        "usage": ("; ".join(used), lambda: usage(model, encoded)),
    }
    for name, (about, figure) in figures.items():
        with replacing(folder / f"{name}.png") as partial:
            figure().savefig(partial, dpi=100)
        yield folder / f"{name}.png", about


def held_out(store: EpisodeStore, *, fraction: float = 0.1, most: int = EPISODES) -> list[Episode]:
    """Return episodes that were not trained on; StoreError if there are none."""
    numbers = np.flatnonzero(is_test(np.arange(len(store)), fraction))[:most]
    if not len(numbers):
        raise StoreError(f"data: has no held-out episodes; need about {1 / fraction:.0f}")
    return [store.episode(int(number)) for number in numbers]


@torch.no_grad()
def encode(model: VideoWorld, episodes: Sequence[Episode]) -> Encoded:
    """Return all frames encoded and decoded; after an episode's end its last frame repeats."""
    keys = model.config.images
    parts: dict[str, list[Array]] = {name: [] for name in ("tokens", "codes", "actions")}
    true: dict[str, list[Array]] = {key: [] for key in keys}
    again: dict[str, list[Array]] = {key: [] for key in keys}
    for episode in episodes:
        frames = {key: torch.from_numpy(episode.observations[key]) for key in keys}
        tokens = model.tokenizer.encode({key: x[None] for key, x in frames.items()}).ids
        parts["tokens"].append(tokens[0].numpy())
        parts["codes"].append(model.ldm.encode_video(frames).numpy())
        last = np.full((1, episode.actions.shape[1]), np.nan, np.float32)
        parts["actions"].append(np.concatenate([episode.actions, last]))
        for key, reconstructed in model.tokenizer.decode(Tokens(tokens)).items():
            true[key].append(episode.observations[key])
            again[key].append(reconstructed[0].numpy())
    joined = {name: np.concatenate(each) for name, each in parts.items()}
    images = {key: np.concatenate(each) for key, each in true.items()}
    reconstructed_all = {key: np.concatenate(each) for key, each in again.items()}
    psnr = {key: _psnr(images[key], reconstructed_all[key]) for key in keys}
    return Encoded(images, reconstructed_all, **joined, psnr=psnr)


def clips(model: VideoWorld, episodes: Sequence[Episode], *, most: int = CLIPS) -> list[Clip]:
    """Return one clip a task, that of the largest change, of tasks spread over the alphabet.

    Raises StoreError if all episodes are shorter than a clip.
    """
    keys, c = model.config.images, model.ldm.config
    first: dict[str, Episode] = {}
    for episode in episodes:
        if len(episode) >= c.span:
            first.setdefault(episode.labels[0].task if episode.labels else "", episode)
    if not first:
        raise StoreError(f"all held-out episodes are shorter than {c.span} actions, a clip")
    names = sorted(first)
    chosen = [names[int(i)] for i in np.linspace(0, len(names) - 1, min(most, len(names)))]
    made = []
    for name in chosen:
        videos = {key: first[name].observations[key] for key in keys}
        static = videos[keys[0]].astype(np.int16)
        moved = np.abs(static[c.span :] - static[: -c.span]).mean((1, 2, 3))
        start = int(moved.argmax())
        rows = slice(start + c.stride, start + c.span + 1, c.stride)
        labels = first[name].labels
        made.append(
            Clip(
                name,
                labels[0].text if labels else "",
                {k: x[max(0, start + 1 - model.context) : start + 1] for k, x in videos.items()},
                {k: x[rows] for k, x in videos.items()},
            )
        )
    return made


def reconstructions(encoded: Encoded) -> Figure:
    """Return images with their reconstructions below."""
    count = len(encoded.tokens)
    columns = np.linspace(0, count - 1, min(SHOWN, count)).astype(int)
    rows = {}
    for key, images in encoded.images.items():
        rows[f"{key}\ntruth"] = [images[i] for i in columns]
        decoded = encoded.reconstructed[key]
        rows[f"tokens,\n{encoded.psnr[key]:.1f} dB"] = [decoded[i] for i in columns]
    return _grid("Images, and their reconstructions from tokens", rows)


@torch.no_grad()
def futures(model: VideoWorld, chosen: Sequence[Clip]) -> Figure:
    """Return the frames that follow: true, decoded from their codes, generated, predicted."""
    keys = model.config.images
    rows: dict[str, list[Array]] = {}
    c = model.ldm.config
    steps = ["t", *(f"t+{h * c.stride}" for h in range(1, c.horizon + 1))]
    for number, clip in enumerate(chosen):
        now = {key: torch.from_numpy(x[-1:])[None] for key, x in clip.before.items()}
        known = model.ldm.quantize_clip(_joined(clip))
        lines = {"truth": clip.after, "its codes": _decoded(model, now, known)}
        generated, imagined = imagine(model, clip)
        if generated is not None:
            lines["generated\ncodes"] = _decoded(model, now, generated)
        if c.stride == 1:
            lines["frame by\nframe"] = imagined
        for name, after in lines.items():
            label = clip.task.replace("_", "\n") if name == "truth" else name
            shown = [p for key in keys for p in (clip.before[key][-1], *after[key])]
            rows[f"{label}\0{number}"] = shown  # unlike any other row
    return _grid("What follows a frame t: each camera's H frames", rows, titles=steps * len(keys))


@torch.no_grad()
def imagine(model: VideoWorld, clip: Clip) -> tuple[torch.Tensor | None, dict[str, Array]]:
    """Return the likeliest codes (1, H) after a clip's frame t, and as many predicted frames.

    The transformer generates codes for each frame first; None if it has no codes.
    """
    transformer = model.transformer
    before = {k: torch.from_numpy(x)[None] for k, x in clip.before.items()}
    tokens = model.tokenizer.encode(before).ids
    known = [name for name in (clip.task, clip.text) if name in transformer.config.tasks]
    task = torch.tensor([transformer.task_id(known[0]) if known else 0])
    first, frames = None, []
    for _ in range(len(next(iter(clip.after.values())))):
        chosen = transformer.generate(tokens[:, -model.context :], task).codes[:, 0]
        first = chosen if first is None else first
        after = transformer.imagine(tokens, chosen, task)
        tokens = torch.cat([tokens, after[:, None]], dim=1)
        frames.append(after)
    reconstructed = model.tokenizer.decode(Tokens(torch.stack(frames, dim=1)))
    horizon = model.transformer.config.horizon
    full = horizon == model.ldm.config.horizon  # the decoder takes all codes or none
    return first if full else None, {key: x[0].numpy() for key, x in reconstructed.items()}


@torch.no_grad()
def codes(model: VideoWorld, clip: Clip, encoded: Encoded) -> Figure:
    """Return one start frame with one code varied: the decoded frame, and its change below.

    Code k takes the values most used there; the codes before it are the true ones.
    """
    h, stride = model.ldm.config.horizon, model.ldm.config.stride
    whole = _joined(clip)
    truth = model.ldm.quantize_clip(whole)
    now = {key: x[:, :1] for key, x in whole.items()}
    rows: dict[str, list[Array]] = {}
    notes: dict[str, list[str]] = {}
    for index in range(h):
        used = np.bincount(encoded.codes[:, index], minlength=model.ldm.vocabulary)
        likely = [int(code) for code in used.argsort()[::-1][:VARIED] if used[code]]
        tried = [int(truth[0, index]), *likely]
        varied = truth.repeat(len(tried), 1)
        varied[:, index] = torch.tensor(tried)
        repeated = {key: x.expand(len(tried), -1, -1, -1, -1) for key, x in now.items()}
        reconstructed = model.ldm.decode(repeated, varied)
        for key, frames in reconstructed.items():
            before = frames[:, index - 1] if index else repeated[key][:, 0]
            change = frames[:, index].float() - before.float()
            new = (128 + STRONGER * change).clamp(0, 255).byte()
            rows[f"code {index + 1}, t+{(index + 1) * stride}\n{key}"] = [*frames[:, index].numpy()]
            rows[f"new in it\0{index} {key}"] = [*new.numpy()]
        notes[f"new in it\0{index} {key}"] = [
            f"{code}: {used[code] / used.sum():.0%}\n{_motion(encoded, index, code)}"
            for code in tried
        ]
    title = f"{clip.task}: one code varied, the truth's first. Below: its number, how often it is\n"
    title += "used at this place, the mean of the action's first three numbers where it is"
    return _grid(title, rows, notes=notes)


def usage(model: VideoWorld, encoded: Encoded) -> Figure:
    """Return the usage of the codes at each index, and of the frame tokens."""
    from matplotlib.figure import Figure

    panels = {
        f"code {h}": (each, model.ldm.vocabulary) for h, each in enumerate(encoded.codes.T, start=1)
    }
    panels["all codes"] = (encoded.codes.ravel(), model.ldm.vocabulary)
    per = encoded.tokens.shape[1] // len(model.config.images)
    for view, name in enumerate(model.config.images):
        ids = encoded.tokens[:, view * per : (view + 1) * per].ravel()
        panels[f"tokens of {name}"] = (ids, model.tokenizer.vocabulary)
    columns = 3
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * lines), layout="constrained")
    for position, (name, (ids, size)) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, position)
        share, used, perplexity = code_usage(ids, size)
        axes.stairs(np.sort(share)[::-1], fill=True)
        axes.set_title(f"{name}\n{used} of {size} used, perplexity {perplexity:.1f}", fontsize=9)
        axes.set_xlabel("codes, the most used first", fontsize=8)
        axes.set_ylabel("share", fontsize=8)
    return figure


def code_usage(ids: Array, size: int) -> tuple[Array, int, float]:
    """Return the share of each of `size` ids, how many are used, and their perplexity."""
    share = np.bincount(ids.ravel(), minlength=size) / ids.size
    present = share[share > 0]
    return share, len(present), float(np.exp(-(present * np.log(present)).sum()))


def _joined(clip: Clip) -> dict[str, torch.Tensor]:
    """Return the images (1, H + 1, h, w, 3) of each camera: frame t and those after it."""
    return {
        key: torch.from_numpy(np.concatenate([x[-1:], clip.after[key]]))[None]
        for key, x in clip.before.items()
    }


def _decoded(model: VideoWorld, now: Mapping[str, Any], codes: torch.Tensor) -> dict[str, Array]:
    return {key: x[0].numpy() for key, x in model.ldm.decode(dict(now), codes).items()}


def _motion(encoded: Encoded, index: int, code: int) -> str:
    """Return the mean of the first three numbers of the action that leads to a code's frame."""
    rows = np.flatnonzero(encoded.codes[:, index] == code) + index
    actions = encoded.actions[rows[rows < len(encoded.actions)], :3]
    if np.isnan(actions).all():
        return "-"
    return " ".join(f"{x:+.1f}" for x in np.nanmean(actions, axis=0))


def _psnr(a: Array, b: Array) -> float:
    """Return the mean over images (n, h, w, 3) uint8 of the peak signal-to-noise ratio, dB."""
    error = ((a.astype(np.float32) - b) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / error.clip(1e-3))).mean())


def _grid(
    title: str,
    rows: Mapping[str, Sequence[Array]],
    *,
    titles: Sequence[str] = (),
    notes: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Return rows of images, each labelled with its name up to a NUL."""
    from matplotlib.figure import Figure

    notes = notes or {}
    columns = max(len(row) for row in rows.values())
    cell = PIXELS + GAP
    tops, height = {}, TOP  # of each row, in pixels
    for name in rows:
        tops[name], height = height, height + cell + (NOTE if name in notes else 0)
    canvas = np.full((height, LEFT + columns * cell, 3), 255, np.uint8)
    for name, images in rows.items():
        for column, image in enumerate(images):
            pixel = (np.arange(PIXELS) * len(image)) // PIXELS  # the nearest one
            y, x = tops[name], LEFT + column * cell
            canvas[y : y + PIXELS, x : x + PIXELS] = image[pixel][:, pixel]
    figure = Figure(figsize=(canvas.shape[1] / 100, height / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.axis("off")
    middle: dict[str, Any] = {"ha": "center", "linespacing": 1.1}
    axes.text(canvas.shape[1] / 2, 5, title, fontsize=9, va="top", **middle)
    for column, text in enumerate(titles):
        axes.text(LEFT + (column + 0.5) * cell, TOP - 4, text, fontsize=8, va="bottom", **middle)
    for name, top in tops.items():
        label = name.partition("\0")[0]
        axes.text(LEFT - 8, top + PIXELS / 2, label, fontsize=8, ha="right", va="center")
        for column, text in enumerate(notes.get(name, ())):
            where = LEFT + (column + 0.5) * cell, top + PIXELS + 4
            axes.text(*where, text, fontsize=6.5, va="top", **middle)
    return figure
