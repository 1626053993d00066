"""Latency of VideoWorld: generation with and without the cache, and `act` in closed loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import videoworld_agent
from torch import Tensor

import latentplan
from latentplan import config
from latentplan.models.videoworld.video_transformer import VideoTransformer
from latentplan.models.videoworld.videoworld import VideoWorld
from latentplan.training import checkpoint

SECONDS = 2.0  # approximate duration of a measurement
CALLS = 3  # least number of timed calls
BATCHES = (1, 16)  # contexts per call


def untrained(preset: str, *, like: str, out: Path) -> str:
    """Write an untrained run of a preset for the spec and tasks of another; return its path.

    Latency does not depend on the weights, which are random.
    """
    other = videoworld_agent.load(like)
    chosen = config.resolve("model", preset).values
    sections = {"model": VideoWorld.Config, "training": VideoWorld.Training}
    sizes = config.load(sections, preset=chosen)["model"]
    made = VideoWorld(other.spec, sizes.fitted(other.spec, tasks=other.config.transformer.tasks))
    checkpoint.save(out / "best.safetensors", made, name="videoworld", step=0, metrics={})
    return str(out)


def timing(run: str, *, device: str = "cpu", chunk: int = 1) -> dict[str, Any]:
    """Return the median ms of generating codes and a frame, tokens per second, and ms of `act`."""
    model = videoworld_agent.load(run).to(device)
    transformer = model.transformer
    horizon, k = transformer.config.horizon, transformer.tokens
    drawn = torch.Generator().manual_seed(0)
    row: dict[str, Any] = {"device": device, "torch_threads": torch.get_num_threads()}
    row |= {"context": model.context, "tokens_per_frame": k, "codes_per_frame": horizon}
    for batch in BATCHES:
        shape = (batch, model.context, k)
        tokens = torch.randint(transformer.config.vocabulary, shape, generator=drawn).to(device)
        found = row[f"batch_{batch}"] = generating(transformer, tokens, device=device)
        if model.frame_prior is not None:
            found["joint_ms"] = joint_ms(model, tokens, device=device)
            found["joint_speedup"] = round(found["frame_ms_uncached"] / found["joint_ms"], 2)
    row["act"] = acting(run, device=device, chunk=chunk)
    return row


def generating(transformer: VideoTransformer, tokens: Tensor, *, device: str) -> dict[str, float]:
    """Return the median ms of generating codes and a frame after frames (B, T, K)."""
    task = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    codes = transformer.generate(tokens, task).codes[:, 0]
    calls: dict[str, tuple[int, Callable[[], Any], Callable[[], Any]]] = {
        "codes": (
            codes.shape[1],
            lambda: transformer.generate(tokens, task),
            lambda: transformer.generate(tokens, task, cached=False),
        ),
        "frame": (
            transformer.tokens,
            lambda: transformer.imagine(tokens, codes, task),
            lambda: transformer.imagine(tokens, codes, task, cached=False),
        ),
    }
    found: dict[str, float] = {}
    for part, (count, cached, uncached) in calls.items():
        fast, slow = median(cached, device), median(uncached, device)
        found |= {f"{part}_ms_cached": fast, f"{part}_ms_uncached": slow}
        found[f"{part}_speedup"] = round(slow / fast, 2)
        found[f"{part}_tokens_per_s"] = round(1e3 * len(tokens) * count / fast, 1)
    same = calls["frame"][1]() == calls["frame"][2]()
    found["frame_token_agreement"] = round(float(same.float().mean()), 4)
    return found


def joint_ms(model: VideoWorld, tokens: Tensor, *, device: str) -> float:
    """Return the median ms of a frame that is decoded jointly after frames (B, T, K)."""
    task = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    transformer, prior = model.transformer, model.frame_prior
    assert prior is not None
    codes = transformer.generate(tokens, task).codes[:, 0]

    @torch.no_grad()
    def decode() -> Tensor:
        states = transformer.plan_states(tokens, codes, task)
        return prior.sample(tokens[:, -1], prior.condition(states=states))

    return median(decode, device)


def acting(run: str, *, device: str, chunk: int) -> dict[str, float]:
    """Return the ms of `act` of the policy `generative`: encoding, codes and actions."""
    planner = latentplan.load(run, policy="generative", device=device, overrides=[f"chunk={chunk}"])
    spec, tasks = planner.model.spec, planner.model.config.transformer.tasks
    rng = np.random.default_rng(0)
    seen = [
        {key: rng.integers(0, 256, a.shape, np.uint8) for key, a in spec.observation.items()}
        for _ in range(8)
    ]
    planner.goal(seen[0], text=tasks[0] if tasks else "")
    taken = []
    began = perf_counter()
    while perf_counter() - began < SECONDS or len(taken) < CALLS * chunk:
        start = perf_counter()
        planner.act(seen[len(taken) % len(seen)])
        taken.append(1e3 * (perf_counter() - start))
    taken = taken[chunk:]
    p50, p90 = np.percentile(taken, (50, 90))
    mean = float(np.mean(taken))
    return {"chunk": chunk, "p50_ms": round(float(p50), 2), "p90_ms": round(float(p90), 2),
            "mean_ms": round(mean, 2), "calls": len(taken)}  # fmt: skip


def median(call: Callable[[], Any], device: str) -> float:
    """Return the median ms of a call, after one warm-up call."""
    taken: list[float] = []
    call()
    began = perf_counter()
    while perf_counter() - began < SECONDS / 2 or len(taken) < CALLS:
        start = perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(1e3 * (perf_counter() - start))
    return round(float(np.median(taken)), 3)
