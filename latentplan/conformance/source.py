"""Checks of every source: its episodes fit its spec, any process reads them, damage is refused.

They read the data set of the subject, of which a few episodes are enough.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from latentplan import config, contracts
from latentplan.conformance.suite import (
    NotApplicable,
    Subject,
    difference,
    refuses,
    require,
    require_commented_config,
)
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, LatentplanError, SourceError
from latentplan.protocols import AnnotatedSource, CountingSource, Source
from latentplan.types import Episode, Spec

READ = 8  # most episodes that a check reads
COPIED = 64 << 20  # bytes of the largest data set that is copied to be damaged
ROUNDING = 1e-6  # tolerance of an action's bounds
MISSING = "no_such_observation"


def check_config(subject: Subject) -> None:
    """Check that its Config survives a round trip, and that each field has a comment."""
    require_commented_config(subject)


def check_spec(subject: Subject) -> None:
    """Check that it opens with one episode or more, and a spec that survives JSON."""
    source = opened(subject)
    require(len(source) > 0, "there are no episodes")
    require(bool(source.spec.observation), "its spec has no observations")
    again = Spec.from_json(json.loads(json.dumps(source.spec.to_json())))
    require(again == source.spec, "JSON changes its spec")
    low, high = np.array(source.spec.action.low), np.array(source.spec.action.high)
    require(bool((low < high).all()), f"bounds of actions are {low} and {high}")


def check_settings(subject: Subject) -> None:
    """Check that its settings are JSON with every field of its Config, without the path."""
    source = opened(subject)
    text = json.dumps(source.settings)
    require(str(subject.data) not in text, "they hold the path of the data")
    lacking = [name for name in config.to_values(subject.make.Config()) if name not in text]
    require(not lacking, f"they lack {', '.join(lacking)}")


def check_episodes(subject: Subject) -> None:
    """Check that episodes have the keys, shapes and dtypes of the spec, and finite numbers."""
    source = opened(subject)
    for index, episode in readable(source):
        found, need = list(episode.observations), list(source.spec.observation)
        require(found == need, f"episode {index} has keys {found}, its spec {need}")
        wanted = {key: (a.shape, a.dtype) for key, a in source.spec.observation.items()}
        arrays = {**episode.observations, "actions": episode.actions, "rewards": episode.rewards}
        wanted |= {"actions": ((source.spec.action.size,), "float32"), "rewards": ((), "float32")}
        for key, (shape, dtype) in wanted.items():
            rows = arrays[key]
            fits = (rows.shape[1:], str(rows.dtype)) == (shape, dtype)
            seen = f"{rows.dtype} {rows.shape[1:]}"
            require(fits, f"{key!r} of episode {index} is {seen}, need {dtype} {shape}")
            finite = rows.dtype.kind != "f" or bool(np.isfinite(rows).all())
            require(finite, f"{key!r} of episode {index} is not finite")


def check_bounds(subject: Subject) -> None:
    """Check that actions are within the bounds of the spec."""
    source = opened(subject)
    low, high = np.array(source.spec.action.low), np.array(source.spec.action.high)
    for index, episode in readable(source):
        actions = episode.actions
        inside = bool(((actions >= low - ROUNDING) & (actions <= high + ROUNDING)).all())
        most = f"{actions.min(0).tolist()} to {actions.max(0).tolist()}"
        require(inside, f"those of episode {index} are from {most}")


def check_stored(subject: Subject) -> None:
    """Check that episodes come back from a store as they were."""
    source = opened(subject)
    with TemporaryDirectory() as folder:
        file = Path(folder, "stored.zarr")
        kept = [episode for _, episode in readable(source)]
        with ZarrStore.create(file, source.spec, settings=source.settings) as store:
            for episode in kept:
                store.append(episode)
        with ZarrStore.open(file, spec=source.spec) as store:
            for index, episode in enumerate(kept):
                differ = _differ(store.episode(index), episode)
                require(not differ, f"{differ} of episode {index} changes")


def check_deterministic(subject: Subject) -> None:
    """Check that an episode does not depend on the process or on those read before it."""
    one, other = opened(subject), opened(subject)
    index, before = readable(one)[-1]
    require(len(other) == len(one), f"found {len(one)} and {len(other)} episodes")
    for name, source in (("a second time", one), ("in another opening", other)):
        same = pickle.dumps(source.episode(index)) == pickle.dumps(before)
        require(same, f"episode {index} differs {name}")


def check_keys(subject: Subject) -> None:
    """Check that `keys` select observations and their order, and change nothing else."""
    whole = opened(subject)
    every = list(whole.spec.observation)
    for keys in ([every[0]], every[::-1]):
        source = opened(subject, keys=keys)
        require(len(source) == len(whole), f"{len(source)} episodes of {keys}, {len(whole)} of all")
        require(list(source.spec.observation) == keys, f"{list(source.spec.observation)} of {keys}")
        privileged = set(whole.spec.privileged) & set(keys)
        require(set(source.spec.privileged) == privileged, "privileged keys differ")
        require(source.settings == whole.settings, "settings depend on the keys")
        index, wanted = readable(whole)[0]
        found = source.episode(index)
        require(list(found.observations) == keys, f"found {list(found.observations)} of {keys}")
        chosen = {key: wanted.observations[key] for key in keys}
        differ = difference(found.observations, chosen) or _differ(found, wanted, rows=False)
        require(not differ, f"{differ} differs with keys {keys}")
    refuses("keys=[]", ConfigError, lambda: opened(subject, keys=[]))
    refuses(f"keys=[{MISSING!r}]", ConfigError, lambda: opened(subject, keys=[MISSING]))
    text = _refusal(lambda: opened(subject, keys=[MISSING]))
    lacking = [key for key in every if key not in text]
    require(not lacking, f"the error of an unknown key does not list {lacking}: {text}")


def check_counts(subject: Subject) -> None:
    """Check that what is left out is counted by reason, each one line, beside what is kept."""
    source = opened(subject)
    if not isinstance(source, CountingSource | AnnotatedSource):
        raise NotApplicable("counts nothing and has no notes")
    readable(source)
    if isinstance(source, AnnotatedSource):
        lines = all(isinstance(note, str) and "\n" not in note for note in source.notes)
        require(lines, f"a note is not one line: {list(source.notes)}")
    for part, counts in source.counts.items() if isinstance(source, CountingSource) else ():
        require("kept" in counts, f"counts of {part} do not have those kept: {sorted(counts)}")
        for reason, count in counts.items():
            natural = isinstance(count, int) and count >= 0
            require(natural, f"the count of {part} {reason!r} is {count!r}")
            require(bool(reason) and "\n" not in reason, f"the reason {reason!r} is not one line")


def check_absent(subject: Subject) -> None:
    """Check that an absent path and an empty folder raise a SourceError of one line with it."""
    with TemporaryDirectory() as folder:
        for path in (Path(folder), Path(folder, "absent")):
            open_path = partial(opened, subject, data=path)
            refuses(f"{path.name!r}", SourceError, open_path)
            text = _refusal(open_path)
            require(str(path) in text, f"the error does not name {path}: {text}")
            require("\n" not in text, f"the error is not one line: {text!r}")


def check_damaged(subject: Subject) -> None:
    """Check that damaged and missing files raise nothing but an error of one line."""
    assert subject.data is not None
    if _bytes(subject.data) > COPIED:
        raise NotApplicable(f"a data set of more than {COPIED >> 20} MB is not copied")
    names = {file.suffix: file.relative_to(subject.data) for file in _files(subject.data)}
    refused = 0
    for name in names.values():
        for damage in (lambda file: file.write_bytes(b"damaged"), Path.unlink):
            with TemporaryDirectory() as folder:
                copy = Path(folder, subject.data.name)
                (shutil.copytree if subject.data.is_dir() else shutil.copy)(subject.data, copy)
                damage(copy / name)
                text = _refusal(partial(_read, subject, copy))
                refused += bool(text)
                require("\n" not in text, f"the error of {name} is not one line: {text!r}")
    require(refused > 0, "no file is needed: episodes are read without any of them")


def opened(
    subject: Subject, *, keys: Sequence[str] | None = None, data: Path | None = None
) -> Source:
    """Return a new source of the subject's data, or of other data."""
    settings = subject.config or subject.make.Config()
    source: Source = subject.make(data or subject.data, settings, keys=keys)
    contracts.check_object(subject.kind, subject.name, source)
    return source


