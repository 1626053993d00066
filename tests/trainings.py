"""Trainings of every registered learner: a small store, a few steps, and all that a run holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latentplan import registry
from latentplan.data.store import ZarrStore
from latentplan.protocols import Staged
from latentplan.training import checkpoint, state
from latentplan.types import ActionSpec, ArraySpec, Episode, Label, Spec

KINDS = ("model", "tokenizer")
NAMES = [(kind, name) for kind in KINDS for name in sorted(registry.BUILT_IN[kind])]
SPEC = Spec(
    {
        "rgb": ArraySpec((64, 64, 3), "uint8"),
        "keypoints": ArraySpec((3, 2), "float32", "metres"),
    },
    ActionSpec((-1.0,) * 4, (1.0,) * 4),
    env="toy",
    privileged=("keypoints",),
)
STEPS, EPISODES, LENGTH = 4, 5, 17
every_name = pytest.mark.parametrize(("kind", "name"), NAMES, ids=[name for _, name in NAMES])
SMALL = {
    "cfm": ["model.channels=[8,8]", "model.strides=[2,2]", "model.latent=4", "model.hidden=[8]"],
    **dict.fromkeys(
        ("autoencoder", "jepa", "joint"),
        ["model.channels=[8,8]", "model.strides=[2,2]", "model.latent=4", "model.hidden=[8]"],
    ),
    "keypoints": ["model.hidden=[8]"],
    "lqae": [
        *("patch=8", "channels=[16]", "language_width=16", "language_layers=1"),
        "language_heads=2",
    ],
    "lwm": [
        *("model.contexts=[3,6]", "model.horizon=2", "model.transformer.width=16"),
        *("model.transformer.layers=1", "model.transformer.heads=2", "model.tokenizer.patch=8"),
        *("model.tokenizer.channels=[8]", "model.tokenizer.levels=[5,3]"),
    ],
    "multistep_inverse": [
        *("model.tokenizer.channels=[16]", "model.tokenizer.patch=8", "model.network.latent=8"),
        *("model.network.channels=[8]", "model.network.hidden=[8]", "model.network.row=8"),
        "model.network.inverse.hidden=[8]",
    ],
    "elastic": [
        *("model.tokenizer.patch=16", "model.tokenizer.width=16", "model.tokenizer.layers=1"),
        *("model.tokenizer.heads=2", "model.dynamics.width=16", "model.dynamics.layers=1"),
        "model.dynamics.heads=2",
    ],
    "pixel": ["model.size=8", "model.channels=[8,8]"],
    "planet": [
        *("model.channels=[8,8]", "model.strides=[2,2]", "model.latent=4", "model.hidden=[8]"),
        *("model.recurrent=8", "model.context=2"),
    ],
    "povt": [
        *("model.tokenizer.channels=[16]", "model.tokenizer.patch=8", "model.prior.memory=3"),
        *("model.prior.width=16", "model.prior.layers=1", "model.prior.heads=2"),
        *("model.prior.channels=8", "model.prior.glimpse=8", "model.prior.bins=16"),
    ],
    "selftok": [
        *("patch=8", "tokens=8", "channels=8", "width=16", "layers=1", "heads=2"),
        *("decoder_width=16", "decoder_layers=1", "decoder_heads=2"),
    ],
    "videoworld": [
        *("tokenizer.patch=8", "tokenizer.channels=[16]", "ldm.patch=8", "ldm.channels=[16]"),
        *("ldm.levels=[3,3]", "transformer.width=32", "transformer.layers=1", "inverse.width=16"),
        *("ldm.horizon=2", "ldm.decoded=1", "transformer.horizon=2", "inverse.chunk=2"),
    ],
    "teco": [
        *("model.tokenizer.channels=[16]", "model.tokenizer.patch=8", "model.dynamics.clip=4"),
        *("model.dynamics.channels=8", "model.dynamics.width=16", "model.dynamics.layers=1"),
        *("model.dynamics.heads=2", "model.dynamics.codes=16", "model.dynamics.prior.width=16"),
        *("model.dynamics.prior.layers=1", "model.dynamics.prior.draft=2"),
        *("model.dynamics.prior.rounds=0", "model.dynamics.embedding=8"),
    ],
    "videogpt": [
        *("model.prior.width=16", "model.prior.layers=1", "model.prior.channels=8"),
        *("model.tokenizer.width=8", "model.tokenizer.embedding=8", "model.tokenizer.codes=32"),
    ],
    "calibrated": [
        *("model.base.channels=[8,8]", "model.base.strides=[2,2]", "model.base.latent=4"),
        *("model.base.hidden=[8]", "model.dynamics.hidden=[16]", "model.inverse.hidden=[16]"),
    ],
}


def stored(path: Path) -> Path:
    """Write episodes of a square that the actions push about."""
    with ZarrStore.create(path, SPEC) as store:
        for number in range(EPISODES):
            rng = np.random.default_rng(number)
            actions = rng.uniform(-1, 1, (LENGTH - 1, 4)).astype(np.float32)
            moved = np.cumsum(np.r_[[[24, 24]], 12 * actions[:, :2]], axis=0)
            places = np.clip(moved, 0, 48).astype(int)
            images = np.full((LENGTH, 64, 64, 3), 30 + 10 * number, np.uint8)
            for image, (x, y) in zip(images, places, strict=True):
                image[y : y + 16, x : x + 16] = rng.integers(100, 256, 3)
            points = rng.normal(size=(LENGTH, 3, 2)).astype(np.float32)
            label = Label(f"do task {number % 2}", f"task_{number % 2}")
            store.append(
                Episode(
                    {"rgb": images, "keypoints": points},
                    actions,
                    rng.normal(size=LENGTH - 1).astype(np.float32),
                    labels=(label,),
                )
            )
    return path


def settings(kind: str, name: str) -> list[str]:
    """Return overrides for a few steps of every stage."""
    build = registry.get(kind, name)
    few = {"steps": STEPS, "batch": 4, "save_every": 1, "eval_every": 2, "log_every": 1}
    few |= {"held_out": 0.3, "warmup": 2}
    where = ["training"]
    if issubclass(build, Staged):
        where = [f"training.{each}" for each in build.Training.__dataclass_fields__]
    before = ["tokenizer.language_steps=2"] if name == "lqae" else []
    return before + [f"{place}.{key}={value}" for place in where for key, value in few.items()]


def small(name: str) -> list[str]:
    """Return overrides that make a model or tokenizer small."""
    kind = "tokenizer." if name in registry.BUILT_IN["tokenizer"] else "model."
    return [each if each.startswith(kind) else f"{kind}{each}" for each in SMALL.get(name, ())]


def tensors(folder: Path) -> dict[str, bytes]:
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        form = state.FORMAT if file.name == state.FILE else checkpoint.FORMAT
        values, header = checkpoint.read(file, format=form)
        where = str(file.relative_to(folder))
        found |= {f"{where}: {key}": value.numpy().tobytes() for key, value in values.items()}
        found[f"{where}: header"] = repr(header).encode()
    for file in sorted(folder.rglob("log.jsonl")):  # every curve, held-out figures among them
        found[f"{file.relative_to(folder)}"] = file.read_bytes()
    return found
