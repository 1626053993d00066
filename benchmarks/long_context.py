"""Measure long contexts: memory, a needle, a shared prefix, packing, and a task that needs memory.

    python benchmarks/long_context.py memory
    python benchmarks/long_context.py needle
    python benchmarks/long_context.py prefix
    python benchmarks/long_context.py packing
    python benchmarks/long_context.py drawers --out /tmp/drawers
    python benchmarks/long_context.py page

Each but the last writes a section of benchmarks/long_context.json; `page` writes the tables of
docs/results/long_context.md. Intervals are 95 %: exact binomial for shares, the range of t for
means over seeds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import long_context_drawers as drawers
import long_context_page as page
import numpy as np
import torch
import torch.nn.functional as F
from long_context_page import FILE
from scipy import stats
from torch import Tensor, nn

from latentplan.data.packing import PADDING, pack
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.models.frame_tokens import TOKENS
from latentplan.models.lwm import transformer as lwm_transformer
from latentplan.models.lwm.lwm import LWM
from latentplan.models.lwm.stream import Stream
from latentplan.models.lwm.transformer import LongTransformer
from latentplan.types import ActionSpec, ArraySpec, Batch, Context, Spec

MIB = 2**20


def main() -> None:
    """Measure one section, or write the page."""
    sections: dict[str, Callable[[Path], Any]] = {
        "memory": memory, "needle": needle, "prefix": prefix, "packing": packing,
        "drawers": drawers.measure,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("section", choices=[*sections, "page"])
    parser.add_argument("--out", type=Path, default=Path("/tmp/drawers"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.section == "page":
        page.write()
        return
    began = perf_counter()
    figures = sections[chosen.section](chosen.out)
    figures |= {"seconds": round(perf_counter() - began, 1), "provenance": provenance()}
    written = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    written[chosen.section] = figures
    with replacing(FILE) as partial:
        partial.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


# Memory ------------------------------------------------------------------------------------------

LENGTHS = (1024, 2048, 4096, 8192, 16384)
DENSE = 8192  # longest sequence of the controls


def memory(out: Path) -> dict[str, Any]:
    """Return the peak memory of a forward and backward pass by length, and lines through it."""
    found: dict[str, Any] = {}
    for name, attention in {"blockwise": None, "dense": dense, "fused, masked": masked}.items():
        lengths = [n for n in LENGTHS if attention is None or n <= DENSE]
        x, y = np.array(lengths), np.array([_peak(n, attention) for n in lengths])
        line = stats.linregress(x, y)
        spread = stats.t.ppf(0.975, len(x) - 2)
        found[name] = {
            "MiB": dict(zip(map(str, lengths), y.tolist(), strict=True)),
            "bytes_per_position": line.slope * MIB,
            "bytes_per_position_95": [(line.slope + s * spread * line.stderr) * MIB
                                      for s in (-1, 1)],
            "r_squared": line.rvalue**2,
        }  # fmt: skip
    return found


def dense(q: Tensor, k: Tensor, v: Tensor, *, block: int, segments: Any, chunk: int) -> Tensor:
    """Return attention with all scores at once, as it is written in a textbook."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return scores.masked_fill(~_allowed(q, block, segments), -torch.inf).softmax(-1) @ v


