"""`latentplan doctor DATA`: what is wrong with recorded episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentplan import config
from latentplan.api.choice import choose
from latentplan.errors import ConfigError, SourceError, StoreError, check_range
from latentplan.types import Episode, OnProgress, Progress, Spec
from latentplan.urls import local

if TYPE_CHECKING:
    from latentplan.data.checkup.findings import Finding


@dataclass(frozen=True)
class Checkup:
    """What was found in the episodes of a data set."""

    data: str
    episodes: int
    rows: int
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing but notes was found."""
        return all(each.level == "note" for each in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "healthy": self.healthy}


def check_up(
    data: str | Path,
    *,
    format: str = "",
    episodes: int | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Checkup:
    """Check the episodes of a store, or of a data set of a `format` that `import` reads.

    Of `episodes`, if given, the first ones alone. An episode that cannot be read is a finding.
    Raises StoreError or SourceError if the data set cannot be opened, or has no episode.
    """
    from latentplan.data.checkup import cameras, numbers
    from latentplan.data.checkup import episodes as whole
    from latentplan.data.checkup.findings import Finding
    from latentplan.data.checkup.seen import Seen, look

    if episodes is not None:
        check_range("check_up.episodes", episodes, 1)
    seen: list[Seen] = []
    damaged: dict[str, list[int]] = {}
    reader = _source(data, format, episodes) if format else _store(data, episodes)
    spec, total = next(reader)
    for number, found in enumerate(reader):
        on_progress(Progress("doctor", "episodes", number, total))
        if isinstance(found, Episode):
            seen.append(look(number, found, spec))
        else:
            damaged.setdefault(str(found), []).append(number)
    on_progress(Progress("doctor", "episodes", total, total))
    if not total:
        raise StoreError(f"check_up.data: {data} has no episodes")
    findings = [
        Finding("damaged", "", tuple(numbers_), None, reason)
        for reason, numbers_ in damaged.items()
    ]
    for check in (numbers.checks(seen, spec), cameras.checks(seen), whole.checks(seen)):
        findings += check
    findings.sort(key=lambda each: each.level != "fault")
    rows = sum(len(each.actions) + 1 for each in seen)
    return Checkup(str(data), total, rows, tuple(findings))


def summary(found: Checkup) -> Iterator[str]:
    """Yield what was found, a line a finding and one for all."""
    for each in found.findings:
        yield f"{each.level:5}  {each.line()}"
    levels = Counter(each.level for each in found.findings)
    counted = ", ".join(f"{levels[name]} {name}s" for name in ("fault", "note"))
    yield f"{found.data}: {found.episodes} episodes, {found.rows} rows: {counted}"


def _store(data: str | Path, count: int | None) -> Iterator[Any]:
    """Yield spec and number, then the episodes of a store, or why one cannot be read."""
    from latentplan.data.store import ZarrStore

    with ZarrStore.open(data) as store:
        total = len(store) if count is None else min(len(store), count)
        yield store.spec, total
        for number in range(total):
            try:
                yield store.episode(number)
            except StoreError as e:
                yield e


def _source(data: str | Path, format: str, count: int | None) -> Iterator[tuple[Spec, int] | Any]:
    """Yield the same of a data set of another format."""
    from latentplan.data import importing

    chosen = choose("source", format)
    settings = config.load({"source": chosen.config}, preset={"source": chosen.values})
    opened = importing.Opening(
        chosen.make,
        local(data, where="check_up.data"),
        config=settings["source"],
        keys=None,
        image_size=None,
        budget=None,
    ).open()
    total = len(opened) if count is None else min(len(opened), count)
    yield opened.spec, total
    for number in range(total):
        try:
            yield opened.episode(number)
        except (SourceError, ConfigError) as e:
            yield e
