"""Episode stores that a call writes to: made, or continued if they hold the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentplan.errors import StoreError
from latentplan.urls import public_values

if TYPE_CHECKING:
    from latentplan.data.store import ZarrStore
    from latentplan.types import Spec

ADVICE = "use the same settings to continue it, or write to another store"


@dataclass(frozen=True)
class StoreSize:
    """How much an episode store holds."""

    episodes: int
    transitions: int
    bytes: int  # on the disk


def open_or_create(
    out: str | Path, spec: Spec, settings: Mapping[str, Any], *, advice: str = ADVICE
) -> ZarrStore:
    """Return the store at a path or URL, open for appending; a new one if there is none.

    Raises StoreError, with the advice, if the one there has other settings or another spec.
    """
    from latentplan.data.location import locate
    from latentplan.data.store import ZarrStore, check_same

    settings = public_values(settings)
    if not locate(out).exists():
        return ZarrStore.create(out, spec, settings=settings)
    store = ZarrStore.open(out, "a")
    try:
        check_same(f"{store.path}: settings", store.settings, settings, advice=advice)
        check_same(f"{store.path}: spec", store.spec.to_json(), spec.to_json(), advice=advice)
    except BaseException:
        store.close()
        raise
    return store


@contextmanager
def filling(out: str | Path, spec: Spec, settings: Mapping[str, Any]) -> Iterator[ZarrStore]:
    """Yield the store of `open_or_create` and close it; a new one that stays empty is removed.

    So a call that fails at its first episode can be made again with other settings.
    """
    from latentplan.data.location import locate

    new = not locate(out).exists()
    with open_or_create(out, spec, settings) as store:
        try:
            yield store
        finally:
            if new and not len(store):
                with suppress(OSError, StoreError):  # an error of the call says more
                    store.delete()


def size(store: ZarrStore) -> StoreSize:
    """Return how much a store holds."""
    rows = int(store.ends[-1]) if len(store) else 0
    return StoreSize(len(store), rows - len(store), store.disk_bytes())
