"""Measure Selftok: images decoded from few to all tokens, entropy of its tokens, goal costs.

    python benchmarks/selftok.py reveal --data both.zarr --run runs/selftok
    python benchmarks/selftok.py entropy --data both.zarr --run runs/selftok --grid runs/vqvae
    python benchmarks/selftok.py goals --data rope.zarr --run runs/selftok --grid runs/vqvae
    python benchmarks/selftok.py page

Each writes its section of benchmarks/selftok.json; `page` writes the tables of
docs/results/selftok.md, where the trainings are listed. Errors are of images scaled to [-1, 1], on
held-out episodes; intervals are 95 % (percentile bootstrap over episodes).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from elastictok import APART, HELD_OUT, KEY, Held, interval
from scipy.stats import spearmanr
from selftok_page import FILE, write_page
from torch import Tensor, nn

from latentplan.data.store import ZarrStore
from latentplan.data.windows import is_test
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.nn.transformer import Transformer
from latentplan.tokenizers.selftok.selftok import Selftok
from latentplan.training import checkpoint
from latentplan.types import Array, Tokens

SEED, SMOOTHING = 0, 0.5  # SMOOTHING: added to each count of a code
STEPS = (1, 4, 16)  # of the flow
WIDTH, LAYERS, HEADS, DROPOUT = 64, 2, 4, 0.1  # of the prior
UPDATES, BATCH, RATE = 500, 32, 3e-3  # of its training
EVERY = 2  # one of so many images that differ from the one before
STRIDES = (1, 2)  # of the orders that a prior is trained on; 1 is the tokens' own
GOALS, CANDIDATES = 200, 128  # goals, and stored images among which each is looked for
KEPT = (32, 8)  # candidates left after the rounds with few tokens


def main() -> None:
    """Measure a section, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("section", choices=("reveal", "entropy", "goals", "page"))
    for name in ("data", "run", "grid"):
        parser.add_argument(f"--{name}", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.section == "page":
        write_page()
        return
    tokenizer = load(chosen.run)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        if chosen.section == "reveal":
            figures = reveal(Held(chosen.data), tokenizer)
        else:
            measure = entropy if chosen.section == "entropy" else goals
            figures = measure(chosen.data, {"selftok": tokenizer, "vqvae": load(chosen.grid)})
    write(chosen.section, figures | {"seed": SEED, "provenance": provenance()})


def load(run: Path) -> Any:
    """Return the tokenizer of a run."""
    return checkpoint.load(checkpoint.find(run), kind="tokenizer").model


def groups(tokenizer: Selftok) -> list[int]:
    """Return how many tokens are given above each of the schedule's times, none first."""
    shares = np.cumsum((0, *tokenizer.config.schedule)) / sum(tokenizer.config.schedule)
    return [round(share * tokenizer.config.tokens) for share in shares]


@torch.no_grad()
def reveal(held: Held, tokenizer: Selftok) -> dict[str, Any]:
    """Return PSNR of two images an episode, decoded from groups of tokens in either order."""
    frames = held.frames([[0, APART]] * len(held.rope)).flatten(0, 1)[:, None]
    full = tokenizer.encode({KEY: frames})
    place = torch.arange(tokenizer.tokens)

    def of(mask: Tensor, **more: int) -> Array:
        """Return PSNR (episodes, 2)."""
        tokens = Tokens(full.ids, mask.expand_as(full.ids))
        shown = tokenizer.decode(tokens, **more)[KEY].float()
        error = ((shown - frames.float()) / 127.5).square().mean((-1, -2, -3)).numpy()
        return -10 * np.log10(error / 4).reshape(-1, 2)

    lengths = groups(tokenizer)
    by = {
        "coarse to fine": np.stack([of(place < n) for n in lengths]),
        "fine to coarse": np.stack([of(place >= tokenizer.tokens - n) for n in lengths]),
    }
    every = np.arange(len(held.rope))
    mean = held.frames([[0, APART]] * len(every)).float()
    blank = ((mean - mean.flatten(0, 1).mean(0)) / 127.5).square().mean((-1, -2, -3)).numpy()
    draws = np.random.default_rng(SEED).integers(len(every), size=(2000, len(every)))
    return {
        "images": len(frames),
        "tokens": lengths,
        "psnr": {
            kind: {
                name: [
                    interval(lambda r, x=x[rows]: float(x[r].mean()), int(rows.sum())) for x in each
                ]
                for name, each in by.items()
            }
            for kind, rows in (("all", every >= 0), ("rope", held.rope), ("cloth", ~held.rope))
        },
        "share_of_resamples_that_rise": {
            name: float(np.mean([(np.diff(x[:, rows].mean((1, 2))) > 0).all() for rows in draws]))
            for name, x in by.items()
        },
        "steps_of_the_flow": {
            n: interval(lambda r, x=x: float(x[r].mean()), len(every))
            for n, x in ((n, of(place >= 0, steps=n)) for n in STEPS)
        },
        "psnr_of_the_mean_image": float((-10 * np.log10(blank / 4)).mean()),
    }  # fmt: skip


class Prior(nn.Module):
    """A causal transformer over the tokens of an image, in some order."""

    def __init__(self, vocabulary: int, tokens: int) -> None:
        """Make the layers."""
        super().__init__()
        self.embed = nn.Embedding(vocabulary + 1, WIDTH)  # the last begins an image
        self.places = nn.Parameter(0.02 * torch.randn(tokens, WIDTH))
        self.body = Transformer(WIDTH, layers=LAYERS, heads=HEADS, dropout=DROPOUT)
        self.head = nn.Linear(WIDTH, vocabulary)
        for layer in (self.embed, self.head):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, ids: Tensor, order: Tensor) -> Tensor:
        """Return logits (n, K, V) of each of ids (n, K), given those before it in `order` (K,)."""
        start = torch.full_like(ids[:, :1], self.embed.num_embeddings - 1)
        seen = self.embed(torch.cat([start, ids[:, order[:-1]]], dim=1))
        # The place to predict is given beside the token before it.
        logits: Tensor = self.head(self.body(seen + self.places[order]))
        return logits


