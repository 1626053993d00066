"""One learner trained on one store in one folder: the step that every training is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from latentplan import config, contracts
from latentplan.data.packing import PackedWindows
from latentplan.data.store import ZarrStore
from latentplan.data.windows import Windows
from latentplan.errors import CheckpointError, ConfigError, StoreError
from latentplan.files import replacing
from latentplan.nn.observations import frames_of
from latentplan.protocols import Dynamics, Learner, Normalised, PackedLearner, TextPretrained
from latentplan.training import checkpoint, header, run_folder, state, weights
from latentplan.training.heldout import HeldOut
from latentplan.training.loop import train, writing
from latentplan.training.statistics import statistics
from latentplan.types import Batch, OnProgress, Parts, Progress, Stage, Training

KEYPOINTS = "keypoints"  # privileged observation that one held-out figure reads
HELD_OUT = 512  # windows and transitions that held-out figures are of, if there are as many
RETRIEVED = 32  # transitions encoded at a time


@dataclass(frozen=True)
class Session:
    """What all stages of a run have in common."""

    data: Mapping[str, Any]  # what tells this data set from another
    seed: int
    device: torch.device
    on_progress: OnProgress = lambda progress: None


def fit(
    stage: Stage,
    parts: Parts,
    store: ZarrStore,
    folder: Path,
    *,
    session: Session,
    settings: Mapping[str, Any] | None = None,
    files: Mapping[str, object] | None = None,
    resume: bool,
) -> tuple[Any, dict[str, float]]:
    """Train a stage's learner to its end, or continue it; return it and its held-out figures.

    `parts` are the networks that it is built with. It comes back with the weights of its best step,
    frozen. `settings` are written to config.yaml (default: the stage's), `files` are JSON values by
    file name. Raises ConfigError if the learner lacks what a Learner has or its windows are too
    short, StoreError if the store does not fit, and as `run_folder.check_state` and `loop.train`.
    """
    spec, training = run_folder.public(store, privileged=stage.privileged), stage.training
    run_folder.check_state(folder)
    torch.manual_seed(session.seed)
    learner = stage.build(spec, parts).to(session.device)
    contracts.check_protocol(stage.name, Learner, learner)
    training = replace(training, window=_window(stage, learner))
    held = _held_out(store, learner, training, spec.tasks)
    done = state.steps_done(folder) if resume else 0
    if done == 0 and isinstance(learner, Normalised):
        learner.fit_statistics(*statistics(store, learner.scaled, held_out=training.held_out))
    if done == 0 and isinstance(learner, TextPretrained):
        learner.pretrain(sorted({label.text for _, label in store.labels()} - {""}))
    if done < training.steps:
        pinned = {"pin_memory": session.device.type == "cuda"}
        chosen = {"seed": session.seed, "share": stage.share, **pinned}
        windows = _windows(store, learner, training, spec.tasks, **chosen)
        settings = settings or {
            "model": config.to_values(learner.config),
            "training": config.to_values(training),
        }
        with writing(folder), run_folder.claim(folder):
            _describe(folder, settings, {"spec.json": spec.to_json(), **(files or {})})

            def advance(step: int, figures: Mapping[str, float]) -> None:
                session.on_progress(
                    Progress(f"train {stage.name}", "steps", step, training.steps, figures)
                )

            advance(done, {})
            train(
                learner,
                windows,
                held_out=held,
                run=folder,
                config=training,
                name=stage.registered or stage.name,
                kind=stage.kind,
                seed=session.seed,
                resume=resume,
                advance=advance,
            )
    return _best(stage, learner, folder)


def _window(stage: Stage, learner: Any) -> int:
    """Return the number of observations of a training window."""
    window, needed = stage.training.window, int(learner.window)
    if 0 < window < needed:
        raise ConfigError(
            f"training.window: {window} is fewer than the {needed} observations that "
            f"{stage.name} needs; set it higher, or to 0 for the fewest"
        )
    return window or needed


def _describe(folder: Path, settings: Mapping[str, Any], files: Mapping[str, object]) -> None:
    """Write the settings of a training, and JSON values by file name."""
    config.save_yaml(folder / run_folder.CONFIG, settings)
    for name, value in files.items():
        with replacing(folder / name) as partial:
            partial.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _best(stage: Stage, learner: Any, folder: Path) -> tuple[Any, dict[str, float]]:
    """Return the learner with the weights of its best step, frozen, and its held-out figures."""
    best = folder / "best.safetensors"
    tensors, values = checkpoint.read(best, format=checkpoint.FORMAT)
    found = header.parse(values, best)
    own = header.of(learner, kind=stage.kind, name=stage.registered or stage.name)
    for key in ("kind", "name", "config"):
        if getattr(found, key) != getattr(own, key):
            raise CheckpointError(
                f"{best}: its {key} is not that of {stage.name} here; delete {folder}, it is made "
                "again"
            )
    weights.fill(learner, tensors, best)
    return learner.eval().requires_grad_(False), dict(found.metrics)


def _windows(
    store: ZarrStore, learner: Learner, training: Training, tasks: Sequence[str], **options: Any
) -> Windows:
    """Return windows with what the learner declares, and nothing else."""
    declared = {"keys": [*learner.spec.observation], "targets": learner.targets}
    chosen = {"length": training.window, "batch": training.batch, **declared, **options}
    make = PackedWindows if isinstance(learner, PackedLearner) else Windows
    return make(
        store, test_fraction=training.held_out, reads=learner.reads, tasks=tasks, **chosen
    )


def _held_out(store: ZarrStore, learner: Any, training: Training, tasks: Sequence[str]) -> HeldOut:
    """Return what the held-out figures are of: the same for every seed."""

    def batches(**options: Any) -> list[Batch]:
        windows = _windows(store, learner, training, tasks, split="test", **options)
        if len(windows) < windows.batch:  # not one of them twice
            return batches(**{**options, "batch": len(windows)})
        count = min(-(-HELD_OUT // windows.batch), len(windows) // windows.batch)
        return [windows[index] for index in range(count)]

    declared = learner.targets
    if not isinstance(learner, Dynamics):
        return HeldOut(batches())
    frames = frames_of(learner)
    keypoints = KEYPOINTS if KEYPOINTS in store.spec.privileged else None
    targets = {*declared, *([keypoints] if keypoints else [])}
    transitions = batches(length=learner.context + frames, batch=RETRIEVED, targets=sorted(targets))
    if sum(len(batch.actions) for batch in transitions) < 2:
        raise StoreError(f"{store.path}: holds out 1 transition alone, need 2; collect more")
    return HeldOut(batches(), transitions, keypoints)
