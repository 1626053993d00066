"""Measure VideoGPT on held-out videos: reconstructions, likelihoods, controls, and the cache.

    python benchmarks/videogpt.py rope --data rope.zarr --run runs/rope --conditioned runs/actions
    python benchmarks/videogpt.py tabletop --data tabletop.zarr --run runs/tabletop \
      --conditioned runs/task
    python benchmarks/videogpt.py page

The first two write a section of benchmarks/videogpt.json; `page` writes the table of
docs/results/videogpt.md. The run `--run` has no conditioning, the run `--conditioned` is
conditioned on actions or a task, and both share a tokenizer. Intervals are 95 % (percentile
bootstrap over episodes, 2,000 draws).
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
CACHED = 4  # clips sampled with and without the cache


def main() -> None:
    """Measure a data set or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("section", help="a name for the data, or `page`")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--conditioned", type=Path)
    chosen = parser.parse_args()
    if chosen.section == "page":
        write_page()
        return
    figures = measure(chosen.data, chosen.run, chosen.conditioned)
    written = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    written[chosen.section] = figures
    with replacing(FILE) as partial:
        partial.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


@torch.no_grad()
def measure(data: Path, run: Path, conditioned: Path) -> dict[str, Any]:
    """Return the figures of two runs on the held-out episodes of a store."""
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
        """Return the nats per token (n,) of each clip."""
        conditions = {"actions": clips.actions, "task": clips.task}
        every = of | conditions
        return batched(lambda b: -model.log_prob(
            {key: b[key] for key in of}, actions=b["actions"], task=b["task"]
        ).sum(1) / per_clip, every)  # fmt: skip

    draw = torch.Generator().manual_seed(SEED)
    order = torch.stack([shuffled(truth.shape[1], draw) for _ in range(len(truth))])
    mixed = {key: each[torch.arange(len(each))[:, None], order] for key, each in frames.items()}
    own, conditional, wrong = nats(plain, frames), nats(other, frames), nats(plain, mixed)

    counts = torch.stack([torch.bincount(row.flatten(), minlength=plain.tokenizer.vocabulary)
                          for row in ids]).numpy()  # fmt: skip

    def entropy(rows: np.ndarray) -> float:
        share = counts[rows].sum(0) / counts[rows].sum()
        return float(-(share * np.log(np.maximum(share, 1e-12))).sum())

    position = by_position(ids.flatten(1), episode, plain.tokenizer.vocabulary)

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
        "frames_per_clip": truth.shape[1],
        "image_side": truth.shape[2],
        "tokens_per_clip": per_clip,
        "codes": codes,
        "psnr": mean_of(good),
        "psnr_mean_frame": mean_of(control),
        "psnr_minus_mean_frame": mean_of(good - control),
        "perplexity": over(lambda rows: math.exp(entropy(rows))),
        "perplexity_over_codes": over(lambda rows: math.exp(entropy(rows)) / codes),
        "code_usage": float(usage(ids, codes)["usage"]),
        "nats_per_token": mean_of(own),
        "unigram_entropy": over(entropy),
        "position_entropy": mean_of(position),
        "position_entropy_minus_nats": mean_of(position - own),
        "log_codes": math.log(codes),
        "unigram_entropy_minus_nats": over(lambda rows: entropy(rows) - float(own[rows].mean())),
        "bits_per_dimension": mean_of(own * per_clip * bits),
        "nats_per_token_shuffled": mean_of(wrong),
        "shuffled_minus_true": mean_of(gap),
        "share_of_clips_worse_shuffled": mean_of((gap > 0).double()),
        "nats_per_token_conditioned": mean_of(conditional),
        "conditioned_minus_unconditioned": mean_of(conditional - own),
        "conditioned_on": [
            name for name in ("actions", "tasks") if getattr(other.config.prior, name)
        ],
        "cache": cache(plain, frames, clips),
        "weights": {
            name: sum(p.numel() for p in part.parameters())
            for name, part in (("tokenizer", plain.tokenizer), ("prior", plain.prior))
        },
        "training": settings["training"],
        "seeds": {"training": settings["seed"], "shuffling_and_intervals": SEED},
        "provenance": provenance(),
    }