def readable(source: Source) -> list[tuple[int, Episode]]:
    """Return a few episodes over the whole data set, with their numbers; damaged ones are left."""
    found = []
    for index in sorted(set(np.linspace(0, len(source) - 1, READ).astype(int).tolist())):
        try:
            found.append((index, source.episode(index)))
        except SourceError as e:
            error = e
    if not found:
        raise error
    return found


def _read(subject: Subject, data: Path) -> None:
    source = opened(subject, data=data)
    for index in range(min(len(source), READ)):
        source.episode(index)


def _refusal(called: Callable[[], Any]) -> str:
    """Return the text of the error that a call raises, "" if none; a bug is raised on."""
    try:
        called()
    except LatentplanError as e:
        return Exception.__str__(e)  # as it was given: str(e) escapes the ends of lines
    return ""


def _differ(found: Episode, wanted: Episode, *, rows: bool = True) -> str:
    """Return the name of what differs between two episodes; "" if nothing does."""
    pairs = {name: (getattr(found, name), getattr(wanted, name)) for name in ("labels", "info")}
    for name, (one, other) in pairs.items():
        if one != other:
            return name
    given = found.observations if rows else {}
    chosen = wanted.observations if rows else {}
    return difference(
        {**given, "actions": found.actions, "rewards": found.rewards},
        {**chosen, "actions": wanted.actions, "rewards": wanted.rewards},
    )


def _files(data: Path) -> list[Path]:
    return sorted(f for f in data.rglob("*") if f.is_file()) if data.is_dir() else [data]


def _bytes(data: Path) -> int:
    return sum(file.stat().st_size for file in _files(data))