def masked(q: Tensor, k: Tensor, v: Tensor, *, block: int, segments: Any, chunk: int) -> Tensor:
    """Return torch's fused attention with a mask of all pairs."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_allowed(q, block, segments))


def _allowed(q: Tensor, block: int, segments: Tensor) -> Tensor:
    at = torch.arange(q.shape[2]) // block
    return (at[None] <= at[:, None]) & (segments[:, None, :, None] == segments[:, None, None])


def _peak(length: int, attention: Any) -> float:
    """Return the MiB that a 2-layer transformer takes beyond its weights and input, in a process.

    Two packed examples a row, blocks of 2 positions.
    """
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def run() -> None:
        torch.manual_seed(0)
        if attention is not None:
            lwm_transformer.blockwise_attention = attention  # type: ignore[assignment]
        model = LongTransformer(32, layers=2, heads=2, block=2)
        segments = (torch.arange(length) > length // 3)[None].long()
        model(torch.randn(1, 64, 32), segments[:, :64]).sum().backward()  # what is loaded once
        x = torch.randn(1, length, 32)
        before = _resident()
        model(x, segments).square().mean().backward()
        queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)

    process = context.Process(target=run)
    process.start()
    found = float(queue.get())
    process.join()
    return found


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / MIB


# Needle ------------------------------------------------------------------------------------------

NOISE, CUES, QUERY = 16, 8, 24  # ids 0 to 15 are noise, 16 to 23 cues, 24 asks for the cue
DEPTHS = (0, 20, 40, 60, 80, 95)  # % of the sequence before the cue
TESTED = (512, 1024, 2048, 4096)
WINDOW = 256
STAGES = (  # length, sequences a step, steps, rotary base
    (64, 64, 120, 1e4), (256, 16, 60, 1e4), (1024, 4, 40, 1e5), (4096, 1, 20, 1e6),
)  # fmt: skip
SEQUENCES = 12  # for each length and depth


class Retriever(nn.Module):
    """Two layers that predict the cue at a query, the last position of a sequence."""

    def __init__(self, theta: float = 1e4) -> None:
        """Make the layers."""
        super().__init__()
        self.embed, self.head = nn.Embedding(QUERY + 1, 32), nn.Linear(32, CUES)
        self.body = LongTransformer(32, layers=2, heads=2, theta=theta)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (B, cues) of sequences (B, L)."""
        logits: Tensor = self.head(self.body(self.embed(ids))[:, -1])
        return logits


def needle(out: Path) -> dict[str, Any]:
    """Return the accuracy of a long context and of a window, by length and depth."""
    found: dict[str, Any] = {"stages": STAGES, "depths": DEPTHS, "window": WINDOW}
    models = _retrievers()
    for name, longest in (("long", max(TESTED)), (f"window {WINDOW}", WINDOW)):
        model = models[longest]
        draw = np.random.default_rng(1)
        table = {}
        for length in TESTED:
            cells = []
            for depth in DEPTHS:
                ids, cue = haystacks(SEQUENCES, length, draw, depth=depth)
                with torch.no_grad():
                    parts = ids[:, -longest:].split(5)
                    hits = sum(
                        int((model(part).argmax(-1) == true).sum())
                        for part, true in zip(parts, cue.split(5), strict=True)
                    )
                cells.append(drawers.share(hits, SEQUENCES))
            table[str(length)] = cells
        found[name] = table
    found["chance"] = 1 / CUES
    return found


