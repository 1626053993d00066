"""`latentplan.join`: the episodes of several stores in one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from latentplan.api import stores
from latentplan.api.stores import StoreSize
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError
from latentplan.training import run_folder
from latentplan.types import OnProgress, Progress


def join(
    parts: Sequence[str | Path],
    *,
    out: str | Path,
    on_progress: OnProgress = lambda progress: None,
) -> StoreSize:
    """Fill the store `out` with the episodes of all `parts`, in their order.

    All must have one spec; their settings may differ, such as the task of an env, and those of the
    first are kept beside a digest of each part. An interrupted join is continued by the same call.
    Raises ConfigError without parts, StoreError if a part has another spec or `out` holds other
    data.
    """
    if not parts:
        raise ConfigError("join.parts: found none, need at least one store")
    with ExitStack() as stack:
        first = stack.enter_context(ZarrStore.open(parts[0]))
        others = [ZarrStore.open(part, spec=first.spec) for part in parts[1:]]
        opened = [first, *(stack.enter_context(each) for each in others)]
        total = sum(map(len, opened))
        settings = {**first.settings, "joined": [run_folder.identity(each) for each in opened]}
        store = stack.enter_context(stores.filling(out, first.spec, settings))
        done = len(store)
        for part in opened:
            for index in range(len(part)):
                if done:  # appended by an earlier call
                    done -= 1
                    continue
                store.append(part.episode(index))
                on_progress(Progress("join", "episodes", len(store), total, {}))
        return stores.size(store)
