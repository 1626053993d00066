"""`latentplan.train`: a model, a tokenizer or another learner fitted to an episode store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentplan import config, registry
from latentplan.api.choice import Overrides, as_overrides
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, Interrupted, check_range, unknown
from latentplan.protocols import Component, Configured, FittedConfig, PrivilegedModel, Staged
from latentplan.training import checkpoint, header, run_folder, stages, state
from latentplan.training.fit import Session, fit
from latentplan.training.loop import writing
from latentplan.types import Label, OnProgress, Progress, Stage, Training
from latentplan.urls import local

KINDS = ("model", "tokenizer", "objective", "policy")  # registry kinds that can be trained


@dataclass(frozen=True)
class Run:
    """The results of a training."""

    folder: Path
    checkpoint: Path  # best.safetensors: the lowest held-out loss
    step: int  # of the checkpoint; of all stages together
    figures: Mapping[str, float]  # held out; <stage>.<figure> for a model of several stages
    steps: int  # done by this call; 0 if the run was complete before


def train(
    model: Any,
    *,
    data: str | Path,
    run: str | Path,
    kind: str | None = None,
    resume: bool = False,
    seed: int = 0,
    device: str = "cpu",
    overrides: Overrides = (),
    cache: str | Path | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Run:
    """Train `model` on the store `data`, into the folder `run`; return the results.

    `model` is a registry name or preset, a class built as `model(spec, config)` with a dataclass
    `Config`, or a network that is built already and has a `config`. A checkpoint names a class
    that is not registered `module:qualname`; to load it, pass the class to `load` as `model`.
    `kind` is the registry kind (default: the one that has the name, else `model`).

    With `resume` it continues where `run` stopped, under the same settings and data (only
    training.steps may rise), and starts if nothing was done yet. Sections of `overrides`: the kind
    (`model.latent=64`) and `training`. The stages of a model of several lie in `cache`, which runs
    may share (default: RUN/stages).

    Raises ConfigError, UnknownName, StoreError, CheckpointError, MissingDependency (device) or
    TrainingError. Ctrl-C keeps what was saved and raises Interrupted with the Run so far.
    """
    check_range("train.seed", seed, 0)
    chosen = _choose(model, kind)
    device_of = checkpoint.find_device(device)
    settings = config.load(chosen.sections, preset=chosen.preset, overrides=as_overrides(overrides))
    own = chosen.config or checkpoint.with_parts_of_runs(settings[chosen.kind])
    count, folder = _Count(on_progress), local(run, where="train.run")
    stages = folder / "stages" if cache is None else local(cache, where="train.cache")
    with ZarrStore.open(data) as store:
        identity = run_folder.identity(store)
        if isinstance(own, FittedConfig) and not chosen.staged:
            own = own.fitted(run_folder.public(store, privileged=_privileged(chosen.network)))
        job = _Job(
            chosen,
            own,
            settings["training"],
            store,
            folder,
            Session(identity, seed, device_of, count),
            {
                chosen.kind: {"name": chosen.name, **config.to_values(own)},
                "training": config.to_values(settings["training"]),
                "seed": seed,
                "data": {"path": str(store.path), **identity},
            },
        )
        try:
            step, figures = _execute(job, stages, resume=resume)
        except KeyboardInterrupt as e:
            done = state.steps_done(folder)
            so_far = Run(folder, folder / "best.safetensors", done, {}, count.steps)
            raise Interrupted(so_far) from e
    return Run(folder, folder / "best.safetensors", step, figures, count.steps)


@dataclass(frozen=True)
class _Choice:
    """The learner to train, and its settings."""

    build: Callable[[Any, Any], Any]  # (spec, config) -> network
    kind: str
    name: str  # registry name, or module:qualname
    label: str  # as the user named it
    sections: Mapping[str, type]  # of settings
    preset: Mapping[str, Any] = field(default_factory=dict)
    config: Any = None  # of a network that is built already
    staged: bool = False
    network: Any = None  # its class


@dataclass(frozen=True)
class _Job:
    """One call of `train`."""

    chosen: _Choice
    config: Any
    training: Any
    store: ZarrStore
    folder: Path
    session: Session
    written: Mapping[str, Any]  # to config.yaml


class _Count:
    """A counter of this call's steps, which forwards each Progress to `on_progress`."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._first: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def __call__(self, progress: Progress) -> None:
        if progress.unit == "steps":
            self._first.setdefault(progress.task, progress.done)
            self._last[progress.task] = progress.done
        self._on_progress(progress)

    @property
    def steps(self) -> int:
        return sum(self._last.values()) - sum(self._first.values())


