"""Stores made of other stores, episode by episode: once, and continued after a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from latentplan.data.store import ZarrStore, check_same
from latentplan.errors import StoreError
from latentplan.types import Episode, Spec


def derive(
    store: ZarrStore,
    out: Path,
    *,
    spec: Spec,
    make: Callable[[Sequence[Episode]], Iterable[Episode]],
    rows: int = 1,
    advance: Callable[[int], None] = lambda done: None,
) -> ZarrStore:
    """Return the store at `out`, open to read, whose episode i is made of episode i of `store`.

    `make` gets whole episodes with at least `rows` actions together and returns one for each. What
    is missing is made first, in the same groups whatever was made before, so that a store that was
    continued is equal to an undisturbed one. `advance(done)` is called after every group. Raises
    StoreError if `out` is of another spec, or `make` returns too few or too many episodes.
    """
    made = _opened(out, spec)
    with made:
        for group in _groups(store, rows):
            if group.stop <= len(made):
                continue
            episodes = [store.episode(index) for index in group]
            found = list(make(episodes))
            if len(found) != len(episodes):
                raise StoreError(
                    f"{out}: found {len(found)} episodes made of {len(episodes)}, need one of each"
                )
            for index, episode in zip(group, found, strict=True):
                if index >= len(made):
                    made.append(episode)
            advance(len(made))
    return ZarrStore.open(out)


def _groups(store: ZarrStore, rows: int) -> Iterator[range]:
    """Yield the numbers of episodes that are made together."""
    first, actions = 0, 0
    for index, length in enumerate(np.diff(store.ends, prepend=0).tolist()):
        actions += length - 1
        if actions >= rows or index + 1 == len(store):
            yield range(first, index + 1)
            first, actions = index + 1, 0


def _opened(out: Path, spec: Spec) -> ZarrStore:
    """Return the store at `out`, open for append; StoreError if it is of another spec."""
    if not out.exists():
        return ZarrStore.create(out, spec)
    store = ZarrStore.open(out, "a")
    try:
        advice = "delete it, or give another run folder"
        check_same(f"{out}: spec", store.spec.to_json(), spec.to_json(), advice=advice)
    except StoreError:
        store.close()
        raise
    return store
