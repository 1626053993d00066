"""VideoGPT on held-out videos: reconstructions, likelihoods, their controls, and the cache.

    python benchmarks/videogpt.py rope --data rope.zarr --run runs/rope --conditioned runs/actions
    python benchmarks/videogpt.py tabletop --data tabletop.zarr --run runs/tabletop \
      --conditioned runs/task
    python benchmarks/videogpt.py page

The first two write their part of benchmarks/videogpt.json, `page` the tables of
docs/results/videogpt.md. `--run` is not conditioned on actions or a task, `--conditioned` is;
both have the same tokenizer. Intervals are 95 % (bootstrap over episodes, 2,000 draws, percentile).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor

from latentplan import config
from latentplan.data.store import ZarrStore
from latentplan.data.windows import is_test, task_ids
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.nn.quantizer import usage
from latentplan.training import checkpoint

FILE = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "results" / "videogpt.md"
HELD_OUT, DRAWS, SEED = 0.1, 2000, 0
EVERY = 4  # frames between the starts of held-out clips
SMOOTHING = 0.01  # counts added to each code
CACHED = 4  # clips sampled with the cache and without


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", help="a name for the data, or `page`")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--conditioned", type=Path)
    chosen = parser.parse_args()
    if chosen.part == "page":
        write_page()
        return
    figures = measure(chosen.data, chosen.run, chosen.conditioned)
    written = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    written[chosen.part] = figures
    with replacing(FILE) as partial:
        partial.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


@torch.no_grad()
def measure(data: Path, run: Path, conditioned: Path) -> dict[str, Any]:
    """Return all figures of two runs on the held-out episodes of a store."""
    loaded = {name: checkpoint.load(checkpoint.find(each)) for name, each in
              (("plain", run), ("conditioned", conditioned))}  # fmt: skip
    plain, other = (loaded[name].model for name in ("plain", "conditioned"))
    tokenizer = plain.tokenizer
    with ZarrStore.open(data) as store:
        clips = Clips(store, plain)
        frames, episode = clips.frames, clips.episode
        ids = batched(lambda b: tokenizer.encode(b).ids, frames)
        if not torch.equal(ids, batched(lambda b: other.tokenizer.encode(b).ids, frames)):
            raise SystemExit("the two runs have different tokenizers")
        shown = batched(lambda b: tokenizer.decode(tokenizer.encode(b))[clips.camera], frames)
        mean = clips.mean_frame(store)
    truth = frames[clips.camera]
    good, control = psnr(shown, truth), psnr(mean.expand_as(truth), truth)
    bits = 1 / math.log(2) / (truth[0].numel())
    per_clip = ids[0].numel()

    def nats(model: Any, of: dict[str, Tensor]) -> Tensor:
        """Return nats a token of each clip."""
        known = {"actions": clips.actions, "task": clips.task}
        every = of | known
        return batched(lambda b: -model.log_prob(
            {key: b[key] for key in of}, actions=b["actions"], task=b["task"]
        ).sum(1) / per_clip, every)  # fmt: skip

    draw = torch.Generator().manual_seed(SEED)
    order = torch.stack([shuffled(truth.shape[1], draw) for _ in range(len(truth))])
    mixed = {key: each[torch.arange(len(each))[:, None], order] for key, each in frames.items()}
    own, known, wrong = nats(plain, frames), nats(other, frames), nats(plain, mixed)

    counts = torch.stack([torch.bincount(row.flatten(), minlength=plain.tokenizer.vocabulary)
                          for row in ids]).numpy()  # fmt: skip

    def entropy(rows: np.ndarray) -> float:
        share = counts[rows].sum(0) / counts[rows].sum()
        return float(-(share * np.log(np.maximum(share, 1e-12))).sum())

    place = by_place(ids.flatten(1), episode, plain.tokenizer.vocabulary)

    def over(value: Callable[[np.ndarray], float]) -> dict[str, Any]:
        return interval(value, episode)

    def mean_of(values: Tensor) -> dict[str, Any]:
        array = values.double().numpy()
        return over(lambda rows: float(array[rows].mean()))

    gap = wrong - own
    codes = plain.tokenizer.vocabulary
    settings = config.read_yaml(run / "config.yaml")
    return {
        "clips": len(truth),
        "episodes": len(set(episode.tolist())),
        "frames a clip": truth.shape[1],
        "pixels a side": truth.shape[2],
        "tokens a clip": per_clip,
        "codes": codes,
        "psnr": mean_of(good),
        "psnr of the mean frame": mean_of(control),
        "psnr above the mean frame": mean_of(good - control),
        "perplexity": over(lambda rows: math.exp(entropy(rows))),
        "perplexity over codes": over(lambda rows: math.exp(entropy(rows)) / codes),
        "codes in use": float(usage(ids, codes)["usage"]),
        "nats a token": mean_of(own),
        "unigram entropy": over(entropy),
        "entropy by place": mean_of(place),
        "entropy by place less nats": mean_of(place - own),
        "log codes": math.log(codes),
        "unigram entropy less nats": over(lambda rows: entropy(rows) - float(own[rows].mean())),
        "bits a dimension": mean_of(own * per_clip * bits),
        "nats a token, frames shuffled": mean_of(wrong),
        "shuffled less true": mean_of(gap),
        "share of clips worse shuffled": mean_of((gap > 0).double()),
        "nats a token, conditioned": mean_of(known),
        "conditioned less plain": mean_of(known - own),
        "conditioned on": [
            name for name in ("actions", "tasks") if getattr(other.config.prior, name)
        ],
        "cache": cache(plain, frames, clips),
        "weights": {
            name: sum(p.numel() for p in part.parameters())
            for name, part in (("tokenizer", plain.tokenizer), ("prior", plain.prior))
        },
        "training": settings["training"],
        "seeds": {"training": settings["seed"], "order of frames, intervals": SEED},
        "made with": provenance(),
    }


class Clips:
    """Held-out clips of a store, with their actions, tasks and episodes."""

    def __init__(self, store: ZarrStore, model: Any) -> None:
        """Read the clips that start at every few frames."""
        length = model.config.clip
        cameras = model.cameras
        self.camera = cameras[0]
        self._held = np.flatnonzero(is_test(np.arange(len(store)), HELD_OUT))
        ids = task_ids(store, model.spec.tasks)
        first = np.concatenate([[0], store.ends[:-1]])
        found: dict[str, list[Any]] = {key: [] for key in (*cameras, "actions", "task", "episode")}
        for index in self._held.tolist():
            episode = store.episode(index)
            for start in range(0, len(episode) + 2 - length, EVERY):
                for key in cameras:
                    found[key].append(episode.observations[key][start : start + length])
                found["actions"].append(episode.actions[start : start + length - 1])
                found["task"].append(ids[first[index] + start])
                found["episode"].append(index)
        stacked = {key: torch.from_numpy(np.stack(each)) for key, each in found.items()}
        self.frames = {key: stacked[key] for key in cameras}
        self.actions, self.task = stacked["actions"], stacked["task"]
        self.episode = stacked["episode"].numpy()

    def mean_frame(self, store: ZarrStore) -> Tensor:
        """Return the mean frame (h, w, 3) of the training episodes."""
        total, count = np.zeros(self.frames[self.camera].shape[2:]), 0
        for index in {*range(len(store))} - {*self._held.tolist()}:
            frames = store.episode(index).observations[self.camera]
            total, count = total + frames.sum(0, dtype=np.float64), count + len(frames)
        return torch.from_numpy(total / count).round().to(torch.uint8)


def by_place(ids: Tensor, episode: np.ndarray, codes: int) -> Tensor:
    """Return nats a token (n,) of clips (n, k) under the frequencies of each place of a clip.

    Those of the other half of the episodes, each code counted SMOOTHING times more. A stronger
    control than the unigram entropy: the background has a code of its own at each place.
    """
    odd = torch.from_numpy(np.unique(episode, return_inverse=True)[1] % 2 == 1)
    found = torch.zeros(len(ids), dtype=torch.double)
    for half in (odd, ~odd):
        counts = torch.nn.functional.one_hot(ids[~half], codes).sum(0) + SMOOTHING  # k codes
        nats = -(counts / counts.sum(1, keepdim=True)).double().log()
        found[half] = nats[torch.arange(ids.shape[1]), ids[half]].mean(1)
    return found


def cache(model: Any, frames: dict[str, Tensor], clips: Clips) -> dict[str, Any]:
    """Return how much faster samples are with the key-value cache, and if they are the same."""
    first = {key: each[:CACHED, :1] for key, each in frames.items()}
    steps = model.config.clip - 1
    drawn, seconds = {}, {}
    for cached in (True, False):
        times = []
        for _ in range(3):
            draw = torch.Generator().manual_seed(SEED)
            started = perf_counter()
            drawn[cached] = model.sample(first, steps, generator=draw, cached=cached)
            times.append(perf_counter() - started)
        seconds[cached] = min(times)
    same = all(torch.equal(drawn[True][key], drawn[False][key]) for key in first)
    return {
        "clips": CACHED,
        "same frames": same,
        "seconds": round(seconds[True], 2),
        "seconds without": round(seconds[False], 2),
        "times faster": round(seconds[False] / seconds[True], 1),
    }


def shuffled(length: int, draw: torch.Generator) -> Tensor:
    """Return an order (T,) of frames that is not the true one; the first stays, it is given."""
    while True:
        after = 1 + torch.randperm(length - 1, generator=draw)
        order = torch.cat([torch.zeros(1, dtype=torch.long), after])
        if not torch.equal(order, torch.arange(length)):
            return order


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean over a clip's frames (n,) of the PSNR in dB of uint8 (n, t, h, w, 3)."""
    error = (a.float() - b.float()).square().flatten(2).mean(-1) / 255**2
    return (-10 * error.clamp(min=1e-8).log10()).mean(1)