def _choose(model: Any, kind: str | None) -> _Choice:
    if isinstance(model, str):
        return _registered(model, kind)
    built = not isinstance(model, type)
    found = type(model) if built else model
    if not isinstance(model, Configured if built else Component):
        needed = "config, the dataclass it was built from" if built else "dataclass Config"
        raise ConfigError(f"train.model: {found.__qualname__} has no {needed}; add one")
    path = f"{found.__module__}:{found.__qualname__}"
    places = [
        (each, name)
        for each in (KINDS if kind is None else (kind,))
        for name, target in _names(each).items()
        if target == path
    ]
    kind, name = places[0] if places else (kind or "model", path)
    if isinstance(model, Configured) and built:
        return _Choice(
            lambda spec, config: model,
            kind,
            name,
            name,
            {"training": Training},
            config=model.config,
            network=found,
        )
    return _of_class(found, kind, name, found.__qualname__, {})


def _registered(name: str, kind: str | None) -> _Choice:
    kinds = KINDS if kind is None else (kind,)
    known = {each: {*_names(each), *config.presets().get(each, [])} for each in kinds}
    for each, names in known.items():
        if name in names:
            preset = config.resolve(each, name)
            found = registry.get(each, preset.base)
            return _of_class(found, each, preset.base, name, preset.values)
    if ":" in name:  # MODULE:CLASS
        return _of_class(registry.load(kinds[0], name), kinds[0], name, name, {})
    raise unknown(kind or "model", name, set().union(*known.values()))


def _of_class(
    found: Any, kind: str, name: str, label: str, preset: Mapping[str, Any]
) -> _Choice:
    staged = issubclass(found, Staged)
    sections = {kind: found.Config, "training": found.Training if staged else Training}
    return _Choice(found, kind, name, label, sections, preset, staged=staged, network=found)


def _names(kind: str) -> dict[str, str]:
    return registry.names(kind) if kind in registry.BUILT_IN else {}


def _privileged(network: Any) -> tuple[str, ...]:
    return network.privileged if isinstance(network, PrivilegedModel) else ()


def _execute(job: _Job, cache: Path, *, resume: bool) -> tuple[int, Mapping[str, float]]:
    """Train; return the step of the checkpoint and its held-out figures."""
    if job.chosen.staged:
        return _train_stages(job, cache, resume=resume)
    return _train_one(job, resume=resume)


def _train_one(job: _Job, *, resume: bool) -> tuple[int, Mapping[str, float]]:
    """Train a learner as the only stage of a run, in the run's own folder."""
    chosen = job.chosen
    run_folder.check_resumable(job.folder, job.written, resume=resume)
    stage = Stage(
        chosen.label,
        lambda spec, parts: chosen.build(spec, job.config),
        training=job.training,
        kind=chosen.kind,
        registered=chosen.name,
        privileged=_privileged(chosen.network),
    )
    fit(stage, {}, job.store, job.folder, session=job.session, settings=job.written, resume=resume)
    best = job.folder / "best.safetensors"
    found = checkpoint.read_header(best)
    return found.step, found.metrics


def _train_stages(job: _Job, cache: Path, *, resume: bool) -> tuple[int, Mapping[str, float]]:
    """Train the stages that a model declares, and put their networks together."""
    run_folder.check_resume(job.folder, resume=resume)
    model: Any = job.chosen.build  # a class
    spec = run_folder.public(job.store)
    texts = sorted({(label.text, label.task) for _, label in job.store.labels()})
    given = {"spec": spec, "labels": [Label(text, task) for text, task in texts]}
    steps = model.stages(job.config, training=job.training, **given)
    stages.check_lengths(steps, job.store)
    stages.check_builds(steps, job.store, job.session.device)
    with writing(job.folder), run_folder.claim(job.folder):
        config.save_yaml(job.folder / run_folder.CONFIG, job.written)
        trained = stages.execute(steps, job.store, cache, session=job.session)
        whole = model.assemble(job.config, parts=trained.parts, **given)
        own = [each for each in steps if isinstance(each, Stage)]
        modules = dict(whole.named_modules())
        total = sum(each.training.steps for each in own)
        checkpoint.save(
            job.folder / "best.safetensors",
            whole,
            kind=job.chosen.kind,
            name=job.chosen.name,
            step=total,
            metrics=trained.figures,
            parts={
                stage.name: header.of(
                    trained.parts[stage.name], kind=stage.kind, name=stage.registered or stage.name
                )
                for stage in own
                if modules.get(stage.name) is trained.parts[stage.name]
            },
        )
    return total, trained.figures