class Clips:
    """Held-out clips of a store, with their actions, tasks and episodes."""

    def __init__(self, store: ZarrStore, model: Any) -> None:
        """Read the clips, which start `EVERY` frames apart."""
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


def by_position(ids: Tensor, episode: np.ndarray, codes: int) -> Tensor:
    """Return the nats per token (n,) of clips (n, k) under the code frequencies at each position.

    The frequencies are those of the other half of the episodes, with SMOOTHING added to each count.
    This control is stronger than the unigram entropy, since the background is the same in all
    episodes.
    """
    odd = torch.from_numpy(np.unique(episode, return_inverse=True)[1] % 2 == 1)
    found = torch.zeros(len(ids), dtype=torch.double)
    for half in (odd, ~odd):
        counts = torch.nn.functional.one_hot(ids[~half], codes).sum(0) + SMOOTHING  # k codes
        nats = -(counts / counts.sum(1, keepdim=True)).double().log()
        found[half] = nats[torch.arange(ids.shape[1]), ids[half]].mean(1)
    return found


def cache(model: Any, frames: dict[str, Tensor], clips: Clips) -> dict[str, Any]:
    """Return the speedup of sampling by the key-value cache, and whether the samples are equal."""
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
        "same_frames": same,
        "seconds": round(seconds[True], 2),
        "seconds_uncached": round(seconds[False], 2),
        "speedup": round(seconds[False] / seconds[True], 1),
    }


def shuffled(length: int, draw: torch.Generator) -> Tensor:
    """Return a permutation (T,) of frames other than the identity; the first frame stays."""
    while True:
        after = 1 + torch.randperm(length - 1, generator=draw)
        order = torch.cat([torch.zeros(1, dtype=torch.long), after])
        if not torch.equal(order, torch.arange(length)):
            return order


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the PSNR (n,) of uint8 clips (n, t, h, w, 3) in dB, averaged over frames."""
    error = (a.float() - b.float()).square().flatten(2).mean(-1) / 255**2
    return (-10 * error.clamp(min=1e-8).log10()).mean(1)


def batched(of: Callable[[dict[str, Tensor]], Tensor], values: dict[str, Tensor]) -> Tensor:
    """Return the concatenated results of `of` on batches of 16 rows."""
    rows = len(next(iter(values.values())))
    parts = [of({k: v[i : i + 16] for k, v in values.items()}) for i in range(0, rows, 16)]
    return torch.cat(parts)


def interval(value: Callable[[np.ndarray], float], episode: np.ndarray) -> dict[str, Any]:
    """Return `value` of all clips, and its 95 % interval by a bootstrap over episodes."""
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
    ("PSNR of the mean frame, dB (control)", "psnr_mean_frame", 2),
    ("code perplexity / number of codes", "perplexity_over_codes", 2),
    ("nats per token", "nats_per_token", 3),
    ("unigram entropy (control)", "unigram_entropy", 3),
    ("entropy by position in the clip (control)", "position_entropy", 3),
    ("log K (control)", "log_codes", 3),
    ("nats per token, frames shuffled (control)", "nats_per_token_shuffled", 3),
    ("share of clips less likely when shuffled", "share_of_clips_worse_shuffled", 3),
    ("nats per token, conditioned", "nats_per_token_conditioned", 3),
    ("conditioned minus unconditioned", "conditioned_minus_unconditioned", 3),
    ("bits per dimension, tokens only", "bits_per_dimension", 4),
)


def write_page() -> None:
    """Write the table of results between the marks of the page."""
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
                text += f", on {' and '.join(figures['conditioned_on'])}"
            cells.append(text)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    begin, end = "<!-- table -->\n", "<!-- end -->"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    with replacing(PAGE) as partial:
        partial.write_text(before + begin + "\n".join(lines) + "\n" + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