def haystacks(
    count: int, length: int, draw: np.random.Generator, *, depth: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return sequences (n, L) with one cue, at a depth in % or anywhere, and which cue it is."""
    ids = draw.integers(0, NOISE, (count, length))
    cue = draw.integers(0, CUES, count)
    anywhere = draw.integers(0, length - 1, count)
    at = anywhere if depth is None else np.full(count, (length - 2) * depth // 100)
    ids[np.arange(count), at] = NOISE + cue
    ids[:, -1] = QUERY
    return torch.from_numpy(ids), torch.from_numpy(cue)


def _retrievers() -> dict[int, Retriever]:
    """Return the model after each stage, by the length of its sequences."""
    found: dict[int, Retriever] = {}
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    model = Retriever()
    for length, count, steps, theta in STAGES:
        longer = Retriever(theta)
        longer.load_state_dict(model.state_dict())
        model = longer
        optimiser = torch.optim.AdamW(model.parameters(), 3e-3 if length <= 256 else 1e-3)
        for step in range(steps):
            ids, cue = haystacks(count, length, draw)
            loss = F.cross_entropy(model(ids), cue)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step % 20 == 19:
                print(f"needle: length {length}, step {step + 1}, loss {loss.item():.3f}")
        found[length] = model.eval()
    return found


# Prefix ------------------------------------------------------------------------------------------

CANDIDATES, HORIZON, ROUNDS = (16, 64), 3, 5
HISTORIES = (16, 64, 256)  # steps of 18 positions
AGAIN = 20_000  # most positions of all candidates that are encoded again


def prefix(out: Path) -> dict[str, Any]:
    """Return the time of rollouts with a shared prefix, with copies, and without a cache."""
    spec = Spec(
        {"rgb": ArraySpec((32, 32, 3), "uint8"), "joints": ArraySpec((7,), "float32")},
        ActionSpec((-1.0,) * 4, (1.0,) * 4),
    )
    torch.manual_seed(0)
    chosen = LWM.Config(contexts=(16, 512), horizon=HORIZON,
                        transformer=Stream.Config(width=96, layers=3, heads=4))  # fmt: skip
    model = LWM(spec, chosen).eval().requires_grad_(False)
    for weight in model.transformer.parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    stream, rows = model.transformer, []
    for steps in HISTORIES:
        z = model.encode({
            "rgb": torch.randint(0, 256, (1, steps, 32, 32, 3), dtype=torch.uint8),
            "joints": torch.randn(1, steps, 7),
        })  # fmt: skip
        past = torch.rand(1, steps - 1, 4) * 2 - 1
        ids, proprio = model._split(z)
        for count in CANDIDATES:
            actions = torch.rand(1, count, HORIZON, 4) * 2 - 1
            prepare, prepared = timed(lambda: model.prepare(Context(z, past)))  # noqa: B023
            shared, found = timed(lambda: model.rollout(prepared, actions))  # noqa: B023
            row = {"steps": steps, "positions": steps * stream.block, "candidates": count,
                   "prepare_s": prepare, "shared_s": shared}  # fmt: skip
            copies = replace(
                prepared.prefix,
                layers=tuple((k.repeat_interleave(count, 0), v.repeat_interleave(count, 0))
                             for k, v in prepared.prefix.layers),
                hidden=prepared.prefix.hidden.repeat_interleave(count, 0),
            )  # fmt: skip
            each = prepared._replace(prefix=copies, last=prepared.last.expand(count, -1, -1))
            row["copied_s"], copied = timed(
                lambda: model.rollout(each, actions.transpose(0, 1))  # noqa: B023
            )
            row |= same("copied", found[0], copied[:, 0])
            bytes_of = sum(k.nbytes + v.nbytes for k, v in prepared.prefix.layers)
            row |= {"shared_MiB": bytes_of / MIB, "copied_MiB": count * bytes_of / MIB}
            if count * steps * stream.block <= AGAIN:
                row["again_s"], again = timed(
                    lambda: encoded_again(stream, ids, proprio, past, actions),  # noqa: B023
                    repeats=1,
                )
                row |= same("again", found[0], again)
                solve = prepare + ROUNDS * shared
                row["speed_up"] = ROUNDS * row["again_s"] / solve
            rows.append(row)
            print(row)
    return {"rows": rows, "horizon": HORIZON, "rounds": ROUNDS}


def encoded_again(
    stream: Stream, ids: Tensor, proprio: Any, past: Tensor, actions: Tensor
) -> Tensor:
    """Return the rollout (N, H, D) of candidates that each encode the whole history."""
    n, out = actions.shape[1], []
    ids, proprio, past = (x.expand(n, -1, -1) for x in (ids, proprio, past))
    x = stream.steps(ids, proprio, torch.cat([past, actions[0, :, :1]], dim=1))
    for h in range(actions.shape[2]):
        hidden = stream.body(x.flatten(1, 2))[:, -stream.block :]
        after = stream.predicted(hidden)
        out.append(torch.cat([(after.tokens @ stream.codes).flatten(1), after.proprioception], 1))
        if h + 1 < actions.shape[2]:
            images = after.tokens @ stream.embed.weight
            seen = stream._observation(images, after.proprioception, None)
            step = torch.cat([seen, stream._action(actions[0, :, h + 1])], dim=1)
            x = torch.cat([x, step[:, None]], dim=1)
    return torch.stack(out, dim=1)


def same(name: str, found: Tensor, other: Tensor) -> dict[str, Any]:
    """Return how far the costs of two rollouts (N, H, D) are from each other, and their order."""
    one, two = (each[:, -1].square().mean(-1) for each in (found, other))
    return {
        f"{name}_cost_difference": float((one - two).abs().max() / one.abs().max()),
        f"{name}_same_order": bool(torch.equal(one.argsort(), two.argsort())),
    }


def timed(call: Callable[[], Any], *, repeats: int = 2) -> tuple[float, Any]:
    """Return the least time of a call in s, after one for warm-up if it is repeated."""
    times, result = [], None
    with torch.no_grad():
        for _ in range(repeats + (repeats > 1)):
            began = perf_counter()
            result = call()
            times.append(perf_counter() - began)
    return min(times), result


# Packing -----------------------------------------------------------------------------------------

SHORT, LONG, ROW, SYMBOLS = 6, 60, 64, 12
PACKED_STEPS, PACKED_SEEDS = 100, 3


class Unmasked(Stream):
    """A stream whose attention goes across the examples of a row."""

    def forward(self, *inputs: Any, segments: Any = None, **known: Any) -> Tensor:
        """Return the hidden states; the ids of examples are not used."""
        return super().forward(*inputs, **known)


def packing(out: Path) -> dict[str, Any]:
    """Return held-out nats a token of short and long episodes, by how rows are packed."""
    kinds: dict[str, tuple[type[Stream], str]] = {
        "masked, weight per example": (Stream, "example"),
        "masked, weight per position": (Stream, "position"),
        "naive: unmasked, weight per position": (Unmasked, "position"),
    }
    nats = {name: [_packed(*kind, seed) for seed in range(PACKED_SEEDS)]
            for name, kind in kinds.items()}  # fmt: skip
    found: dict[str, Any] = {"nats": nats, "steps": PACKED_STEPS}
    for name, rows in nats.items():
        found[name] = {
            kind: mean([row[kind] for row in rows]) for kind in ("short", "long")
        }
    best = nats["masked, weight per example"]
    found["difference"] = {
        name: {kind: mean([r[kind] - b[kind] for r, b in zip(rows, best, strict=True)])
               for kind in ("short", "long")}
        for name, rows in nats.items() if rows is not best
    }  # fmt: skip
    return found


def mean(values: Sequence[float]) -> list[float]:
    """Return the mean, and its 95 % interval by t."""
    middle = float(np.mean(values))
    away = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return [middle, middle - away, middle + away]


def episodes(count: int, draw: np.random.Generator, *, length: int) -> list[Tensor]:
    """Return episodes of one symbol a step: each goes on by a stride that its first two show.

    Strides of short episodes and of long ones are in opposite directions, and a tenth of the steps
    is noise.
    """
    sign = 1 if length == SHORT else -1
    stride = sign * draw.integers(1, 4, (count, 1))
    ids = (draw.integers(0, SYMBOLS, (count, 1)) + stride * np.arange(length)) % SYMBOLS
    noise = draw.random(ids.shape) < 0.1
    ids = np.where(noise, draw.integers(0, SYMBOLS, ids.shape), ids)
    return list(torch.from_numpy(ids))


def batch_of(examples: Sequence[Tensor]) -> Batch:
    """Return the examples packed in rows, without actions."""
    rows = pack([len(each) for each in examples], ROW)
    ids = torch.zeros(len(rows), ROW, 1, dtype=torch.int64)
    segments = torch.full((len(rows), ROW), PADDING)
    for row, members in enumerate(rows):
        joined = torch.cat([examples[each] for each in members])
        ids[row, : len(joined), 0] = joined
        numbers = [torch.full((len(examples[m]),), n) for n, m in enumerate(members)]
        segments[row, : len(joined)] = torch.cat(numbers)
    return Batch({TOKENS: ids}, torch.zeros(len(rows), ROW - 1, 1), segments=segments)


def _packed(build: type[Stream], weighting: str, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    spec = Spec({TOKENS: ArraySpec((1,), "int32")}, ActionSpec((-1.0,), (1.0,)))
    model = build(spec, Stream.Config(vocabulary=SYMBOLS, context=ROW, width=32, layers=2, heads=2,
                                      weighting=weighting))  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(PACKED_STEPS):
        some = episodes(8, draw, length=SHORT) + episodes(8, draw, length=LONG)
        order = draw.permutation(len(some))
        loss = model.loss(batch_of([some[index] for index in order])).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    held_out, found = np.random.default_rng(1000), {}
    model = Stream(spec, model.config, start=model).eval()  # one episode a row: no neighbours
    with torch.no_grad():
        for name, length in (("short", SHORT), ("long", LONG)):
            some = torch.stack(episodes(200, held_out, length=length))
            alone = Batch({TOKENS: some[..., None]}, torch.zeros(200, length - 1, 1),
                          segments=torch.zeros(200, length, dtype=torch.int64))  # fmt: skip
            found[name] = float(model.loss(alone).parts["image"])
    return found


if __name__ == "__main__":
    main()