def batched(of: Callable[[dict[str, Tensor]], Tensor], values: dict[str, Tensor]) -> Tensor:
    """Return `of` a few rows at a time."""
    rows = len(next(iter(values.values())))
    parts = [of({k: v[i : i + 16] for k, v in values.items()}) for i in range(0, rows, 16)]
    return torch.cat(parts)


def interval(value: Callable[[np.ndarray], float], episode: np.ndarray) -> dict[str, Any]:
    """Return `value` of the rows of all clips, and its 95 % interval over episodes."""
    names = np.unique(episode)
    rows_of = [np.flatnonzero(episode == name) for name in names]

    def statistic(chosen: np.ndarray) -> float:
        return value(np.concatenate([rows_of[index] for index in chosen.astype(int)]))

    found = bootstrap(
        (np.arange(len(names)),), statistic, n_resamples=DRAWS, vectorized=False,
        method="percentile", random_state=SEED,
    ).confidence_interval  # fmt: skip
    every = value(np.arange(len(episode)))
    return {"value": round(every, 4), "interval": [round(float(x), 4) for x in found]}


ROWS = (
    ("PSNR of reconstructions, dB", "psnr", 2),
    ("PSNR of the mean frame, dB (control)", "psnr of the mean frame", 2),
    ("perplexity of the codes / codes", "perplexity over codes", 2),
    ("nats a token", "nats a token", 3),
    ("unigram entropy (control)", "unigram entropy", 3),
    ("entropy by place in the clip (control)", "entropy by place", 3),
    ("log K (control)", "log codes", 3),
    ("nats a token, frames shuffled (control)", "nats a token, frames shuffled", 3),
    ("clips worse when shuffled", "share of clips worse shuffled", 3),
    ("nats a token, conditioned", "nats a token, conditioned", 3),
    ("conditioned less not", "conditioned less plain", 3),
    ("bits a dimension, of the tokens alone", "bits a dimension", 4),
)


def write_page() -> None:
    """Write the table of results into the page, between its marks."""
    written = json.loads(FILE.read_text(encoding="utf-8"))
    lines = ["| | " + " | ".join(written) + " |", "|---|" + "---|" * len(written)]
    for label, key, digits in ROWS:
        cells = []
        for figures in written.values():
            found = figures[key]
            if isinstance(found, dict):
                low, high = found["interval"]
                text = f"{found['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
            else:
                text = f"{found:.{digits}f}"
            if "conditioned" in key:
                text += f", on {' and '.join(figures['conditioned on'])}"
            cells.append(text)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    begin, end = "<!-- table -->\n", "<!-- end -->"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    with replacing(PAGE) as partial:
        partial.write_text(before + begin + "\n".join(lines) + "\n" + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
