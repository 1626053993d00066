"""A store of tokens: what the generator is trained on, made once from a store of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentplan.data.store import ZarrStore, check_same
from latentplan.models.videoworld.generator import CODES, TASK, TOKENS
from latentplan.models.videoworld.ldm import LDM
from latentplan.models.videoworld.videoworld import token_spec
from latentplan.tokenizers.vqvae import VQVAE
from latentplan.types import Array, Episode

FRAMES = 64  # encoded at a time


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
    spec = token_spec(tokenizer.spec, tokenizer, ldm)
    if out.exists():
        tokens = ZarrStore.open(out, "a")
        advice = "delete it, or give another run folder"
        check_same(f"{out}: spec", tokens.spec.to_json(), spec.to_json(), advice=advice)
    else:
        tokens = ZarrStore.create(out, spec)
    numbers = {name: place for place, name in enumerate(tasks, start=1)}
    with tokens:
        for index in range(len(tokens), len(store)):
            episode = store.episode(index)
            task = _tasks(episode, numbers, spoken=spoken)
            tokens.append(_encoded(episode, tokenizer, ldm, task))
            advance(1)
    return ZarrStore.open(out)


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

