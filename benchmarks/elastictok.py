"""Measure ElasticTok: error over length, models of fixed length, lengths at a fixed error.

    python benchmarks/elastictok.py data --rope rope.zarr --cloth cloth.zarr --data both.zarr
    python benchmarks/elastictok.py lengths --data both.zarr --elastic runs/elastic \
      --fixed runs/fixed16 --full runs/full
    python benchmarks/elastictok.py tokenizers --data both.zarr --runs runs/vqvae runs/elastic
    python benchmarks/elastictok.py page

`data` joins images of two collected stores, `lengths` and `tokenizers` write sections of
benchmarks/elastictok.json, and `page` writes the table of docs/results/tokenizers.md. The trainings
are listed there. Errors are of images scaled to [-1, 1], on held-out episodes; intervals are 95 %
(percentile bootstrap over episodes).
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from scipy.spatial import ConvexHull
from scipy.stats import bootstrap, mannwhitneyu, spearmanr, wilcoxon
from torch import Tensor

from latentplan.config import read_yaml
from latentplan.data.store import ZarrStore
from latentplan.data.windows import is_test
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.nn.quantizer import usage
from latentplan.tokenizers.elastictok import ElasticTok
from latentplan.tokenizers.selftok.selftok import Selftok
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, ArraySpec, Batch, Episode, Spec, Tokens

FILE = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "results" / "tokenizers.md"
KEY, SIDE, SEED, HELD_OUT, DRAWS = "rgb", 64, 0, 0.1, 2000
EPISODES, PAUSE = 300, 0.4  # episodes taken of each store, share of steps at which nothing moves
APART = 10  # frames between the single images of an episode
LENGTHS = (4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)
CUT = 16  # tokens at which models are compared
CLIP, TIMED = 8, 15  # frames of a clip, calls that a time is the median of


def main() -> None:
    """Make the data, measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("section", choices=("data", "lengths", "tokenizers", "page"))
    for name in ("rope", "cloth", "data", "elastic", "fixed", "full"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.section == "data":
        make_data(chosen.rope, chosen.cloth, chosen.data)
    elif chosen.section == "page":
        write_page()
    elif chosen.section == "lengths":
        runs = (chosen.elastic, chosen.fixed, chosen.full)
        write("lengths", measure_lengths(Held(chosen.data), *map(load, runs)))
    else:
        write("tokenizers", measure_tokenizers(Held(chosen.data), chosen.runs))


def make_data(rope: Path, cloth: Path, out: Path) -> None:
    """Write a store of images of rope and cloth episodes in turn, with pauses.

    At each step the arm rests with probability PAUSE, and the frame repeats. Privileged is `area`,
    the area in square metres of the convex hull of the cloth seen from above, 0 of the rope.
    """
    draw = np.random.default_rng(SEED)
    spec = Spec(
        {KEY: ArraySpec((SIDE, SIDE, 3), "uint8"), "area": ArraySpec((), "float32", "m^2")},
        ActionSpec((0.0,), (1.0,), "1: the next frame is another, 0: it is the same"),
        env="rope and cloth",
        privileged=("area",),
    )
    with (
        ZarrStore.open(rope) as first, ZarrStore.open(cloth) as second,
        ZarrStore.create(out, spec) as store,
    ):  # fmt: skip
        for number in range(EPISODES):
            for kind, each in (("rope", first), ("cloth", second)):
                episode = each.episode(number * (len(each) // EPISODES))
                moves = draw.random(len(episode)) >= PAUSE
                at = np.r_[0, np.cumsum(moves)]
                points = episode.observations["keypoints"][at]
                area = [0.0 if kind == "rope" else ConvexHull(p[:, :2]).volume for p in points]
                store.append(Episode(
                    {KEY: episode.observations[KEY][at], "area": np.float32(area)},
                    moves[:, None].astype(np.float32), np.zeros(len(moves), np.float32),
                ))  # fmt: skip


class Held:
    """The held-out episodes of the joined store; those of even number are of the rope."""

    def __init__(self, data: Path) -> None:
        """Read them."""
        with ZarrStore.open(data) as store:
            numbers = np.flatnonzero(is_test(np.arange(len(store)), HELD_OUT)).tolist()
            self.episodes = [store.episode(number) for number in numbers]
        self.rope = np.array([number % 2 == 0 for number in numbers])
        self.moves = [episode.actions[:, 0] > 0.5 for episode in self.episodes]

    def frames(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return images (B, T, h, w, 3) uint8, row `rows[i]` (T,) of held-out episode i."""
        every = [e.observations[KEY][list(at)] for e, at in zip(self.episodes, rows, strict=True)]
        return torch.from_numpy(np.stack(every))


def load(run: Path) -> ElasticTok:
    """Return the tokenizer of a run."""
    found: Any = checkpoint.load(checkpoint.find(run), kind="tokenizer").model
    return found


def errors(model: Any, frames: Tensor, tokens: Tokens) -> np.ndarray:
    """Return the mean squared error (B, T) of decoded tokens."""
    shown = model.decode(tokens)[KEY].float()
    found: np.ndarray = ((shown - frames.float()) / 127.5).square().mean((-1, -2, -3)).numpy()
    return found


@torch.no_grad()
def measure_lengths(
    held: Held, elastic: ElasticTok, fixed: ElasticTok, full: ElasticTok
) -> dict[str, Any]:
    """Return the figures of the models on single images and on pairs of frames."""
    single = held.frames([[0, APART]] * len(held.rope)).flatten(0, 1)[:, None]  # no frame before
    def at(model: ElasticTok, length: int) -> np.ndarray:
        """Return the error (episodes, 2) of the images cut to `length` tokens."""
        tokens = model.truncate(model.encode({KEY: single}), length)
        return errors(model, single, tokens).reshape(-1, 2)

    by_length = np.stack([at(elastic, length) for length in LENGTHS])  # lengths episodes 2
    order = interval(
        lambda rows: spearmanr(LENGTHS, by_length[:, rows].mean((1, 2))).statistic, len(held.rope)
    )
    cut = {"elastic": by_length[LENGTHS.index(CUT)], "fixed": at(fixed, CUT), "full": at(full, CUT)}
    full_all = at(full, full.slots)
    mean = {
        name: {
            n: round(float(each[rows].mean()), 5)
            for n, each in zip(LENGTHS, by_length, strict=True)
        }
        for name, rows in (("rope", held.rope), ("cloth", ~held.rope))
    }

    def ratio(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
        return interval(lambda rows: float(a[rows].mean() / b[rows].mean()), len(a))

    threshold = float(np.median(by_length[LENGTHS.index(28)]))
    return {
        "images": len(single),
        "episodes": {"rope": int(held.rope.sum()), "cloth": int((~held.rope).sum())},
        "error_by_length": mean,
        "spearman_of_error_and_length": order,
        "full_over_elastic_at_16": ratio(cut["full"], cut["elastic"]),
        "error_at_16": {name: round(float(each.mean()), 5) for name, each in cut.items()},
        "full_with_all_tokens": interval(
            lambda rows: float(full_all[rows].mean()), len(held.rope)
        ),
        "elastic_over_fixed_at_16": ratio(cut["elastic"], cut["fixed"]),
        "by_kind": {
            name: {
                "elastic_over_fixed_at_16": ratio(cut["elastic"][rows], cut["fixed"][rows]),
                "full_over_elastic_at_16": ratio(cut["full"][rows], cut["elastic"][rows]),
            }
            for name, rows in (("rope", held.rope), ("cloth", ~held.rope))
        },
        "threshold": threshold,
        "search": search_figures(elastic, single, threshold),
        **content(held, elastic, threshold),
        "seeds": {"data": SEED, "training": 0, "intervals": SEED},
        "provenance": provenance(),
    }


def search_figures(model: ElasticTok, frames: Tensor, threshold: float) -> dict[str, Any]:
    """Return how often the lengths that a search returned pass, and how the two methods differ."""
    found, seconds = {}, {}
    for name, exact in (("bisection", False), ("scan", True)):
        started = perf_counter()
        found[name] = model.search({KEY: frames}, threshold=threshold, exact=exact)
        seconds[name] = perf_counter() - started
    fast, exact_one = found["bisection"], found["scan"]
    error = errors(model, frames, fast.tokens)
    passed = fast.passed[..., 0].numpy()
    return {
        "blocks": passed.size,
        "passable": int(exact_one.passed.sum()),
        "passed": int(passed.sum()),
        "passed_below_threshold": int((error[passed] < threshold).sum()),
        "equal_to_scan": float((fast.lengths == exact_one.lengths).double().mean()),
        "tokens": {name: float(each.lengths.double().mean()) for name, each in found.items()},
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def content(held: Held, model: ElasticTok, threshold: float) -> dict[str, Any]:
    """Return the tokens at a fixed error by content: crumpled or flat, moving or static."""

    def lengths(frames: Tensor) -> np.ndarray:
        found = model.search({KEY: frames}, threshold=threshold)
        numbers: np.ndarray = found.lengths[:, -1, 0].double().numpy()
        return numbers

    cloth = [i for i, rope in enumerate(held.rope) if not rope]
    area = [held.episodes[i].observations["area"] for i in cloth]
    chosen = {"crumpled": [int(x.argmin()) for x in area], "flat": [int(x.argmax()) for x in area]}
    images = [held.episodes[i].observations[KEY] for i in cloth]
    of_area = {
        name: torch.from_numpy(np.stack([x[[at]] for x, at in zip(images, rows, strict=True)]))
        for name, rows in chosen.items()
    }
    by_area = {name: lengths(frames) for name, frames in of_area.items()}
    empty = torch.from_numpy(np.median(np.concatenate(images), axis=0))  # the table
    by_share = per_object(model, of_area, empty)
    pairs = {
        name: held.frames([[at, at + 1] for at in (
            int(np.flatnonzero(moves == moving)[0]) for moves in held.moves)])
        for name, moving in (("moving", True), ("static", False))
    }  # fmt: skip
    after = {name: lengths(frames) for name, frames in pairs.items()}
    other = np.arange(len(held.rope))
    for same in (held.rope, ~held.rope):  # the frame before is of another episode of the kind
        other[same] = np.roll(other[same], 1)
    mixed = {
        name: lengths(torch.stack([frames[other, 0], frames[:, 1]], dim=1))
        for name, frames in pairs.items()
    }
    return {
        "crumpled_against_flat": against(by_area["crumpled"], by_area["flat"]),
        "crumpled_against_flat_of_object": against(by_share["crumpled"], by_share["flat"]),
        "moving_against_static": against(after["moving"], after["static"]),
        "shuffled_against_true": {
            name: {
                "tokens": [float(mixed[name].mean()), float(after[name].mean())],
                "difference": interval(
                    lambda rows, name=name: float((mixed[name] - after[name])[rows].mean()),
                    len(held.rope),
                ),
                "wilcoxon_p": float(
                    wilcoxon(mixed[name], after[name], alternative="greater").pvalue
                ) if (mixed[name] != after[name]).any() else 1.0,
            }
            for name in pairs
        },
    }


def per_object(model: ElasticTok, frames: dict[str, Tensor], empty: Tensor) -> dict[str, Any]:
    """Return the fewest tokens (n,) that leave the same share of the object unexplained.

    The share is the squared error over that of the empty scene; the threshold is the median share
    with 28 tokens. Of lengths in steps of 2.
    """
    lengths, shares = np.arange(4, model.longest + 1, 2), {}
    for name, each in frames.items():
        blank = ((each.float() - empty) / 127.5).square().mean((-1, -2, -3)).numpy()
        tokens = model.encode({KEY: each})
        left = [errors(model, each, model.truncate(tokens, int(n))) / blank for n in lengths]
        shares[name] = np.stack(left)[..., 0]  # lengths n
    limit = np.median(np.concatenate([each[lengths == 28] for each in shares.values()]))
    return {
        name: np.where((each <= limit).any(0), lengths[(each <= limit).argmax(0)], model.longest)
        for name, each in shares.items()
    }


def against(more: np.ndarray, fewer: np.ndarray) -> dict[str, Any]:
    """Return means, their difference and the one-sided Mann-Whitney test that `more` is larger."""
    return {
        "tokens": [float(more.mean()), float(fewer.mean())],
        "difference": interval(lambda rows: float((more - fewer)[rows].mean()), len(more)),
        "mann_whitney_p": float(mannwhitneyu(more, fewer, alternative="greater").pvalue),
        "n": len(more),
    }


@torch.no_grad()
def measure_tokenizers(held: Held, runs: Sequence[Path]) -> dict[str, Any]:
    """Return the figures of tokenizers on the same held-out frames of the rope.

    Rows of earlier runs are kept.
    """
    clips = held.frames([range(CLIP)] * len(held.rope))[torch.from_numpy(held.rope)]
    rows = {}
    for run in runs:
        model: Any = load(run)
        settings = read_yaml(run / "config.yaml")
        steps = checkpoint.read_header(checkpoint.find(run)).step
        batch = settings["training"]["batch"]
        minutes = steps * step_ms(model, clips[:batch, : model.window]) / 60_000
        for length in (0, 32, CUT) if isinstance(model, ElasticTok | Selftok) else (0,):
            suffix = f", {length} tokens" if length else ""
            rows[f"{settings['tokenizer']['name']}{suffix}"] = {
                **of_tokenizer(model, clips, length),
                "steps": steps,
                "frames_per_step": batch * model.window,
                "cpu_minutes": round(minutes, 1),
                "weights": sum(p.numel() for p in model.parameters()),
            }
    written = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    kept = written.get("tokenizers", {"rows": {}, "provenance": {}})
    return {
        "clips": len(clips),
        "frames_per_clip": CLIP,
        "rows": kept["rows"] | rows,
        "provenance": kept["provenance"] | dict.fromkeys(rows, provenance()),
    }


def step_ms(model: Any, frames: Tensor) -> float:
    """Return the CPU milliseconds of the loss of some windows and its gradient."""
    segments = torch.arange(len(frames))[:, None].expand(-1, frames.shape[1])
    batch = Batch({KEY: frames}, torch.zeros(len(frames), model.window - 1, 1), segments=segments)
    trained = copy.deepcopy(model).train().requires_grad_(True)

    @torch.enable_grad()
    def step() -> None:
        trained.loss(batch).total.backward()

    return timed(step)


def of_tokenizer(model: Any, clips: Tensor, length: int) -> dict[str, Any]:
    """Return the figures of a tokenizer, of its first `length` tokens unless that is 0."""

    def encode(frames: Tensor) -> Tokens:
        tokens = model.encode({KEY: frames})
        return model.truncate(tokens, length) if length else tokens

    tokens = encode(clips)
    psnr = (-10 * np.log10(errors(model, clips, tokens) / 4)).mean(1)
    ids = tokens.ids if tokens.mask is None else tokens.ids[tokens.mask]
    one = clips[:1, : model.stride]
    single = encode(one)
    return {
        "psnr": interval(lambda rows: float(psnr[rows].mean()), len(psnr)),
        "tokens_per_frame": ids.numel() / clips[..., 0, 0, 0].numel(),
        "vocabulary": model.vocabulary,
        "perplexity": float(usage(ids.flatten(), model.vocabulary)["perplexity"]),
        "encode_ms": timed(lambda: encode(one)) / model.stride,
        "decode_ms": timed(lambda: model.decode(single)) / model.stride,
    }


def timed(call: Callable[[], Any]) -> float:
    """Return the CPU milliseconds of a call, the median of several."""
    call()
    found = []
    for _ in range(TIMED):
        started = process_time()
        call()
        found.append(1000 * (process_time() - started))
    return round(median(found), 2)


def interval(value: Callable[[np.ndarray], float], count: int) -> dict[str, Any]:
    """Return `value` of all episodes and its interval by a bootstrap over them."""
    found = bootstrap(
        (np.arange(count),), lambda rows: value(rows.astype(int)), n_resamples=DRAWS,
        vectorized=False, method="percentile", random_state=SEED,
    ).confidence_interval  # fmt: skip
    every = value(np.arange(count))
    return {"value": round(float(every), 4), "interval": [round(float(x), 4) for x in found]}


def write(section: str, figures: dict[str, Any]) -> None:
    """Write a section of the JSON file."""
    written = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    written[section] = figures
    with replacing(FILE) as partial:
        partial.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


def write_page() -> None:
    """Write the table between the marks of the page."""
    found = json.loads(FILE.read_text(encoding="utf-8"))["tokenizers"]["rows"]
    lines = [
        "| tokenizer | PSNR, dB | tokens a frame | encode, ms | decode, ms | perplexity | codes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        low, high = row["psnr"]["interval"]
        lines.append(
            f"| {name} | {row['psnr']['value']:.2f} ({low:.2f} to {high:.2f}) | "
            f"{row['tokens_per_frame']:g} | {row['encode_ms']:.1f} | {row['decode_ms']:.1f} | "
            f"{row['perplexity']:.0f} | {row['vocabulary']:,} |"
        )
    begin, end = "<!-- table -->\n", "<!-- end -->"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    with replacing(PAGE) as partial:
        text = before + begin + "\n".join(lines) + "\n" + end + after
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
