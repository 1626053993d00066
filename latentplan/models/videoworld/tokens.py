"""Stores that are made once: tokens of pictures, which the generator is trained on, and its states.

The states are those that the inverse dynamics reads: making them takes longer than reading them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentplan.data.store import ZarrStore, check_same
from latentplan.models.videoworld.generator import CODES, HIDDEN, TASK, TOKENS, Generator
from latentplan.models.videoworld.ldm import LDM
from latentplan.models.videoworld.videoworld import token_spec
from latentplan.tokenizers.vqvae import VQVAE
from latentplan.types import Array, ArraySpec, Episode, Spec

FRAMES = 64  # encoded at a time
PLANS = 256  # generated at a time


def task_names(store: ZarrStore, *, spoken: bool = False) -> tuple[str, ...]:
    """Return the tasks that the labels of a store name, in order of the alphabet.

    With `spoken` their sentences.
    """
    found = {label.text if spoken else label.task for _, label in store.labels()}
    return tuple(sorted(found - {""}))


def tokenise(
    store: ZarrStore,
    out: Path,
    *,
    tokenizer: VQVAE,
    ldm: LDM,
    tasks: Sequence[str] = (),
    spoken: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> ZarrStore:
    """Return the store of tokens at `out`, open to read; what is missing there is made first.

    `tasks` are those of `task_names`; with `spoken`, sentences.
    Its episodes are those of `store`, with the same actions and labels. Codes look ahead: behind
    an episode's last frame the world stands still. Raises StoreError where `out` is of another
    spec.
    """
    tokens = _opened(out, token_spec(tokenizer.spec, tokenizer, ldm))
    numbers = {name: place for place, name in enumerate(tasks, start=1)}
    with tokens:
        for index in range(len(tokens), len(store)):
            episode = store.episode(index)
            task = _tasks(episode, numbers, spoken=spoken)
            tokens.append(_encoded(episode, tokenizer, ldm, task))
            advance(1)
    return ZarrStore.open(out)


def add_states(
    tokens: ZarrStore,
    out: Path,
    generator: Generator,
    *,
    advance: Callable[[int], None] = lambda count: None,
) -> ZarrStore:
    """Return the store at `out`, open to read: episodes of `tokens` with the generator's states.

    Those after each frame and the codes that the generator finds likeliest there, from as many
    frames as it would have seen by then. What is missing is made first; StoreError where `out` is
    of another spec.
    """
    c = generator.config
    states = ArraySpec((c.horizon + 1, c.width), "float16", "states after the frame and its codes")
    spec = replace(tokens.spec, observation={**tokens.spec.observation, HIDDEN: states})
    store = _opened(out, spec)
    with store:
        done = len(store)
        while done < len(tokens):
            episodes: list[Episode] = []
            while done + len(episodes) < len(tokens) and sum(len(e) for e in episodes) < PLANS:
                episodes.append(tokens.episode(done + len(episodes)))
            for episode, found in zip(episodes, _states(episodes, generator), strict=True):
                observations = {**episode.observations, HIDDEN: found}
                store.append(replace(episode, observations=observations))
            advance(len(episodes))
            done += len(episodes)
    return ZarrStore.open(out)


def _opened(out: Path, spec: Spec) -> ZarrStore:
    """Return the store at `out`, to be gone on with; StoreError where it is of another spec."""
    if not out.exists():
        return ZarrStore.create(out, spec)
    store = ZarrStore.open(out, "a")
    advice = "delete it, or give another run folder"
    check_same(f"{out}: spec", store.spec.to_json(), spec.to_json(), advice=advice)
    return store


@torch.no_grad()
def _states(episodes: Sequence[Episode], generator: Generator) -> list[Array]:
    """Return (L + 1, H + 1, width) float16 of each episode."""
    c, device = generator.config, next(generator.parameters()).device
    lengths = [len(episode) + 1 for episode in episodes]
    tokens, task = (
        torch.from_numpy(np.concatenate([e.observations[key] for e in episodes])).long().to(device)
        for key in (TOKENS, TASK)
    )
    since = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))
    found = torch.empty(len(tokens), c.horizon + 1, c.width, dtype=torch.float16)
    for seen in range(1, c.context + 1):  # frames by then
        rows = (since.clamp(max=c.context - 1) == seen - 1).nonzero()[:, 0]
        for first in range(0, len(rows), PLANS):
            some = rows[first : first + PLANS]
            context = tokens[some[:, None] + torch.arange(1 - seen, 1)]
            found[some] = generator.generate(context, task[some]).hidden[:, 0].half().cpu()
    return np.split(found.numpy(), np.cumsum(lengths)[:-1])


@torch.no_grad()
def _encoded(episode: Episode, tokenizer: VQVAE, ldm: LDM, task: Array) -> Episode:
    device = next(ldm.parameters()).device
    keys = tokenizer.config.images
    pictures = {k: torch.from_numpy(episode.observations[k]).to(device) for k in keys}
    tokens: list[Tensor] = []
    codes: list[Tensor] = []
    for start in range(0, len(episode) + 1, FRAMES):
        rows = slice(start, start + FRAMES)
        tokens.append(tokenizer.encode({k: v[None, rows] for k, v in pictures.items()})[0])
        codes.append(ldm.encode_video(pictures, rows=rows))
    return Episode(
        observations={
            TOKENS: torch.cat(tokens).int().cpu().numpy(),
            CODES: torch.cat(codes).int().cpu().numpy(),
            TASK: task,
        },
        actions=episode.actions,
        rewards=episode.rewards,
        terminated=episode.terminated,
        truncated=episode.truncated,
        seed=episode.seed,
        info=episode.info,
        labels=episode.labels,
    )


def _tasks(episode: Episode, numbers: dict[str, int], *, spoken: bool) -> Array:
    """Return the number (L + 1,) of the task at hand; where labels overlap, that of the later."""
    found = np.zeros(len(episode) + 1, np.int32)
    for label in sorted(episode.labels, key=lambda each: each.start):
        stop = len(found) if label.stop < 0 else label.stop + 1
        found[label.start : stop] = numbers.get(label.text if spoken else label.task, 0)
    return found

