"""Linear probes from codes to actions on held-out episodes, with controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from latentplan.data.store import ZarrStore
from latentplan.data.windows import is_test
from latentplan.evaluation.metrics import bootstrap
from latentplan.models.videoworld import figures as show_videoworld
from latentplan.models.videoworld.videoworld import VideoWorld

TRAINED = 400  # training episodes of the model to which probes are fitted
HELD_OUT = 0.1  # share of the episodes
RIDGES = tuple(10.0**n for n in range(-1, 5))  # ridge penalties, chosen on a fifth of the episodes


def probe(model: VideoWorld, data: str, *, episodes: int = TRAINED) -> dict[str, Any]:
    """Return the R2 of probes from codes and frame tokens to the action, PSNR and code usage.

    R2 covers all motion numbers together, with a 95 % interval (bootstrap over episodes).
    """
    with ZarrStore.open(data) as store:
        test = is_test(np.arange(len(store)), HELD_OUT)
        fitted = [store.episode(int(n)) for n in np.flatnonzero(~test)[:episodes]]
        held = show_videoworld.held_out(store, fraction=HELD_OUT, most=episodes // 2)
    seen = {
        "fit": show_videoworld.encode(model, fitted), "test": show_videoworld.encode(model, held)
    }  # fmt: skip
    inputs = {side: features(model, each) for side, each in seen.items()}
    signs = model.inverse.signs.numpy()
    targets, groups = {}, {}
    for side, each in seen.items():
        ends = np.isnan(each.actions).any(1)
        groups[side] = np.cumsum(ends)[~ends]  # index of the episode of each row
        targets[side] = each.actions[~ends]
    probes: dict[str, Any] = {}
    convention = model.spec.action.convention
    moves = 3 if convention is not None and convention.control == "ee_delta" else 0
    for name in inputs["fit"]:
        x = {side: inputs[side][name] for side in seen}
        error, spread = fit(x, {side: y[:, ~signs] for side, y in targets.items()}, groups["fit"])
        probes[name] = scored(error, spread, groups["test"])
        if moves:  # position alone, since rotations may be noise
            probes[name]["position"] = scored(error[:, :3], spread[:, :3], groups["test"])
        print(f"  {name:36s} R2 {probes[name]['r2']:.3f} {probes[name]['interval']}", flush=True)
    codes = {
        f"code {h}": used(each, model.ldm.vocabulary)
        for h, each in enumerate(seen["test"].codes.T, 1)
    }
    return {
        "probes": probes,
        "rows": {side: len(y) for side, y in targets.items()},
        "episodes": {"fit": len(fitted), "test": len(held)},
        "psnr": {key: round(db, 2) for key, db in seen["test"].psnr.items()},
        "codes": codes | {"all": used(seen["test"].codes, model.ldm.vocabulary)},
        "tokens": used(seen["test"].tokens, model.tokenizer.vocabulary),
    }


def features(model: VideoWorld, seen: show_videoworld.Encoded) -> dict[str, np.ndarray]:
    """Return the inputs (rows, numbers) of each probe, for the frames followed by an action."""
    import torch

    rows = np.flatnonzero(~np.isnan(seen.actions).any(1))
    one_hot = np.eye(model.ldm.vocabulary, dtype=np.float32)[seen.codes]  # n H codes
    codebook = model.dynamics.codebook
    vectors = codebook.codes(torch.from_numpy(seen.tokens)).flatten(1).numpy()  # n (K d)
    counts = np.zeros((len(seen.tokens), model.tokenizer.vocabulary), np.float32)
    for token in seen.tokens.T:
        np.add.at(counts, (np.arange(len(counts)), token), 1)
    mixed = np.random.default_rng(0).permutation(len(rows))
    return {
        "codes": one_hot[rows].reshape(len(rows), -1),
        "first code": one_hot[rows, 0],
        "frame tokens, codebook vectors": vectors[rows],
        "frame tokens, histogram": counts[rows],
        "tokens of two consecutive frames": np.concatenate([vectors[rows], vectors[rows + 1]], 1),
        "shuffled codes": one_hot[rows][mixed].reshape(len(rows), -1),
    }


def fit(
    x: Mapping[str, np.ndarray], y: Mapping[str, np.ndarray], group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a ridge regression; return squared error and spread (rows, numbers) of held-out rows."""
    validation = group % 5 == 0  # whole episodes, on which the penalty is chosen
    losses = [
        ((predict(x["fit"][~validation], y["fit"][~validation], x["fit"][validation], ridge=r)
          - y["fit"][validation]) ** 2).mean()
        for r in RIDGES
    ]  # fmt: skip
    best = RIDGES[int(np.argmin(losses))]
    predicted = predict(x["fit"], y["fit"], x["test"], ridge=best)
    return (predicted - y["test"]) ** 2, (y["test"] - y["test"].mean(0)) ** 2


def predict(x: np.ndarray, y: np.ndarray, at: np.ndarray, *, ridge: float) -> np.ndarray:
    """Fit an affine map to x and y, and return its predictions (rows, numbers) at `at`."""
    mean, of_y = x.mean(0), y.mean(0)
    centred = (x - mean).astype(np.float64)
    gram = centred.T @ centred + ridge * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (y - of_y))
    return (at - mean) @ weights + of_y


def scored(error: np.ndarray, spread: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """Return the R2 of all numbers together with its interval, and the R2 of each number."""
    numbers = np.unique(group, return_inverse=True)[1]
    wrong, all_of_it = (np.bincount(numbers, each.sum(1)) for each in (error, spread))
    low, high = bootstrap(lambda a, b: 1 - a.sum(-1) / b.sum(-1), wrong, all_of_it, seed=0)
    each = 1 - error.sum(0) / spread.sum(0)
    return {
        "r2": round(float(1 - error.sum() / spread.sum()), 4),
        "interval": [round(low, 4), round(high, 4)],
        "r2_per_number": [round(float(r), 3) for r in each],
    }


def used(ids: np.ndarray, size: int) -> dict[str, float]:
    """Return the share of ids in use, and their perplexity."""
    _, count, perplexity = show_videoworld.code_usage(ids, size)
    return {"usage": round(count / size, 4), "perplexity": round(perplexity, 2), "size": size}
