"""Measure LQAE: reconstruction through masked words, goals from few examples, texts as goals.

    python benchmarks/lqae.py reconstruction --data tabletop.zarr --runs runs/words0 runs/vq0
    python benchmarks/lqae.py goals --data tabletop.zarr --runs runs/words0 runs/shuffled0 runs/vq0
    python benchmarks/lqae.py texts --data tabletop.zarr --model runs/teco --runs runs/words0 ...
    python benchmarks/lqae.py page

A run is named by its code book and its seed. The first three write a section of
benchmarks/lqae.json, the last the tables of docs/results/lqae.md, which lists the trainings. All
figures are of held-out episodes of the tabletop, with 95 % intervals by a bootstrap over them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from latentplan.data.store import ZarrStore
from latentplan.data.windows import is_test
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.nn.quantizer import usage
from latentplan.objectives.text_space import FittedTextSpace, SentenceFeatures, WordFeatures
from latentplan.tokenizers.lqae import language
from latentplan.tokenizers.lqae.lqae import LQAE
from latentplan.training import checkpoint
from latentplan.types import Array, Tokens

FILE = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "results" / "lqae.md"
KEY, HELD_OUT, EVERY = "rgb_static", 0.1, 4  # every 4th frame of a held-out episode is read
SHOTS, DRAWS, BOOTSTRAPS = (1, 3, 5), 100, 2000
SLIDER, DRAWER, BULB, BLOCKS = 0, 1, 4, 6  # indices in scene_obs
STATES: dict[str, tuple[int, float, float]] = {  # index in scene_obs, at most, at least
    "drawer": (DRAWER, 0.05, 0.12),
    "light": (BULB, 0.5, 0.5),
    "door": (SLIDER, 0.05, 0.17),
    **{f"{colour} block": (BLOCKS + 6 * n, -0.05, 0.05)
       for n, colour in enumerate(("red", "blue", "pink"))},
}  # fmt: skip
TEXTS = {  # held-out frames that satisfy a text have a state that is low (False) or high
    **{text: ("drawer", True) for text in ("open the drawer", "pull out the drawer")},
    **{text: ("drawer", False) for text in ("close the drawer", "push in the drawer")},
    **{text: ("light", True) for text in ("turn on the light", "switch on the light bulb")},
    **{text: ("light", False) for text in ("turn off the light", "switch off the light bulb")},
    "move the sliding door to the left": ("door", True),
    "move the sliding door to the right": ("door", False),
}
TEXT_SHOTS, TEXT_DRAWS = (1, 3, 10, 25), 20


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("section", choices=("reconstruction", "goals", "texts", "page"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if chosen.section == "page":
        write_page()
        return
    frames = Frames(chosen.data)
    files = {run.name: checkpoint.find(run) for run in chosen.runs}
    runs = {name: checkpoint.load(file, kind="tokenizer") for name, file in files.items()}
    if chosen.section == "reconstruction":
        write("reconstruction", measure_reconstruction(frames, runs))
    elif chosen.section == "goals":
        write("goals", measure_goals(frames, runs))
    else:
        write("texts", measure_texts(frames, runs, chosen.model))


class Frames:
    """Frames of training episodes (one at random, and the last) and of held-out ones."""

    def __init__(self, data: Path) -> None:
        """Read them."""
        draw, rows = np.random.default_rng(0), []
        with ZarrStore.open(data) as store:
            tests = is_test(np.arange(len(store)), HELD_OUT)
            for number, test in enumerate(tests):
                episode = store.episode(number)
                last = len(episode.actions)
                at = range(last % EVERY, last + 1, EVERY) if test else (draw.integers(last), last)
                for row in at:
                    seen = {key: episode.observations[key][row] for key in (KEY, "scene_obs")}
                    rows.append((number, bool(test), row == last, episode.labels[0], seen))
        self.images = torch.from_numpy(np.stack([each[4][KEY] for each in rows]))
        self.scenes = np.stack([each[4]["scene_obs"] for each in rows])
        self.episodes = np.array([each[0] for each in rows])
        self.test, self.last = (np.array([each[n] for each in rows]) for n in (1, 2))
        self.tasks = np.array([each[3].task for each in rows])
        self.texts = np.array([each[3].text for each in rows])

    def state(self, name: str) -> Array:
        """Return (n,): 1 if a state is high, 0 if it is low, -1 between."""
        index, low, high = STATES[name]
        value = self.scenes[:, index]
        return np.where(value >= high, 1, np.where(value <= low, 0, -1))


def in_parts(call: Callable[[Tensor], Tensor], x: Tensor, size: int = 64) -> Tensor:
    """Return `call` of x (n, ...), some rows at a time."""
    return torch.cat([call(part) for part in x.split(size)])


def bootstrap(values: Array, groups: Array, *, weights: Array | None = None) -> dict[str, Any]:
    """Return the weighted mean of values (n,), and its interval over groups such as episodes."""
    weights = np.ones(len(values)) if weights is None else weights
    _, group = np.unique(groups, return_inverse=True)
    sums = np.bincount(group, values * weights)
    counts = np.bincount(group, weights)
    drawn = np.random.default_rng(0).integers(len(sums), size=(BOOTSTRAPS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    found = sums.sum() / counts.sum()
    low, high = np.percentile(means, [2.5, 97.5])
    return {"value": round(float(found), 5), "interval": [round(float(x), 5) for x in (low, high)]}


def measure_reconstruction(frames: Frames, runs: dict[str, Any]) -> dict[str, Any]:
    """Return squared errors of images in [-1, 1], and the use of the code book."""
    images, episodes = frames.images[frames.test], frames.episodes[frames.test]
    seen = {"mean image": error(images, frames.images[~frames.test].float().mean(0))}
    rows: dict[str, Any] = {}
    for name, run in runs.items():
        model: Any = run.model
        torch.manual_seed(0)
        ids = in_parts(lambda x, model=model: model.encode({KEY: x[:, None]}).ids, images)
        masks = {"": None}
        if isinstance(model, LQAE):
            hidden = language.draw_mask(ids[:, 0].shape, model.config.mask, device=ids.device)
            masks[", half of the words masked"] = ~hidden[:, None]
        for suffix, mask in masks.items():
            shown = model.decode(Tokens(ids, mask))[KEY][:, 0]
            seen[name + suffix] = error(images, shown.float())
        used = usage(ids, model.vocabulary)
        rows[name] = {key: round(float(value), 4) for key, value in used.items()}
        rows[name] |= {"step": run.step, "vocabulary": model.vocabulary, "tokens": model.tokens}
        if isinstance(model, LQAE):
            rows[name]["words"] = top_words(model, ids)
    plain = [value for name, value in seen.items() if name.startswith(("vq", "fsq"))]
    best = min(plain, key=lambda value: float(value.mean()), default=None)
    return {
        "frames": len(images),
        "episodes": len(set(episodes)),
        "error": {name: bootstrap(value, episodes) for name, value in seen.items()},
        "over_best_vqvae": {
            name: ratio(value, best, episodes) for name, value in seen.items()
        } if best is not None else {},
        "codes": rows,
        "provenance": provenance(),
    }  # fmt: skip


def error(images: Tensor, shown: Tensor) -> Array:
    """Return the mean squared error (n,) of images in [-1, 1]."""
    found: Array = ((shown - images.float()) / 127.5).square().flatten(1).mean(1).numpy()
    return found.astype(np.float64)


def ratio(values: Array, plain: Array, episodes: Array) -> dict[str, Any]:
    """Return the ratio of means and its interval over episodes."""
    _, group = np.unique(episodes, return_inverse=True)
    a, b = np.bincount(group, values), np.bincount(group, plain)
    drawn = np.random.default_rng(0).integers(len(a), size=(BOOTSTRAPS, len(a)))
    low, high = np.percentile(a[drawn].sum(1) / b[drawn].sum(1), [2.5, 97.5])
    found = float(a.sum() / b.sum())
    return {"value": round(found, 3), "interval": [round(low, 3), round(high, 3)]}


def top_words(model: LQAE, ids: Tensor) -> list[str]:
    """Return the words that are used the most."""
    counts = torch.bincount(ids.flatten(), minlength=model.vocabulary)
    return [model.config.words[number] for number in counts.topk(12).indices.tolist()]


def features(model: Any, images: Tensor) -> dict[str, Tensor]:
    """Return features (n, F) of images by name: pooled vectors of codes, and vectors in place."""
    ids = in_parts(lambda x: model.encode({KEY: x[:, None]}).ids[:, 0], images)
    if isinstance(model, LQAE):
        book, low = model.book, F.normalize(model.book @ model.basis.T, dim=-1)
    else:
        codes = torch.arange(model.vocabulary)
        book = low = model.quantizer.vectors(codes)
    return {
        "pooled": torch.stack([book[row].mean(0) for row in ids]),
        "in place": low[ids].flatten(1),
        "counts": F.one_hot(ids, model.vocabulary).float().mean(1),
    }


def measure_goals(frames: Frames, runs: dict[str, Any]) -> dict[str, Any]:
    """Return accuracies of goals that are recognised from K examples each, by nearest means."""
    small = F.avg_pool2d(frames.images.float().movedim(-1, 1), 4).flatten(1)
    found: dict[str, dict[str, Any]] = {"pixels": recognised(frames, small)}
    for name, run in runs.items():
        for kind, each in features(run.model, frames.images).items():
            found[f"{name}, {kind}"] = recognised(frames, each)
    episodes = np.unique(frames.episodes[frames.test])
    figures = {
        name: {
            setting: {k: bootstrap(*hits[k][:2], weights=hits[k][2]) for k in hits}
            for setting, hits in each.items()
        }
        for name, each in found.items()
    }
    return {
        "held_out_episodes": len(episodes),
        "draws": DRAWS,
        "chance": {"2-way": 0.5, "5-way": 0.2},
        "accuracy": figures,
        "words_minus": {
            other: {
                f"{kind}, {setting}, {k} shots": paired(found, other, kind, setting, k)
                for kind in ("pooled", "in place")
                for setting in ("2-way", "5-way")
                for k in SHOTS
            }
            for other in ("shuffled", "random")
        },
        "provenance": provenance(),
    }


def paired(found: dict[str, Any], other: str, kind: str, setting: str, k: int) -> dict[str, Any]:
    """Return the accuracy of words less that of another book, over the seeds that have both."""
    seeds = [name[5:-len(kind) - 2] for name in found
             if name.startswith("words") and name.endswith(kind)]  # fmt: skip
    seeds = [seed for seed in seeds if f"{other}{seed}, {kind}" in found]
    parts = []
    for seed in seeds:
        ours, episodes, weights = found[f"words{seed}, {kind}"][setting][k]
        parts.append((ours - found[f"{other}{seed}, {kind}"][setting][k][0], episodes, weights))
    if not parts:
        return {}
    values, groups, weights = (np.concatenate(each) for each in zip(*parts, strict=True))
    return bootstrap(values, groups, weights=weights) | {"seeds": seeds}


def recognised(frames: Frames, x: Tensor) -> dict[str, dict[int, tuple[Array, Array, Array]]]:
    """Return the share of hits, episode and weight of each held-out frame, by setting and K.

    Features are centred by their mean over training frames, which needs no labels.
    """
    x = F.normalize(x - x[torch.from_numpy(~frames.test)].mean(0), dim=-1)
    settings: dict[str, dict[int, tuple[Array, Array, Array]]] = {"2-way": {}, "5-way": {}}
    tasks = np.unique(frames.tasks)
    for k in SHOTS:
        draw = np.random.default_rng(k)
        hits, tried = np.zeros((2, len(x)))
        for name in STATES:
            state = frames.state(name)
            for _ in range(DRAWS):
                nearest(x, state, (0, 1), frames.test, k, draw, hits, tried)
        settings["2-way"][k] = tallied(frames, hits, tried)
        hits, tried = np.zeros((2, len(x)))
        number = np.where(frames.last, np.searchsorted(tasks, frames.tasks), -1)
        for _ in range(3 * DRAWS):
            chosen = draw.choice(len(tasks), 5, replace=False)
            nearest(x, number, chosen, frames.test, k, draw, hits, tried)
        settings["5-way"][k] = tallied(frames, hits, tried)
    return settings


def tallied(frames: Frames, hits: Array, tried: Array) -> tuple[Array, Array, Array]:
    """Return hit rates, episodes and weights of the frames that were classified."""
    some = tried > 0
    return hits[some] / tried[some], frames.episodes[some], tried[some]


def nearest(
    x: Tensor,
    classes: Array,
    chosen: Sequence[int],
    test: Array,
    k: int,
    draw: np.random.Generator,
    hits: Array,
    tried: Array,
) -> None:
    """Classify held-out frames by the nearest mean of k training frames a class; count hits.

    Each class of a draw has the same weight, whatever its number of held-out frames.
    """
    means, queries, labels = [], [], []
    for number, each in enumerate(chosen):
        support = draw.choice(np.flatnonzero((classes == each) & ~test), k, replace=False)
        means.append(x[support].mean(0))
        found = np.flatnonzero((classes == each) & test)
        queries.append(found)
        labels.append(np.full(len(found), number))
    rows, wanted = np.concatenate(queries), np.concatenate(labels)
    guess = (x[rows] @ F.normalize(torch.stack(means), dim=-1).T).argmax(1).numpy()
    weight = np.concatenate([np.full(len(each), 1 / max(1, len(each))) for each in queries])
    hits[rows] += weight * (guess == wanted)
    tried[rows] += weight


def measure_texts(frames: Frames, runs: dict[str, Any], run: Path) -> dict[str, Any]:
    """Return how well costs of texts rank held-out frames: AUC, 1 if all that satisfy cost less."""
    model: Any = checkpoint.load(checkpoint.find(run)).model
    latents = in_parts(lambda x: model.encode({KEY: x[:, None]})[:, 0], frames.images)
    spaces: dict[str, Any] = {"sentences, latents": SentenceFeatures(model)}
    spaces |= {name: WordFeatures(model, each.model) for name, each in runs.items()}
    figures: dict[str, Any] = {}
    for name, given in spaces.items():
        figures[name] = {}
        cached = Cached(given, in_parts(given.of_latents, latents))
        for k in TEXT_SHOTS:
            draw = np.random.default_rng(k)
            areas = [ranking(frames, cached, k, draw) for _ in range(TEXT_DRAWS)]
            figures[name][k] = {
                of: averaged([each[of] for each in areas]) for of in ("ends", "frames")
            }
    return {
        "model": checkpoint.read_header(checkpoint.find(run)).name,
        "texts": list(TEXTS),
        "draws": TEXT_DRAWS,
        "chance": 0.5,
        "auc": figures,
        "provenance": provenance(),
    }


class Cached:
    """Features of all frames, computed once: a latent is the number of its frame."""

    size = 1

    def __init__(self, features: Any, values: Tensor) -> None:
        """Take the features, and their values (n, F) of the frames."""
        self.values, self.features, self.texts = values, features, {}

    def of_latents(self, latents: Tensor) -> Tensor:
        """Return the features of frame numbers (n, 1)."""
        return self.values[latents[:, 0].long()]

    def of_text(self, text: str) -> Tensor:
        """Return the vector of a text."""
        if text not in self.texts:
            self.texts[text] = self.features.of_text(text)
        found: Tensor = self.texts[text]
        return found


def ranking(
    frames: Frames, features: Cached, k: int, draw: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Return AUCs by text, with a space fitted to k labelled ends of each task.

    `ends` are the last frames of held-out episodes: those of the text's task against those of all
    others. `frames` are all held-out frames, by the state that the text asks for.
    """
    chosen = np.concatenate([
        draw.choice(np.flatnonzero(frames.last & ~frames.test & (frames.tasks == task)), k,
                    replace=False)
        for task in np.unique(frames.tasks)
    ])  # fmt: skip
    numbers = torch.from_numpy(chosen)[:, None].float()
    space = FittedTextSpace(features, numbers, list(frames.texts[chosen]))  # type: ignore[arg-type]
    every = torch.arange(len(frames.test))[:, None].float()
    vectors = F.normalize(space.describe(every), dim=-1)
    ends, of_frames = {}, {}
    last = frames.test & frames.last
    for task in np.unique(frames.tasks):
        text = str(np.unique(frames.texts[frames.tasks == task])[0])
        value = vectors @ F.normalize(space.text_vector(text), dim=-1)
        own = frames.tasks == task
        ends[text] = area(value[last & own].numpy(), value[last & ~own].numpy())
    for text, (name, high) in TEXTS.items():
        value = vectors @ F.normalize(space.text_vector(text), dim=-1)
        state = frames.state(name)
        good, bad = (frames.test & (state == each) for each in (int(high), int(not high)))
        of_frames[text] = area(value[good].numpy(), value[bad].numpy())
    return {"ends": ends, "frames": of_frames}


