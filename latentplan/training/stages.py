"""The executor of what a model declares: networks trained one after the other, and their stores.

Each stage has a folder STAGES/<stage>-<digest>, a run folder like any other; the digest covers
everything that it depends on: its settings, the data, the stages before it. So a stage that is done
is never repeated, one with other settings is made beside it, and several runs may share a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from latentplan import config, foreign
from latentplan.data.derived import derive
from latentplan.data.store import ZarrStore
from latentplan.data.windows import is_test
from latentplan.errors import CheckpointError, ConfigError, StoreError, TrainingError
from latentplan.training import checkpoint, run_folder
from latentplan.training.fit import Session, fit
from latentplan.types import Array, Derived, Parts, Progress, Spec, Stage

COLLAPSED = 0.05  # share of a code book in use below which training stops
STAGE = "stage.json"  # in a stage's folder: all that it depends on


class Trained(NamedTuple):
    """What a declaration gives."""

    parts: dict[str, Any]  # networks by stage, frozen
    figures: dict[str, float]  # held out, <stage>.<figure>


def execute(
    steps: Sequence[Stage | Derived], store: ZarrStore, folder: Path, *, session: Session
) -> Trained:
    """Train what is missing in the `folder` of stages, in the order given.

    Raises ConfigError if episodes are too short for a stage, TrainingError if a code book
    collapsed, CheckpointError if the folder of a stage holds something else, and as `fit`.
    """
    check_lengths(steps, store)
    with ExitStack() as opened:
        run = _Execution(store, folder, session, opened)
        for step in steps:
            if isinstance(step, Stage):
                run.train(step)
            else:
                run.derive(step)
    return Trained(run.parts, run.figures)


class _Execution:
    """The networks, stores and digests so far."""

    def __init__(
        self, store: ZarrStore, folder: Path, session: Session, opened: ExitStack
    ) -> None:
        self.folder, self.session, self._opened = folder, session, opened
        self.stores = {"": store}
        self.digests = {"": _digest(dict(session.data))}  # of stages and stores
        self.parts: dict[str, Any] = {}
        self.figures: dict[str, float] = {}

    def train(self, stage: Stage) -> None:
        """Train a stage, or load what is done."""
        store, parts = self.stores[stage.data], self._parts(stage)
        made_of = self._made_of(stage) | {
            "training": config.to_values(stage.training),
            "seed": self.session.seed,
            "share": stage.share,
        }

        if stage.run:
            spec = run_folder.public(store, privileged=stage.privileged)
            network, made_of["run"] = _frozen(stage, parts, spec, self.session.device)
            self.digests[stage.name] = _digest(made_of)
        else:
            digest = self.digests[stage.name] = _digest(made_of)
            where = self.folder / f"{stage.name}-{digest}"
            check_stage(where, made_of)
            files = {STAGE: made_of}
            network, figures = fit(
                stage, parts, store, where, session=self.session, files=files, resume=True
            )
            self.figures.update({f"{stage.name}.{key}": each for key, each in figures.items()})
        self.parts[stage.name] = network

    def derive(self, step: Derived) -> None:
        """Make a store, or open what is done, and check its code books."""
        source, parts = self.stores[step.data], self._parts(step)
        digest = self.digests[step.name] = _digest(self._made_of(step))
        out = self.folder / f"{step.name}-{digest}.zarr"

        def advance(done: int) -> None:
            self.session.on_progress(Progress(step.name, "episodes", done, len(source)))

        made = derive(
            source,
            out,
            spec=step.spec(run_folder.public(source), parts),
            make=lambda episodes: step.make(episodes, parts),
            rows=step.rows,
            advance=advance,
        )
        self.stores[step.name] = self._opened.enter_context(made)
        rows = int(made.ends[-1])
        for key, part in step.codebooks.items():
            ids = made.rows(f"observation/{key}", 0, rows)
            size = self.parts[part].vocabulary
            self.figures[f"{part}.usage"] = check_usage(f"{out}: {key}", ids, size, stage=part)

    def _parts(self, step: Stage | Derived) -> dict[str, Any]:
        return {name: self.parts[name] for name in step.parts}

    def _made_of(self, step: Stage | Derived) -> dict[str, Any]:
        """Return all that a step depends on."""
        return {
            "stage": step.name,
            "config": _values(step.config),
            "data": {"of": step.data, "digest": self.digests[step.data]},
            "parts": {name: self.digests[name] for name in step.parts},
        }


def check_lengths(steps: Sequence[Stage | Derived], store: ZarrStore) -> None:
    """Raise ConfigError if no episode is as long as the training window of a stage."""
    if len(store) == 0:
        raise StoreError(f"{store.path}: is empty; collect some episodes first")
    lengths = np.diff(store.ends, prepend=0)
    for stage in steps:
        if not isinstance(stage, Stage):
            continue
        need = max(stage.window, 0 if stage.data else stage.training.window)
        of = stage.window_from or f"training.{stage.name}.window"
        held_out = is_test(np.arange(len(store)), stage.training.held_out)
        for split, episodes in (("training", ~held_out), ("held-out", held_out)):
            longest = int(lengths[episodes].max(initial=0))
            if longest < need:
                raise ConfigError(
                    f"{of}: needs windows of {need} observations, the longest of "
                    f"{int(episodes.sum())} {split} episodes in {store.path} has {longest}; "
                    "set it lower, or collect more or longer episodes"
                )


def check_builds(
    steps: Sequence[Stage | Derived], store: ZarrStore, device: torch.device
) -> None:
    """Build every network and spec of the stages for the data of `store`, and drop them.

    So that what does not fit the data raises ConfigError, and a run whose network does not,
    CheckpointError, before anything is written.
    """
    specs, parts = dict[str, Spec](), dict[str, Any]()
    for step in steps:
        own = {name: parts[name] for name in step.parts}
        shown = step.privileged if isinstance(step, Stage) else ()
        spec = specs[step.data] if step.data else run_folder.public(store, privileged=shown)
        if isinstance(step, Stage) and step.run:
            parts[step.name], _ = _frozen(step, own, spec, device)
        elif isinstance(step, Stage):
            parts[step.name] = step.build(spec, own)
        else:
            specs[step.name] = step.spec(spec, own)


def check_usage(where: str, ids: Array, size: int, *, stage: str) -> float:
    """Return the share of a code book that ids (n, k) use; TrainingError if it collapsed.

    Of a book of `size` codes n k ids can use no more than n k.
    """
    used = len(np.unique(ids))
    share = used / min(size, max(1, ids.size))
    if share < COLLAPSED:
        raise TrainingError(
            f"{where}: the code book collapsed: {used} of {size} codes are in use ({share:.1%}), "
            f"need {COLLAPSED:.0%}; set training.{stage}.steps higher, or give model.{stage} fewer "
            "codes"
        )
    return used / size


def check_stage(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a stage's folder was made of other things than `made_of`.

    Such as one that was copied under another digest, or edited.
    """
    file = folder / STAGE
    if not file.exists():
        return
    try:
        found = dict(foreign.read_json(file, error=CheckpointError))
    except (CheckpointError, ValueError, TypeError) as e:
        raise CheckpointError(f"{file}: cannot be read ({e}); delete {folder}") from None
    differ = sorted(key for key in {*made_of, *found} if found.get(key) != made_of.get(key))
    if differ:
        raise CheckpointError(
            f"{folder}: is of another stage: {', '.join(differ)} in {STAGE} differ from what this "
            "run is made of; delete the folder, it is made again"
        )


