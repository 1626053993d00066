"""POVT on squares that pass behind a bar: boxes set by the user, memory of objects, its cost.

    python benchmarks/povt_squares.py data /tmp/squares.zarr
    latentplan train povt --data /tmp/squares.zarr --run /tmp/povt ...   (docs/results/povt.md)
    python benchmarks/povt_squares.py figures /tmp/povt /tmp/no_objects /tmp/full \
      --json benchmarks/povt.json --image docs/images/video/povt.png

A red and a blue square of 6 pixels, each light or dark, cross images of 32 pixels and turn at the
edges. A bar of 14 pixels hides each of them for 3 to 5 frames: when and where it comes out, and how
light it is, is known from frames before alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from latentplan import png
from latentplan.data.store import ZarrStore
from latentplan.evaluation.provenance import provenance
from latentplan.models.povt.boxes import SYMBOLS, ColourBoxes
from latentplan.models.povt.povt import POVT
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, ArraySpec, Batch, Episode, Spec

PIXELS, SIZE, FRAMES, BAR = 32, 6, 18, (9, 23)  # of an image, a square, an episode, the bar
LONGER = 28  # frames of a held-out clip
EPISODES, SEED = 700, 0
GROUND, GREY = (30, 30, 30), (120, 120, 120)
SHADES = (((235, 60, 60), (150, 20, 20)), ((70, 90, 240), (20, 30, 150)))  # light, dark
COLOURS = [[level for shade in shades for level in shade] for shades in SHADES]
FIND = ColourBoxes(COLOURS, [*GROUND, *GREY], tolerance=60, least=4)
NEAR, PIXEL_MEMORY = 2, 1  # pixels of a hit; frames before, of tokens that POVT attends to
CONTEXT = 8  # frames that models are given
SPEC = Spec(
    {"rgb": ArraySpec((PIXELS, PIXELS, 3), "uint8")},
    ActionSpec((-1.0,), (1.0,), "none: the squares move by themselves"),
    dt=1.0,
)


def clip(rng: np.random.Generator, frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """Return images (t, 32, 32, 3) and top left corners (t, 2, 2) x, y of both squares."""
    images = np.empty((frames, PIXELS, PIXELS, 3), np.uint8)
    images[:] = GROUND
    corners = np.empty((frames, 2, 2), int)
    far = PIXELS - SIZE
    for number, shades in enumerate(SHADES):
        at = rng.uniform(0, 2 * far) + rng.uniform(2, 3) * np.arange(frames)
        corners[:, number, 0] = np.round(far - np.abs(at % (2 * far) - far))
        low = 1 + number * PIXELS // 2
        corners[:, number, 1] = rng.integers(low, low + PIXELS // 2 - SIZE - 1)
        shade = shades[int(rng.integers(2))]
        for image, (x, y) in zip(images, corners[:, number], strict=True):
            image[y : y + SIZE, x : x + SIZE] = shade
    images[:, :, BAR[0] : BAR[1]] = GREY
    return images, corners


def data(path: Path) -> None:
    """Write the store."""
    with ZarrStore.create(path, SPEC) as store:
        for number in range(EPISODES):
            images, _ = clip(np.random.default_rng((SEED, number)))
            none = np.zeros((FRAMES - 1, 1), np.float32)
            store.append(Episode({"rgb": images}, none, none[:, 0]))


def held_out(count: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Return images (n, t, 32, 32, 3) of new clips, and the corners (n, t, 2, 2)."""
    rngs = [np.random.default_rng((seed, 10_000 + number)) for number in range(count)]
    made = [clip(rng, LONGER) for rng in rngs]
    return torch.from_numpy(np.stack([m[0] for m in made])), np.stack([m[1] for m in made])


def hidden(corners: np.ndarray) -> np.ndarray:
    """Return which squares (n, t, 2) the bar hides."""
    x = corners[..., 0]
    found: np.ndarray = (x >= BAR[0]) & (x + SIZE <= BAR[1])
    return found


def in_sight(corners: np.ndarray) -> np.ndarray:
    """Return which squares (n, t, 2) the bar hides no pixel of."""
    x = corners[..., 0]
    found: np.ndarray = (x + SIZE <= BAR[0]) | (x >= BAR[1])
    return found


