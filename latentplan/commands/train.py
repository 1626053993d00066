"""`latentplan train`: a latent dynamics model of an episode store, in a run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from latentplan import config, registry
from latentplan.errors import CheckpointError, ConfigError, StoreError, check_range
from latentplan.files import lock, replacing
from latentplan.types import Batch, Spec

if TYPE_CHECKING:
    from latentplan.data.store import ZarrStore
    from latentplan.training.heldout import HeldOut
    from latentplan.training.loop import Training

KEYPOINTS = "keypoints"  # privileged observation that one held-out figure reads
HELD_OUT = 512  # windows and transitions that held-out figures are of, where there are as many
LOCK = ".lock"  # in a run folder, held by who trains there
RETRIEVED = 32  # transitions encoded at a time


def run(
    model: str,
    *,
    data: str | Path,
    run: str | Path,
    resume: bool = False,
    seed: int = 0,
    device: str = "cpu",
    overrides: Sequence[str] = (),
) -> None:
    """Train `model` (a registry name or a preset of one) on the store `data`, into folder `run`.

    With `resume` it goes on where `run` stopped, under the same settings and data (only
    training.steps may rise), and starts where nothing was done yet. Sections of `overrides`:
    model, training.
    """
    check_range("--seed", seed, 0)
    preset = config.resolve("model", model)
    build = registry.get("model", preset.base)

    import torch

    from latentplan.commands.progress import track
    from latentplan.data.store import ZarrStore
    from latentplan.data.windows import Windows
    from latentplan.training import checkpoint, state
    from latentplan.training.loop import Training, train, writing

    if hasattr(build, "STAGES"):
        return _in_stages(
            build,
            preset,
            data=data,
            folder=Path(run),
            resume=resume,
            seed=seed,
            device=device,
            overrides=overrides,
        )
    chosen = config.load(
        {"model": build.Config, "training": Training}, preset=preset.values, overrides=overrides
    )
    training: Training = chosen["training"]
    where, folder = checkpoint.find_device(device), Path(run)
    with ZarrStore.open(data) as store, ExitStack() as held:
        settings = {
            "model": {"name": preset.base, **config.to_values(chosen["model"])},
            "training": config.to_values(training),
            "seed": seed,
            "data": {"path": str(data), **_identity(store)},
        }
        _check_run(folder, settings, resume=resume)
        done = state.steps_done(folder)
        if done >= training.steps:
            print(f"{folder}: has done its {done} steps; raise training.steps to go on")
            return

        spec = _public(store.spec)
        torch.manual_seed(seed)
        network = build(spec, chosen["model"]).to(where)
        if training.window <= network.context:
            raise ConfigError(
                f"Training.window: {training.window} observations leave nothing to predict behind "
                f"the model's context of {network.context}; set training.window higher"
            )
        held_out = _held_out(store, training, context=network.context)
        windows = Windows(
            store,
            length=training.window,
            batch=training.batch,
            seed=seed,
            test_fraction=training.held_out,
            keys=[*spec.observation],
            pin_memory=where.type == "cuda",
        )
        with writing(folder):
            held.enter_context(_alone(folder))
            config.save_yaml(folder / "config.yaml", settings)
            with replacing(folder / "spec.json") as partial:
                partial.write_text(json.dumps(spec.to_json(), indent=2), encoding="utf-8")
        with track(training.steps, f"train {model}", "steps", done=done) as bar:
            try:
                train(
                    network,
                    windows,
                    held_out=held_out,
                    run=folder,
                    config=training,
                    name=preset.base,
                    seed=seed,
                    resume=resume,
                    advance=bar.advance,
                )
            except KeyboardInterrupt:
                print(f"{folder}: stopped at step {state.steps_done(folder)}; --resume goes on")
                raise
    best = folder / "best.safetensors"
    header = checkpoint.read_header(best, format=checkpoint.FORMAT)
    figures = ", ".join(f"{key} {value:.4g}" for key, value in header["metrics"].items())
    print(f"{best}: step {header['step']}; held out: {figures}")


def _in_stages(
    build: Any,
    preset: config.Preset,
    *,
    data: str | Path,
    folder: Path,
    resume: bool,
    seed: int,
    device: str,
    overrides: Sequence[str],
) -> None:
    """Train the parts of a model one after the other; see `train_stages`."""
    from latentplan.commands import train_stages
    from latentplan.data.store import ZarrStore
    from latentplan.training import checkpoint
    from latentplan.training.loop import writing

    chosen = config.load(
        {"model": build.Config, "training": train_stages.Stages},
        preset=preset.values,
        overrides=overrides,
    )
    where = checkpoint.find_device(device)
    if not resume and folder.exists() and any(file.name != LOCK for file in folder.iterdir()):
        raise CheckpointError(f"{folder}: is not empty; give --resume to go on, or another --run")
    with ZarrStore.open(data) as store, ExitStack() as held:
        identity = _identity(store)
        with writing(folder):
            held.enter_context(_alone(folder))
            settings = {
                "model": {"name": preset.base, **config.to_values(chosen["model"])},
                "training": config.to_values(chosen["training"]),
                "seed": seed,
                "data": {"path": str(data), **identity},
            }
            config.save_yaml(folder / "config.yaml", settings)
        try:
            train_stages.train(
                store,
                folder,
                model=chosen["model"],
                stages=chosen["training"],
                data=identity,
                spec=_public(store.spec),
                seed=seed,
                device=where,
            )
        except KeyboardInterrupt:
            print(f"{folder}: stopped; --resume goes on")
            raise
    print(f"{folder / 'best.safetensors'}: all stages done")


def _alone(folder: Path) -> IO[bytes]:
    """Return what keeps other trainings out of a run folder while it is open."""
    try:
        return lock(folder / LOCK)
    except BlockingIOError:
        raise CheckpointError(
            f"{folder}: another process is training there; wait for it, or give another --run"
        ) from None


def _check_run(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Raise CheckpointError where `folder` holds something that must not be trained over."""
    if not folder.exists() or not any(file.name != LOCK for file in folder.iterdir()):
        return
    if not resume:
        raise CheckpointError(f"{folder}: is not empty; give --resume to go on, or another --run")
    if not (folder / "config.yaml").exists():
        return
    before, now = (dict(_leaves(s)) for s in (config.read_yaml(folder / "config.yaml"), settings))
    may_differ = {"data.path"}  # a store may move; what is in it has a digest
    if before.get("training.steps", 0) <= now["training.steps"]:
        may_differ.add("training.steps")
    differ = [
        f"{key}: {before.get(key)!r} in the run, {now.get(key)!r} now"
        for key in sorted({*before, *now} - may_differ)
        if before.get(key) != now.get(key)
    ]
    if differ:
        raise CheckpointError(
            f"{folder}: cannot go on with other settings ({'; '.join(differ)}); "
            "give the same ones, or another --run"
        )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _identity(store: ZarrStore) -> dict[str, Any]:
    """Return what tells one data set from another: its size, and a digest of all actions."""
    if len(store) == 0:
        raise StoreError(f"{store.path}: is empty; collect some episodes first")
    rows = int(store.ends[-1])
    digest = hashlib.sha256(json.dumps(store.spec.to_json(), sort_keys=True).encode())
    digest.update(store.ends.tobytes())
    digest.update(store.rows("action", 0, rows).tobytes())
    return {
        "episodes": len(store),
        "transitions": rows - len(store),
        "digest": digest.hexdigest()[:16],
    }


