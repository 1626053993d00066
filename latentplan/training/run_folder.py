"""Run folders: who trains in one, under which settings, and on which data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from latentplan import config
from latentplan.data.store import ZarrStore
from latentplan.errors import CheckpointError, StoreError
from latentplan.files import PARTIAL, is_clutter, lock
from latentplan.training import state
from latentplan.types import Spec

CONFIG = "config.yaml"  # of a run: all that its result depends on
AS_WRITTEN = "put the file back as it was written, or give another run folder"
LOCK = ".lock"  # held by the process that trains in the folder


def claim(folder: Path) -> IO[bytes]:
    """Return a file that keeps other trainings out of a folder until it is closed."""
    try:
        return lock(folder / LOCK)
    except BlockingIOError:
        raise CheckpointError(
            f"{folder}: another process is training there; wait for it, or give another run folder"
        ) from None


def check_resumable(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Raise CheckpointError if `folder` holds something that must not be trained over."""
    if not in_use(folder):
        return
    check_resume(folder, resume=resume)
    check_state(folder)
    if not (folder / CONFIG).exists():
        return
    before, now = (dict(_leaves(s)) for s in (written(folder), settings))
    may_differ = {"data.path"}  # a store may move; its content has a digest
    if before.get("training.steps", 0) <= now["training.steps"]:
        may_differ.add("training.steps")
    differ = [
        f"{key}: {before.get(key)!r} in the run, {now.get(key)!r} now"
        for key in sorted({*before, *now} - may_differ)
        if before.get(key) != now.get(key)
    ]
    if differ:
        raise CheckpointError(
            f"{folder}: cannot resume with other settings ({'; '.join(differ)}); "
            "give the same ones, or another run folder"
        )


def written(folder: Path) -> dict[str, Any]:
    """Return the settings in the config.yaml of a run.

    Its keys are the kind of the learner, `training`, `seed` and `data`. Raises CheckpointError if
    the file is missing or is none of a run, ConfigError if it is not YAML.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: has no {CONFIG}; give the folder of a run that was trained here"
        )
    found = config.read_yaml(file)
    training = found.get("training")
    if not (
        type(found.get("seed")) is int
        and isinstance(training, Mapping)
        and type(training.get("steps", 0)) is int
    ):
        raise CheckpointError(f"{file}: does not hold a run's seed and training; {AS_WRITTEN}")
    _data_path(file, found)
    return dict(found)


def data_path(folder: Path) -> str:
    """Return the path or URL of the data in the config.yaml of a run; CheckpointError without."""
    return _data_path(folder / CONFIG, config.read_yaml(folder / CONFIG))


def _data_path(file: Path, found: Mapping[str, Any]) -> str:
    data = found.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("path"), str):
        raise CheckpointError(f"{file}: does not hold a run's data.path; {AS_WRITTEN}")
    return str(data["path"])


def check_state(folder: Path) -> None:
    """Raise CheckpointError if a folder lacks a file that its others depend on.

    Without its state a run would start at step 0 and replace what it has; without its best
    weights so far, later and worse ones would take their place.
    """
    kept = [name for name in ("best", "last") if (folder / f"{name}.safetensors").exists()]
    missing = ""
    if not (folder / state.FILE).exists():
        missing = state.FILE if kept else ""
    elif "best" not in kept and state.has_best(folder):
        missing, kept = "best.safetensors", [state.FILE.partition(".")[0]]
    if missing:
        raise CheckpointError(
            f"{folder}: has {kept[0]}.safetensors but no {missing} to resume from; put it back, "
            "or delete the folder or give another one to start again"
        )


def check_resume(folder: Path, *, resume: bool) -> None:
    """Raise CheckpointError if a folder is in use and not to be resumed."""
    if in_use(folder) and not resume:
        raise CheckpointError(f"{folder}: is not empty; resume it, or give another run folder")


def in_use(folder: Path) -> bool:
    """Return whether there is more in a folder than a lock and what others and kills left."""
    return folder.exists() and any(
        file.name != LOCK and not is_clutter(file.name) and not PARTIAL.fullmatch(file.name)
        for file in folder.iterdir()
    )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def identity(store: ZarrStore) -> dict[str, Any]:
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


def public(store: ZarrStore, *, privileged: Sequence[str] = ()) -> Spec:
    """Return a store's spec for a learner, with the tasks of its labels.

    Of privileged observations it has those alone that a PrivilegedModel declares.
    """
    spec = store.spec
    hidden = {*spec.privileged} - {*privileged}
    seen = {k: a for k, a in spec.observation.items() if k not in hidden}
    declared = tuple(k for k in spec.privileged if k not in hidden)
    tasks = spec.tasks or tuple(sorted({label.task for _, label in store.labels()} - {""}))
    return replace(spec, observation=seen, privileged=declared, tasks=tasks)