def share(hits: np.ndarray) -> dict[str, Any]:
    """Return the share of True in (n,), with an exact 95 % interval."""
    test = binomtest(int(hits.sum()), len(hits)).proportion_ci()
    interval = [float(test.low), float(test.high)]
    return {"value": float(hits.mean()), "ci95": interval, "n": len(hits)}


def mean(values: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Return the mean of (n,), with a 95 % bootstrap interval."""
    drawn = np.random.default_rng(seed).choice(values, (2000, len(values))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": float(values.mean()), "ci95": [float(low), float(high)], "n": len(values)}


def centroids(images: Tensor) -> np.ndarray:
    """Return the mean place (..., 2) x, y in pixels of each square's pixels; NaN of none."""
    masks = FIND.masks(images).float()
    at = torch.arange(PIXELS) + 0.5
    count = masks.sum((-2, -1))
    x, y = ((masks.sum(axis) * at).sum(-1) / count for axis in (-2, -1))
    found: np.ndarray = torch.stack([x, y], -1).numpy()
    return found


def control(model: POVT, images: Tensor, corners: np.ndarray, *, steps: int, seed: int) -> Any:
    """Return how often a square is where a box commands it, and without the command."""
    rng, given = np.random.default_rng(seed), model.prior.config.memory
    rows, numbers, paths = [], [], []
    for row in range(len(images)):
        seen = np.flatnonzero(in_sight(corners)[row, given - 1])
        if len(seen):
            rows.append(row)
            numbers.append(int(rng.choice(seen)))
            paths.append(path(corners[row, given - 1, numbers[-1]], rng, steps))
    boxes, commanded = torch.zeros(len(rows), steps, 2, 4), torch.zeros(len(rows), steps, 2).bool()
    for row, (number, corner) in enumerate(zip(numbers, paths, strict=True)):
        commanded[row, :, number] = True
        centre = torch.from_numpy(corner).float() + SIZE / 2
        boxes[row, :, number] = torch.cat([centre, torch.full_like(centre, SIZE)], -1) / PIXELS
    wanted = np.stack(paths) + SIZE / 2  # rows, steps, 2
    found = {}
    orders = {"commanded": {"boxes": boxes, "commanded": commanded}, "not commanded": {}}
    for name, order in orders.items():
        shown = model.sample({"rgb": images[rows, :given]}, steps, temperature=0.0, **order)["rgb"]
        at = centroids(shown)[np.arange(len(rows)), :, numbers]
        away = np.linalg.norm(at - wanted, axis=-1)
        hits = np.nan_to_num(away, nan=np.inf) <= NEAR
        found[name] = {
            "last frame": share(hits[:, -1]),
            "all frames": share(hits.all(1)),
            "median error, pixels": float(np.nanmedian(away)),
            "lost": float(np.isnan(away).mean()),
        }
    return found


def path(corner: np.ndarray, rng: np.random.Generator, steps: int) -> np.ndarray:
    """Return corners (steps, 2) of a straight way in any direction, which the bar does not hide."""
    while True:
        angle = rng.uniform(0, 2 * np.pi)
        ahead = np.arange(1, steps + 1)[:, None] * 2 * np.array([np.cos(angle), np.sin(angle)])
        found = np.round(corner + ahead)
        if in_sight(found).all() and found.min() >= 0 and found.max() <= PIXELS - SIZE:
            return found


def returns(corners: np.ndarray, clip: int) -> list[tuple[int, int, int, int]]:
    """Return (clip, square, first frame after it was hidden, frames hidden) of all that return.

    Those that were in sight, at least in part, in the memory before.
    """
    found, covered = [], hidden(corners)
    for row, number in np.ndindex(len(corners), 2):
        for t in range(clip - 1, corners.shape[1]):
            if covered[row, t, number] or not covered[row, t - 1, number]:
                continue
            window = covered[row, t - clip + 1 : t, number]
            length = int(np.argmin(window[::-1])) if not window.all() else clip
            if PIXEL_MEMORY < length <= clip - 3:
                found.append((row, number, t, length))
    return found


@torch.no_grad()
def occlusion(models: dict[str, POVT], images: Tensor, corners: np.ndarray) -> Any:
    """Return nats of frames in which a square returns, of others, and where it returns."""
    clip_length = 9
    events = returns(corners, clip_length)
    chosen = {(row, t) for row, _, t, _ in events}
    rng = np.random.default_rng(0)
    others = [(int(r), int(t)) for r, t in zip(
        rng.integers(0, len(images), 20 * len(events)),
        rng.integers(clip_length - 1, images.shape[1], 20 * len(events)), strict=True)
    ]  # fmt: skip
    visible = in_sight(corners)
    others = [(r, t) for r, t in others if (r, t) not in chosen and visible[r, t - 1 : t + 1].all()]
    made: dict[str, Any] = {"hidden, frames": np.bincount([e[3] for e in events]).tolist()}
    nats: dict[str, dict[str, np.ndarray]] = {}
    for name, model in models.items():
        nats[name] = {}
        for kind, places in (("returns", sorted(chosen)), ("in sight", others[: len(chosen)])):
            clips = torch.stack([images[r, t - clip_length + 1 : t + 1] for r, t in places])
            found = [model.log_prob({"rgb": some})[:, -1] for some in clips.split(16)]
            nats[name][kind] = -torch.cat(found).numpy()
        made[name] = {kind: mean(each) for kind, each in nats[name].items()}
        made[name]["place"] = returned(model, images, corners, events)
    for name in list(models)[1:]:
        gain = nats[name]["returns"] - nats[next(iter(models))]["returns"]
        made[name]["nats more than the first, returns"] = mean(gain)
    return made


def returned(model: POVT, images: Tensor, corners: np.ndarray, events: list[Any]) -> Any:
    """Return how often a square is imagined where it returns, when it is in sight again.

    The model is given the frames up to the last but one in which it is hidden.
    """
    visible, groups = in_sight(corners), dict[int, list[Any]]()
    for row, number, t, _ in events:
        after = np.flatnonzero(visible[row, t:, number])
        if len(after) and t - 1 >= CONTEXT:
            end = t + int(after[0])
            groups.setdefault(end - t + 2, []).append((row, number, end))
    hits, rows, shades = [], [], []
    for steps, some in groups.items():
        starts = [(row, end - steps - CONTEXT + 1) for row, _, end in some]
        given = torch.stack([images[row, start : start + CONTEXT] for row, start in starts])
        shown = model.sample({"rgb": given}, steps, temperature=0.0)["rgb"][:, -1]
        at, masks = centroids(shown), FIND.masks(shown)
        for index, (row, number, end) in enumerate(some):
            corner = corners[row, end, number]
            away = np.abs(np.nan_to_num(at[index, number], nan=np.inf) - corner - SIZE / 2)
            hits.append(np.linalg.norm(away) <= NEAR)
            rows.append(away[1] <= NEAR)
            true = images[row, end][tuple(corner[::-1])].numpy()
            pixels = shown[index][masks[index, number]].float().mean(0).numpy()  # NaN of none
            apart = [np.square(pixels - shade).sum() for shade in SHADES[number]]
            shades.append(SHADES[number][int(np.argmin(apart))] == tuple(true) and away[1] < np.inf)
    found = {f"within {NEAR} pixels": hits, f"row within {NEAR} pixels": rows, "shade": shades}
    return {name: share(np.array(each)) for name, each in found.items()}


def cost(model: POVT, images: Tensor, steps: int) -> dict[str, Any]:
    """Return what a frame attends to, and the CPU time of training on it and of imagining it."""
    p, c = model.prior, model.prior.config
    given, own = c.previous * p.tokens, SYMBOLS * p.slots + p.tokens
    objects = 4 * p.slots
    pairs = given**2 + own * given + own * (own + 1) // 2 + (given + own) * objects
    pairs += objects * (4 * c.memory + objects)
    batch = Batch(stored(model, images[:8, : c.clip]), torch.zeros(8, c.memory, 1))
    optimizer = torch.optim.AdamW(p.parameters(), 0.0)
    p.train()
    began = time.process_time()
    for _ in range(steps):
        optimizer.zero_grad()
        p.loss(batch).total.backward()
        optimizer.step()
    trained = (time.process_time() - began) / steps / 8 / c.frames
    p.eval()
    began = time.process_time()
    model.sample({"rgb": images[:8, : c.memory]}, 2, temperature=0.0)
    imagined = (time.process_time() - began) / 16
    return {
        "frames of tokens": 1 + c.previous,
        "frames of objects": c.memory * (p.slots > 0),
        "tokens and symbols a frame": own,
        "tokens attended to, at most": given + own + objects,
        "pairs a layer and frame": pairs,
        "training, CPU ms a frame": round(1000 * trained, 2),
        "imagining, CPU ms a frame": round(1000 * imagined, 1),
        "weights": sum(each.numel() for each in p.parameters()),
    }


def stored(model: POVT, images: Tensor) -> dict[str, Tensor]:
    """Return what a batch of the prior's store has of images (b, t, 32, 32, 3)."""
    video = model._video({"rgb": images})
    return dict(zip(("tokens", "boxes", "glimpses"), video, strict=True))


@torch.no_grad()
def draw(models: dict[str, POVT], images: Tensor, corners: np.ndarray, file: Path) -> None:
    """Draw two returns: truth, and what each model imagines; then a commanded box."""
    first = next(iter(models.values()))
    rows, events = [], returns(corners, 9)
    for row, _, t, _ in [events[0], events[len(events) // 2]]:
        start, steps = t - 2, 6
        steps = min(steps, images.shape[1] - start)
        given = {"rgb": images[row : row + 1, max(0, start - 8) : start]}
        shown = [images[row, start : start + steps]]
        shown += [m.sample(given, steps, temperature=0.0)["rgb"][0] for m in models.values()]
        known = images[row, start - 4 : start]
        rest = torch.zeros(6 - steps, *known.shape[1:])
        rows += [torch.cat([known, each, rest]) for each in shown]
    seen = np.flatnonzero(in_sight(corners)[:, 7, 0])
    row, corner = int(seen[0]), corners[seen[0], 7, 0]
    ways = [path(corner, np.random.default_rng(seed), 6) for seed in (1, 6)]
    for way in ways:
        centre = torch.from_numpy(way).float()[None, :, None] + SIZE / 2
        boxes = torch.cat([centre, torch.full_like(centre, SIZE)], -1) / PIXELS
        given = {"rgb": images[row : row + 1, :8]}
        shown = first.sample(given, 6, boxes=boxes, temperature=0.0)["rgb"][0]
        rows.append(torch.cat([images[row, 4:8], shown]))
    grid = torch.stack([each.to(torch.uint8) for each in rows])  # r t h w c
    grid = grid.repeat_interleave(2, 2).repeat_interleave(2, 3)
    grid = torch.nn.functional.pad(grid, (0, 0, 0, 4, 0, 4), value=255)
    r, t, h, w, _ = grid.shape
    png.write(file, grid.permute(0, 2, 1, 3, 4).reshape(r * h, t * w, 3).numpy())


def figures(runs: list[Path], *, clips: int, seed: int) -> tuple[dict[str, Any], Any]:
    """Return all figures of the runs, of which the first is POVT, and what to draw."""
    models = {run.name: checkpoint.load(checkpoint.find(run)).model for run in runs}
    images, corners = held_out(clips, seed)
    first = next(iter(models.values()))
    made: dict[str, Any] = {
        "control": control(first, images, corners, steps=4, seed=seed),
        "occlusion": occlusion(models, images, corners),
        "cost": {name: cost(model, images, 5) for name, model in models.items()},
        "held out, nats a frame": {},
    }
    for name, model in models.items():
        with torch.no_grad():
            found = [model.log_prob({"rgb": some[:, -9:]}) for some in images.split(16)]
        made["held out, nats a frame"][name] = mean(-torch.cat(found)[:, 1:].mean(1).numpy())
    return made, (models, images, corners)


def main() -> None:
    """Make the store, or the figures of trained runs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    ways = parser.add_subparsers(dest="way", required=True)
    ways.add_parser("data").add_argument("path", type=Path)
    of = ways.add_parser("figures")
    of.add_argument("runs", type=Path, nargs="+")
    of.add_argument("--clips", type=int, default=150)
    of.add_argument("--seed", type=int, default=1)
    of.add_argument("--json", type=Path, required=True)
    of.add_argument("--image", type=Path)
    given = parser.parse_args()
    if given.way == "data":
        data(given.path)
        return
    made, shown = figures(given.runs, clips=given.clips, seed=given.seed)
    names = [run.name for run in given.runs]
    settings = {"clips": given.clips, "seed": given.seed, "runs": names}
    values = {"settings": settings, **made, **provenance()}
    given.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(made, indent=1))
    if given.image:
        draw(*shown, given.image)


if __name__ == "__main__":
    main()
