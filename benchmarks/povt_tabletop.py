r"""POVT on the tabletop: boxes set by the user, and boxes of what happened.

    python benchmarks/povt_tabletop.py runs/povt eval.zarr --clips 16 \
      --json benchmarks/povt_tabletop.json

One clip from each episode; the model is given 4 frames and imagines 4. `commanded`: a visible
object is to go 2 pixels a frame in one direction. `true boxes`: all objects are to go where they
went; then it is counted how many keep their place, as `latentplan bench video` counts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from povt_squares import share
from torch import Tensor

from latentplan import png
from latentplan.data.store import ZarrStore
from latentplan.evaluation import objects, open_loop
from latentplan.evaluation.provenance import provenance
from latentplan.models.povt.povt import POVT
from latentplan.training import checkpoint

NAMES = ("red block", "blue block", "pink block", "gripper")  # as in the preset povt_cpu
GIVEN, STEPS, NEAR, SPEED = 4, 4, 2, 2  # frames, frames, pixels, pixels a frame


def clips(store: ZarrStore, key: str, *, count: int, seed: int) -> Tensor:
    """Return a clip (n, 8, h, w, 3) of each of the first episodes that are long enough."""
    rng, found = np.random.default_rng(seed), []
    for number in range(len(store)):
        images = store.episode(number).observations[key]
        if len(images) >= GIVEN + STEPS:
            start = int(rng.integers(0, len(images) - GIVEN - STEPS + 1))
            found.append(images[start : start + GIVEN + STEPS])
    return torch.from_numpy(np.stack(found[:count]))


def imagined(model: POVT, given: Tensor, **order: Tensor) -> Tensor:
    """Return the likeliest frames (n, 4, h, w, 3)."""
    found = []
    for start in range(0, len(given), 16):
        rows = slice(start, start + 16)
        some = {key: each[rows] for key, each in order.items()}
        shown = model.sample({model.image: given[rows]}, STEPS, temperature=0.0, **some)
        found.append(shown[model.image])
    return torch.cat(found)


def commands(boxes: Tensor, pixels: int, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return boxes (n, 4, objects, 4), which are commanded, and the object of each clip.

    A visible object of `boxes` (n, objects, 4) goes straight on in a random direction in which it
    stays in the image.
    """
    rng = np.random.default_rng(seed)
    wanted = boxes[:, None].repeat(1, STEPS, 1, 1)
    commanded = torch.zeros(wanted.shape[:3], dtype=torch.bool)
    chosen = np.zeros(len(boxes), int)
    for row, seen in enumerate(boxes[..., 2] > 0):
        chosen[row] = rng.choice(np.flatnonzero(seen.numpy()))
        x, y, w, h = boxes[row, chosen[row]].tolist()
        while True:
            angle = rng.uniform(0, 2 * np.pi)
            ahead = np.arange(1, STEPS + 1)[:, None] * SPEED / pixels
            path = np.array([x, y]) + ahead * np.array([np.cos(angle), np.sin(angle)])
            half = np.array([w, h]) / 2
            if (path >= half).all() and (path <= 1 - half).all():
                break
        wanted[row, :, chosen[row], :2] = torch.from_numpy(path).float()
        commanded[row, :, chosen[row]] = True
    return wanted, commanded, chosen


def control(model: POVT, images: Tensor, seed: int) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Return how often an object is where it is commanded, and frames with the command."""
    pixels = images.shape[2]
    start = model.find(images[:, GIVEN - 1])
    wanted, commanded, chosen = commands(start, pixels, seed)
    rows, found, shown = np.arange(len(images)), {}, images[:, GIVEN:]
    free = imagined(model, images[:, :GIVEN])
    shown = imagined(model, images[:, :GIVEN], boxes=wanted, commanded=commanded)
    for name, frames in (("commanded", shown), ("not commanded", free)):
        boxes = model.find(frames)[rows, :, chosen]
        away = (boxes - wanted[rows, :, chosen])[..., :2].norm(dim=-1) * pixels
        away = torch.where(boxes[..., 2] > 0, away, torch.inf).numpy()
        hits = away[:, -1] <= NEAR
        found[name] = {"all": share(hits)}
        for number, each in enumerate(NAMES):
            if (chosen == number).any():
                found[name][each] = share(hits[chosen == number])
    return found, shown, free


def followed(model: POVT, images: Tensor, spec: Any, free: Tensor) -> tuple[dict[str, Any], Tensor]:
    """Return how many objects keep their true place, with true boxes and without."""
    truth = images[:, GIVEN:]
    shown = imagined(model, images[:, :GIVEN], boxes=model.find(truth))
    last = images[:, GIVEN - 1]
    still = last[:, None].expand_as(truth)
    coded = model.tokenizer.decode(model.tokenizer.encode({model.image: truth}))[model.image]
    marks = objects.masks(truth.numpy(), spec)
    rows = {"last frame repeated": still, "tokenizer": coded, "POVT": free, "true boxes": shown}
    known = {"last": last.numpy(), "masks": marks}
    errors = {
        name: open_loop.errors(
            truth.numpy(), each.numpy(), found=objects.masks(each.numpy(), spec), **known
        )
        for name, each in rows.items()
    }
    repeated = errors["last frame repeated"]
    return {
        name: open_loop.figures(each, repeated, steps=[STEPS])[str(STEPS)]
        for name, each in errors.items()
    }, shown


def main() -> None:
    """Write the figures and an image of two clips."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("data", type=Path)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--image", type=Path)
    given = parser.parse_args()
    model = checkpoint.load(checkpoint.find(given.run)).model
    with ZarrStore.open(given.data) as store:
        images, spec = clips(store, model.image, count=given.clips, seed=given.seed), store.spec
    with torch.no_grad():
        moved, commanded, free = control(model, images, given.seed)
        kept, followed_frames = followed(model, images, spec, free)
    settings = {"seed": given.seed, "clips": len(images), "given": GIVEN, "steps": STEPS}
    values = {"settings": settings, "control": moved, "kept": kept, **provenance()}
    given.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(moved, indent=1), json.dumps(kept, indent=1))
    if given.image:
        rows = []
        for row in (0, 1):
            for after in (images[:, GIVEN:], free, followed_frames, commanded):
                rows.append(torch.cat([images[row, GIVEN - 2 : GIVEN], after[row]]))
        grid = torch.nn.functional.pad(torch.stack(rows), (0, 0, 0, 3, 0, 3), value=255)
        r, t, h, w, _ = grid.shape
        flat = grid.permute(0, 2, 1, 3, 4).reshape(r * h, t * w, 3).numpy()
        png.write(given.image, flat.repeat(2, 0).repeat(2, 1))


if __name__ == "__main__":
    main()
