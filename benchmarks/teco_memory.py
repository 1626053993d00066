"""Long memory of TECO: frames that the camera sees again, and what DropLoss saves.

    python benchmarks/teco_memory.py --json benchmarks/teco_memory.json

A camera pans 20 columns to the right over a texture of coloured squares, then back: 40 frames of 32
x 32 pixels. All frames after the turn have been seen before. Given the first 21 frames and all
actions, two models with the same layers imagine the way back: TECO, which attends to the whole
clip, and a sliding window of 4 frames. A square is a token, so that no tokenizer blurs the figures.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentplan.evaluation import open_loop
from latentplan.evaluation.provenance import provenance
from latentplan.models.frame_tokens import TOKENS
from latentplan.models.teco.dynamics import TemporalDynamics
from latentplan.nn.masked_prior import MaskedPrior
from latentplan.types import ActionSpec, ArraySpec, Batch, Spec

SIDE, FAR, FRAMES, PIXELS = 4, 20, 40, 8  # squares a side, columns panned, frames, of a square
COLOURS = torch.tensor(
    [[r, g, b] for r in (40, 220) for g in (40, 220) for b in (40, 220)], dtype=torch.uint8
)
SPEC = Spec({TOKENS: ArraySpec((SIDE**2,), "int32")}, ActionSpec((-1.0,), (1.0,)))
CONFIG = TemporalDynamics.Config(
    vocabulary=len(COLOURS), cameras=1, clip=FRAMES, context=FAR + 1, embedding=8, channels=32,
    codes=32, stride=1, pool=4, width=64, layers=2, heads=4, noise=0.0, drop_loss=0.7,
    action_dropout=0.0, prior=MaskedPrior.Config(width=64, layers=2, draft=2, rounds=0),
)  # fmt: skip
WINDOW = 4  # frames of the control


def clips(count: int, generator: torch.Generator) -> Batch:
    """Return clips of ids (count, 40, 16) and actions, 1 to the right and -1 to the left."""
    texture = torch.randint(len(COLOURS), (count, SIDE, SIDE + FAR), generator=generator)
    places = [*range(FAR + 1), *range(FAR - 1, 2 * FAR - FRAMES, -1)]
    ids = torch.stack([texture[:, :, p : p + SIDE].flatten(1) for p in places], dim=1)
    actions = torch.tensor(np.diff(places), dtype=torch.float32)[None, :, None]
    return Batch({TOKENS: ids}, actions.repeat(count, 1, 1))


def windows(batch: Batch, length: int, generator: torch.Generator) -> Batch:
    """Return as many frames of the clips, in windows of `length` that start anywhere."""
    starts = torch.randint(FRAMES - length + 1, (FRAMES // length,), generator=generator).tolist()
    ids = [batch.observations[TOKENS][:, s : s + length] for s in starts]
    return Batch(
        {TOKENS: torch.cat(ids)}, torch.cat([batch.actions[:, s : s + length - 1] for s in starts])
    )


def train(
    config: TemporalDynamics.Config, steps: int, *, seed: int
) -> tuple[TemporalDynamics, dict]:
    """Return a trained model, and its loss and time a step."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    model = TemporalDynamics(SPEC, config)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    losses, began = [], time.process_time()
    for _ in range(steps):
        batch = clips(16, draw)
        batch = windows(batch, config.clip, draw) if config.clip < FRAMES else batch
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.total.detach()))
    spent = time.process_time() - began
    figures = {
        "loss_last_tenth": float(np.mean(losses[-(steps // 10 or 1) :])),
        "cpu_ms_a_step": round(1000 * spent / steps, 1),
        "weights": sum(w.numel() for w in model.parameters()),
    }
    return model.eval(), figures


@torch.no_grad()
def imagine(model: TemporalDynamics, batch: Batch) -> Tensor:
    """Return the ids (n, 19, 16) of the way back."""
    given, ids = FAR + 1, batch.observations[TOKENS]
    first = max(0, given - model.config.clip)
    history = model.begin(ids[:, first:given], batch.actions[:, first : given - 1])
    found = []
    for step in range(given - 1, FRAMES - 1):
        model.advance(history, batch.actions[:, step])
        found.append(history.tokens[:, -1])
    return torch.stack(found, dim=1)


def pixels(ids: Tensor) -> np.ndarray:
    """Return images (n, t, 32, 32, 3) uint8 of ids (n, t, 16)."""
    squares = COLOURS[ids].unflatten(2, (SIDE, SIDE))
    return squares.repeat_interleave(PIXELS, 2).repeat_interleave(PIXELS, 3).numpy()


def compare(models: dict[str, TemporalDynamics], *, count: int, seed: int) -> dict:
    """Return PSNR and share of right tokens on frames seen before, with intervals over clips."""
    batch = clips(count, torch.Generator().manual_seed(10_000 + seed))
    ids = batch.observations[TOKENS][:, FAR + 1 :]
    truth, last = pixels(ids), pixels(batch.observations[TOKENS][:, FAR : FAR + 1])[:, 0]
    still = np.repeat(last[:, None], truth.shape[1], axis=1)
    none = {"masks": {}, "found": {}}
    repeat = open_loop.errors(truth, still, last=last, **none)
    rows = {}
    shown = {"last frame repeated": None, **models}
    for name, model in shown.items():
        found = ids[:, :1] if model is None else imagine(model, batch)
        images = still if model is None else pixels(found)
        errors = open_loop.errors(truth, images, last=last, **none)
        rows[name] = open_loop.figures(errors, repeat, steps=[1, 4, truth.shape[1]])
        if model is not None:
            rows[name]["right_tokens"] = float((found == ids).float().mean())
    return rows


def main() -> None:
    """Train both, compare them, and time DropLoss."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--drop-steps", type=int, default=100)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    configs = {"teco": CONFIG, "window": replace(CONFIG, clip=WINDOW, context=WINDOW - 1)}
    models, trained = {}, {}
    for name, config in configs.items():
        models[name], trained[name] = train(config, given.steps, seed=given.seed)
        print(name, trained[name], flush=True)
    rows = compare(models, count=given.clips, seed=given.seed)
    drop = {
        str(share): train(replace(CONFIG, drop_loss=share), given.drop_steps, seed=given.seed)[1]
        for share in (0.0, 0.9)
    }
    settings = {key: str(each) if key == "json" else each for key, each in vars(given).items()}
    made = {"settings": settings, "trained": trained, "seen_again": rows, "drop_loss": drop}
    given.json.write_text(json.dumps(made | provenance(), indent=1) + "\n", encoding="utf-8")
    for name, row in rows.items():
        print(name, row[str(FRAMES - FAR - 1)]["psnr"], row.get("right_tokens"))
    print("drop_loss", drop)


if __name__ == "__main__":
    main()