def area(good: Array, bad: Array) -> float:
    """Return the probability that a good value is larger than a bad one."""
    ranks = rankdata(np.concatenate([good, bad]))[: len(good)].sum()
    return float((ranks - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))


def averaged(areas: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return the mean AUC, its interval over draws of the examples, and the mean of each text."""
    by_draw = np.array([[*each.values()] for each in areas])
    drawn = np.random.default_rng(0).integers(len(areas), size=(BOOTSTRAPS, len(areas)))
    low, high = np.percentile(by_draw.mean(1)[drawn].mean(1), [2.5, 97.5])
    by_text = zip(areas[0], by_draw.mean(0), strict=True)
    return {
        "value": round(float(by_draw.mean()), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "texts": {text: round(float(x), 3) for text, x in by_text},
    }


def write_page() -> None:
    """Write the tables between the marks of the page."""
    found, text = json.loads(FILE.read_text(encoding="utf-8")), PAGE.read_text(encoding="utf-8")
    for name, table in (
        ("reconstruction", reconstruction_table(found["reconstruction"])),
        ("goals", goals_table(found["goals"])),
        ("texts", texts_table(found["texts"])),
    ):
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        text = before + begin + "\n".join(table) + "\n" + end + rest.partition(end)[2]
    with replacing(PAGE) as partial:
        partial.write_text(text, encoding="utf-8")


def shown(figure: dict[str, Any], digits: int) -> str:
    """Return a figure with its interval."""
    low, high = figure["interval"]
    return f"{figure['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def reconstruction_table(found: dict[str, Any]) -> list[str]:
    """Return the rows of the reconstructions."""
    rows = ["| run | squared error | over the best vqvae | codes in use | perplexity |",
            "|---|---|---|---|---|"]  # fmt: skip
    for name, figure in found["error"].items():
        codes = found["codes"].get(name)
        of_codes = "| |"
        if codes:
            of_codes = f"| {100 * codes['usage']:.0f} % | {codes['perplexity']:.0f}"
        over = shown(found["over_best_vqvae"][name], 2)
        rows.append(f"| {name} | {shown(figure, 4)} | {over} {of_codes} |")
    return rows


def goals_table(found: dict[str, Any]) -> list[str]:
    """Return the rows of the recognised goals."""
    shots = [f"{way}, K = {k}" for way in ("2-way", "5-way") for k in SHOTS]
    rows = [f"| features | {' | '.join(shots)} |", "|---" * (1 + len(shots)) + "|"]
    for name, each in found["accuracy"].items():
        cells = [shown(each[way][str(k)], 2) for way in ("2-way", "5-way") for k in SHOTS]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    for other, each in found["words_minus"].items():
        for kind in ("pooled", "in place"):
            cells = [each[f"{kind}, {way}, {k} shots"] for way in ("2-way", "5-way") for k in SHOTS]
            if all(cells):
                row = " | ".join(shown(cell, 2) for cell in cells)
                rows.append(f"| **words - {other}**, {kind} | {row} |")
    return rows


def texts_table(found: dict[str, Any]) -> list[str]:
    """Return the rows of the texts."""
    columns = [f"{of}, {k}" for of in ("ends", "frames") for k in TEXT_SHOTS]
    rows = [f"| space | {' | '.join(columns)} |",
            "|---" * (1 + 2 * len(TEXT_SHOTS)) + "|"]  # fmt: skip
    for name, each in found["auc"].items():
        cells = [shown(each[str(k)][of], 2) for of in ("ends", "frames") for k in TEXT_SHOTS]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def write(section: str, figures: dict[str, Any]) -> None:
    """Write a section of the JSON file."""
    written = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    written[section] = figures
    with replacing(FILE) as partial:
        partial.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in figures.items() if k != "provenance"}, indent=1))


if __name__ == "__main__":
    main()