def _frozen(
    stage: Stage, parts: Parts, spec: Spec, device: torch.device
) -> tuple[Any, dict[str, Any]]:
    """Return the network of another run, and what identifies it; CheckpointError if it is unfit."""
    file = checkpoint.find(stage.run)
    own = stage.build(spec, parts)
    found = checkpoint.load(
        file,
        kind=stage.kind,
        name=stage.name if stage.kind == "part" else "",
        build=type(own) if stage.kind == "part" else None,
        device=str(device),
    )
    observed, here = ({k: (a.shape, a.dtype) for k, a in each.observation.items()} for each in (
        found.spec, own.spec
    ))  # fmt: skip
    if observed != here:
        raise CheckpointError(
            f"{file}: its {stage.name} observes {observed}, here it is to observe {here}; take a "
            "run on data of the same kind"
        )
    values, wanted = config.to_values(found.config), config.to_values(own.config)
    differ = [f"{key} {values.get(key)}" for key in wanted if values.get(key) != wanted[key]]
    if differ:
        raise CheckpointError(
            f"{file}: its {stage.name} has {', '.join(differ)}; set the same as "
            f"model.{stage.name}.{differ[0].split()[0]} here"
        )
    return found.model.requires_grad_(False), {"digest": checkpoint.digest(file)}


def _values(of: Any) -> Any:
    """Return JSON values as they come back from a file."""
    return config.to_values(of) if is_dataclass(of) else json.loads(json.dumps(of))


def _digest(of: object) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]
