"""`latentplan train videoworld`: a model of several parts, trained one after the other.

Each stage has a folder RUN/stages/<stage>-<digest>, a run folder like any other; the digest is of
everything that it depends on: its settings, the data, the stages before it. So a stage that is done
is never done again, and one with other settings is made beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentplan import config
from latentplan.commands.progress import track
from latentplan.errors import TrainingError
from latentplan.training.loop import Training

if TYPE_CHECKING:
    from latentplan.data.store import ZarrStore
    from latentplan.models.videoworld.videoworld import VideoWorld
    from latentplan.types import Spec

HELD_OUT = 256  # windows that held-out figures are of, where there are as many
COLLAPSED = 0.05  # share of a code book in use below which training stops


@dataclass(frozen=True)
class Stages:
    """How each part is trained. `window` is set by the part."""

    tokenizer: Training = field(default_factory=lambda: Training(steps=3000, batch=24, window=2))
    ldm: Training = field(default_factory=lambda: Training(steps=3000, batch=16))
    generator: Training = field(
        default_factory=lambda: Training(steps=4000, batch=32, clip=1.0, weight_decay=0.01)
    )
    inverse: Training = field(
        default_factory=lambda: Training(steps=1500, batch=64, clip=1.0, weight_decay=0.01)
    )
    dynamics: Training = field(default_factory=lambda: Training(steps=2000, batch=32, clip=1.0))
    cache: str = ""  # folder of the stages, which several runs may share; "": RUN/stages


@dataclass(frozen=True)
class Run:
    """What all stages of a run have in common."""

    folder: Path  # of the stages
    data: Mapping[str, Any]  # what tells this data set from another
    seed: int
    device: Any


def train(
    store: ZarrStore,
    folder: Path,
    *,
    model: VideoWorld.Config,
    stages: Stages,
    data: Mapping[str, Any],
    spec: Spec,
    seed: int,
    device: Any,
) -> dict[str, float]:
    """Train what is missing, write `best.safetensors` into `folder`, return the held-out figures.

    Raises TrainingError where a code book collapsed, and as `training.loop.train`.
    """
    import torch

    from latentplan.data.store import ZarrStore
    from latentplan.models.videoworld import tokens
    from latentplan.models.videoworld.dynamics import TokenDynamics
    from latentplan.models.videoworld.generator import CODES, Generator
    from latentplan.models.videoworld.inverse import Inverse
    from latentplan.models.videoworld.ldm import LDM
    from latentplan.models.videoworld.videoworld import VideoWorld
    from latentplan.tokenizers.vqvae import VQVAE
    from latentplan.training import checkpoint

    tasks = tokens.task_names(store)
    c = model.fitted(spec, tasks=tasks)
    seen = replace(
        spec, observation={key: spec.observation[key] for key in c.images}, privileged=()
    )
    run = Run(Path(stages.cache) if stages.cache else folder / "stages", data, seed, device)
    digests: dict[str, str] = {}
    figures: dict[str, float] = {}

    def stage(
        name: str,
        build: Callable[[], Any],
        part: Any,
        training: Training,
        source: ZarrStore,
        after: tuple[str, ...] = (),
        share: float = 1.0,
    ) -> Any:
        digests[name] = digest = _digest(
            run, name, part, training, [digests[each] for each in after]
        )
        torch.manual_seed(seed)
        network = build().to(device)
        training = replace(training, window=network.context + 1)
        where = run.folder / f"{name}-{digest}"
        found = _stage(source, where, network, name=name, training=training, run=run, share=share)
        figures.update({f"{name}.{key}": value for key, value in found.items()})
        return network

    tokenizer = stage(
        "tokenizer", lambda: VQVAE(seen, c.tokenizer), c.tokenizer, stages.tokenizer, store
    )
    ldm = stage("ldm", lambda: LDM(seen, c.ldm), c.ldm, stages.ldm, store)
    tokenizer.eval(), ldm.eval()
    of_tokens = hashlib.sha256(
        json.dumps([digests["tokenizer"], digests["ldm"], tasks]).encode()
    ).hexdigest()[:12]
    out = run.folder / f"tokens-{of_tokens}.zarr"
    done = len(ZarrStore.open(out)) if out.exists() else 0
    with track(len(store), "tokens", "episodes", done=done) as bar:
        written = tokens.tokenise(
            store, out, tokenizer=tokenizer, ldm=ldm, tasks=tasks, advance=bar.advance
        )
    with written:
        codes = written.rows(f"observation/{CODES}", 0, int(written.ends[-1]))
        used = len(np.unique(codes)) / ldm.codes
        figures["ldm.usage"] = used
        if used < COLLAPSED:
            raise TrainingError(
                f"{out}: the code book collapsed: {used:.1%} of {ldm.codes} codes are in use, need "
                f"{COLLAPSED:.0%}; train longer, or with fewer model.ldm.levels"
            )
        generator = stage(
            "generator",
            lambda: Generator(written.spec, c.generator),
            c.generator,
            stages.generator,
            written,
            ("tokenizer", "ldm"),
        )
        inverse = stage(
            "inverse",
            lambda: Inverse(written.spec, c.inverse, generator=generator),
            c.inverse,
            stages.inverse,
            written,
            ("generator",),
            c.inverse.labelled,
        )
        dynamics = stage(
            "dynamics",
            lambda: TokenDynamics(written.spec, c.dynamics),
            c.dynamics,
            stages.dynamics,
            written,
            ("tokenizer",),
            c.inverse.labelled,
        )
    whole = VideoWorld(spec, c)
    whole.tokenizer, whole.ldm, whole.inverse, whole.dynamics = tokenizer, ldm, inverse, dynamics
    checkpoint.save(
        folder / "best.safetensors",
        whole,
        name="videoworld",
        step=stages.generator.steps,
        metrics=figures,
    )
    return figures


def _stage(
    store: ZarrStore,
    folder: Path,
    network: Any,
    *,
    name: str,
    training: Training,
    run: Run,
    share: float,
) -> dict[str, float]:
    """Train a part to its end, or go on with it; it then has the weights of its best step."""
    from latentplan.data.windows import Windows
    from latentplan.training import checkpoint, state
    from latentplan.training.heldout import HeldOut
    from latentplan.training.loop import train, writing

    keys = [*network.spec.observation]
    held = Windows(
        store,
        length=training.window,
        batch=training.batch,
        split="test",
        test_fraction=training.held_out,
        keys=keys,
    )
    count = max(1, min(HELD_OUT, len(held)) // training.batch)
    done = state.steps_done(folder)
    if done < training.steps:
        windows = Windows(
            store,
            length=training.window,
            batch=training.batch,
            seed=run.seed,
            test_fraction=training.held_out,
            share=share,
            keys=keys,
            pin_memory=run.device.type == "cuda",
        )
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            config.save_yaml(
                folder / "config.yaml",
                {"model": config.to_values(network.config), "training": config.to_values(training)},
            )
        with track(training.steps, f"train {name}", "steps", done=done) as bar:
            train(
                network,
                windows,
                held_out=HeldOut([held[index] for index in range(count)]),
                run=folder,
                config=training,
                name=name,
                seed=run.seed,
                resume=True,
                advance=bar.advance,
            )
    weights, header = checkpoint.read(folder / "best.safetensors", format=checkpoint.FORMAT)
    checkpoint.fill(network, weights, folder / "best.safetensors")
    figures = {key: float(value) for key, value in header["metrics"].items()}
    print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    return figures


def _digest(run: Run, name: str, part: Any, training: Training, after: list[str]) -> str:
    of = {
        "stage": name,
        "model": config.to_values(part),
        "training": config.to_values(training),
        "data": dict(run.data),
        "seed": run.seed,
        "after": after,
    }
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]