def entropy(data: Path, tokenizers: dict[str, Any]) -> dict[str, Any]:
    """Return the nats of tokens by position, under priors of each tokenizer and order."""
    images, episodes = distinct(data)
    test = is_test(episodes, HELD_OUT)
    found: dict[str, Any] = {"images": [int((~test).sum()), int(test.sum())]}
    groups = np.unique(episodes[test], return_inverse=True)[1]
    for name, tokenizer in tokenizers.items():
        with torch.no_grad():
            ids = torch.cat([tokenizer.encode({KEY: x[:, None]}).ids for x in images.split(64)])
        ids = ids.flatten(1)
        train, held = ids[~test], ids[test]
        alone = unigram(train, held, tokenizer.vocabulary)  # n k
        found[name] = {"codes": tokenizer.vocabulary, "orders": {}}
        for stride in STRIDES:
            order = torch.cat([torch.arange(s, ids.shape[1], stride) for s in range(stride)])
            nats, spread = fit(train, held, order, tokenizer.vocabulary)
            found[name]["orders"][stride] = by_position(
                nats, spread, alone[:, order].numpy(), groups, stride
            )
            print(name, stride, found[name]["orders"][stride]["fall"], flush=True)
    return found


def distinct(data: Path) -> tuple[Tensor, Array]:
    """Return images (n, h, w, 3), of those that differ from the one before, and episodes (n,)."""
    images, episodes = [], []
    with ZarrStore.open(data) as store:
        for number in range(len(store)):
            seen = store.episode(number).observations[KEY]
            new = np.r_[True, (seen[1:] != seen[:-1]).any((1, 2, 3))]
            images.append(seen[new][::EVERY])
            episodes += [number] * len(images[-1])
    return torch.from_numpy(np.concatenate(images)), np.array(episodes)


def unigram(train: Tensor, held: Tensor, vocabulary: int) -> Tensor:
    """Return the nats (n, K) of held-out ids under the frequencies of each position."""
    counts = torch.stack([torch.bincount(x, minlength=vocabulary) for x in train.T]) + SMOOTHING
    logs = (counts / counts.sum(1, keepdim=True)).log()  # k v
    return -logs.gather(1, held.T).T