def _public(spec: Spec) -> Spec:
    """Return the spec without its privileged observations: what a model may see."""
    seen = {k: a for k, a in spec.observation.items() if k not in spec.privileged}
    return replace(spec, observation=seen, privileged=())


def _held_out(store: ZarrStore, training: Training, *, context: int) -> HeldOut:
    """Return what the held-out figures are of: the same for every seed."""
    from latentplan.data.windows import Windows
    from latentplan.training.heldout import HeldOut

    keypoints = KEYPOINTS if KEYPOINTS in store.spec.privileged else None
    public = [*_public(store.spec).observation]

    def batches(length: int, batch: int, keys: Sequence[str]) -> list[Batch]:
        windows = Windows(
            store,
            length=length,
            batch=batch,
            split="test",
            test_fraction=training.held_out,
            keys=keys,
        )
        if len(windows) < batch:  # not one of them twice
            return batches(length, len(windows), keys)
        count = min(-(-HELD_OUT // batch), len(windows) // batch)
        return [windows[index] for index in range(count)]

    transitions = batches(context + 1, RETRIEVED, public + [KEYPOINTS] * bool(keypoints))
    if sum(len(batch.actions) for batch in transitions) < 2:
        raise StoreError(f"{store.path}: holds out 1 transition alone, need 2; collect more")
    return HeldOut(batches(training.window, training.batch, public), transitions, keypoints)
