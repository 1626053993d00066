"""Protocols of data: sources in other formats, episode stores and training windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from latentplan.types import Batch, Episode, Spec


class Source(Protocol):
    """A data set in another format, read as episodes; a `Component` with an argument `keys`.

    It is built as `cls(path, config, keys=keys)`, where `keys` are the observations to read, None
    for all. `spec` has these observations alone, and others are neither opened nor checked. The
    constructor raises ConfigError, which lists what exists, for a key or a setting that selects
    nothing. An empty, damaged or missing episode raises only when it is read, so that the others
    can be imported.
    """

    spec: Spec
    settings: dict[str, Any]  # JSON values that the episodes depend on, without path and keys

    def __len__(self) -> int:
        """Return the number of episodes, including those that cannot be read."""

    def episode(self, index: int) -> Episode:
        """Return one episode, from its files alone: any process may read any episode.

        Raises a SourceError that names the file if it is missing, damaged or unexpected.
        """


@runtime_checkable
class AnnotatedSource(Protocol):
    """A Source that reports what it leaves out."""

    notes: Sequence[str]  # one line each


@runtime_checkable
class CountingSource(Protocol):
    """A Source that reads parts, such as messages, of which it keeps some."""

    counts: Mapping[str, Mapping[str, int]]  # by part: how many are `kept`, or left out by reason


class EpisodeStore(Protocol):
    """Episodes on disk, appended whole or not at all."""

    spec: Spec

    def append(self, episode: Episode) -> None:
        """Write one episode, which a crash at any moment leaves whole or absent."""

    def __len__(self) -> int:
        """Return the number of episodes."""

    def episode(self, index: int) -> Episode:
        """Return one episode."""


class Windows(Protocol):
    """An endless, seeded, resumable stream of training windows."""

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield the batches `start`, `start + 1`, ...; batch i is the same in every process."""