def fit(train: Tensor, held: Tensor, order: Tensor, vocabulary: int) -> tuple[Array, Array]:
    """Train a prior; return nats (n, K) of held-out ids, and the entropies of its predictions."""
    torch.manual_seed(SEED)
    prior = Prior(vocabulary, len(order)).train()
    optimizer = torch.optim.AdamW(prior.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=UPDATES + 1)
    for _ in range(UPDATES):
        ids = train[torch.randint(len(train), (BATCH,))]
        loss = F.cross_entropy(prior(ids, order).flatten(0, 1), ids[:, order].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    nats, spread = [], []
    with torch.no_grad():
        for ids in held.split(64):
            logs = prior.eval()(ids, order).log_softmax(-1)
            nats.append(-logs.gather(-1, ids[:, order, None])[..., 0])
            spread.append(-(logs.exp() * logs).sum(-1))
    return torch.cat(nats).numpy(), torch.cat(spread).numpy()


def by_position(
    nats: Array, spread: Array, alone: Array, episodes: Array, stride: int
) -> dict[str, Any]:
    """Return means by position, and how they change along each segment of the order.

    `fall` is the mean of a segment's first third less that of its last third, in nats; rows
    (n, K) are averaged by episode first.
    """
    count = episodes.max() + 1
    means = {
        name: np.stack([x[episodes == e].mean(0) for e in range(count)])
        for name, x in (("nats", nats), ("entropy", spread), ("gain", alone - nats))
    }  # episodes K
    sizes = [len(range(start, nats.shape[1], stride)) for start in range(stride)]
    ends = np.cumsum([0, *sizes])

    def fall(x: Array, rows: Array, segment: int) -> float:
        part = x[rows, ends[segment] : ends[segment + 1]].mean(0)
        third = max(1, len(part) // 3)
        return float(part[:third].mean() - part[-third:].mean())

    return {
        **{name: np.round(x.mean(0), 4).tolist() for name, x in means.items()},
        "mean": {
            name: interval(lambda r, x=x: float(x[r].mean()), count) for name, x in means.items()
        },
        "unigram": interval(
            lambda r: float((means["nats"] + means["gain"])[r].mean()), count
        ),
        "fall": {
            name: [
                interval(lambda r, x=means[name], s=s: fall(x, r, s), count) for s in range(stride)
            ]
            for name in ("nats", "entropy")
        },
        "spearman": [
            float(spearmanr(range(size), means["entropy"].mean(0)[end : end + size]).statistic)
            for size, end in zip(sizes, ends, strict=False)
        ],
    }


def goals(data: Path, tokenizers: dict[str, Any]) -> dict[str, Any]:
    """Return how costs of images order them, against the keypoints' distance to a goal.

    Each goal is compared with CANDIDATES images of other times and episodes.
    """
    with ZarrStore.open(data) as store:
        seen = [store.episode(number).observations for number in range(len(store))]
    images = torch.from_numpy(np.concatenate([x[KEY] for x in seen]))
    points = torch.from_numpy(np.concatenate([x["keypoints"] for x in seen])).double()
    draw = np.random.default_rng(SEED)
    goal = draw.choice(len(images), GOALS, replace=len(images) < GOALS)
    others = np.stack([draw.choice(np.delete(np.arange(len(images)), g), CANDIDATES) for g in goal])
    away = keypoint_distance(points[goal][:, None], points[others]).numpy()  # goals candidates
    selftok = tokenizers["selftok"]
    costs = {"pixels": images.float().flatten(1)[:, None]}
    with torch.no_grad():
        for name, tokenizer in tokenizers.items():
            ids = torch.cat([tokenizer.encode({KEY: x[:, None]}).ids for x in images.split(64)])
            costs[name] = tokenizer.quantizer.vectors(ids.flatten(1))  # n k width
    found = {name: between(x, goal, others) for name, x in costs.items() if name != "selftok"}
    lengths = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= selftok.config.tokens]
    for n in lengths:
        found[f"selftok, first {n}"] = between(costs["selftok"][:, :n], goal, others)
        found[f"selftok, last {n}"] = between(costs["selftok"][:, -n:], goal, others)
    picked = {name: cost.argmin(1) for name, cost in found.items()}
    rounds = {
        "selftok, 4 then 16 then all": [f"selftok, first {n}" for n in (4, 16, lengths[-1])],
        "selftok, last 4 then 16 then all": [f"selftok, last {n}" for n in (4, 16, lengths[-1])],
    }
    picked |= {name: cascade([found[each] for each in rows]) for name, rows in rounds.items()}
    rows = np.arange(GOALS)
    best = away.min(1)
    return {
        "goals": GOALS,
        "candidates": CANDIDATES,
        "correlation": {name: correlations(cost, away) for name, cost in found.items()},
        "distance_of_the_choice_mm": {
            name: interval(lambda r, at=at: float(1000 * away[rows, at][r].mean()), GOALS)
            for name, at in picked.items()
        },
        "distance_of_the_best_mm": interval(lambda r: float(1000 * best[r].mean()), GOALS),
        "distance_of_any_mm": interval(lambda r: float(1000 * away[r].mean()), GOALS),
    }  # fmt: skip


def keypoint_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean distance (...,) of keypoints (..., k, 2), a rope's ends being alike."""
    orders = [(a - x).norm(dim=-1).mean(-1) for x in (b, b.flip(-2))]
    return torch.minimum(*orders)


def between(x: Tensor, goal: Array, others: Array) -> Array:
    """Return distances (goals, candidates) of vectors x (n, k, width)."""
    rows = zip(goal, others, strict=True)
    each = [(x[other] - x[g]).square().sum((1, 2)).sqrt() for g, other in rows]
    found: Array = torch.stack(each).numpy()
    return found


def cascade(costs: Sequence[Array]) -> Array:
    """Return the choice (goals,) of rounds that each keep the KEPT best by the next cost."""
    chosen = []
    for row in range(len(costs[0])):
        left = np.arange(costs[0].shape[1])
        for cost, kept in zip(costs, (*KEPT, 1), strict=True):
            left = left[np.argsort(cost[row][left], kind="stable")[:kept]]
        chosen.append(left[0])
    return np.array(chosen)


def correlations(cost: Array, away: Array) -> dict[str, Any]:
    """Return the mean rank correlation of each goal, of all candidates, the near and the far."""
    half = away.shape[1] // 2
    order = away.argsort(1)
    parts = {"all": order, "near": order[:, : half // 2], "far": order[:, half:]}
    found = {}
    for name, at in parts.items():
        x, y = (np.take_along_axis(each, at, 1) for each in (cost, away))
        each = np.array([spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])
        each = np.nan_to_num(each)  # equal codes: no order
        found[name] = interval(lambda r, each=each: float(each[r].mean()), len(each))
    return found


def write(section: str, figures: dict[str, Any]) -> None:
    """Write a section of the JSON file."""
    written = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    written[section] = figures
    with replacing(FILE) as partial:
        partial.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
