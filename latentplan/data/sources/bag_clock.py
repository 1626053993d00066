"""The clocks of a bag's topics: which messages have a wrong stamp, and where a clock goes back.

A clock that goes back (a simulator was restarted, a bag was played in a loop) stays behind the
recorder's clock from then on: the recording is cut there, on all topics. A wrong stamp, early or
late, is that of some messages alone: the recorder's clock and the stamps agree again after them.

Times are ns, int64; messages are in the order of recording.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from latentplan.types import Array

OUT = -1  # epoch of a message that is left out
JITTER = 50_000_000  # ns by which the delay of messages varies
DELAY = 500_000_000  # ns by which it varies at most
NEAR = 10**9  # ns within which clocks that go back do so for the same reason
DEPTH = 5  # parts of a topic that may be wrong in one place


class Stream(NamedTuple):
    """The messages of one sender on a topic."""

    stamps: Array  # (M,)
    recorded: Array  # (M,)
    order: Array  # (M,) increasing: the place of each message in the bag


_Part = list[tuple[int, int]]  # ranges of messages whose stamps increase from first to last


@dataclass
class _Cut:
    """A place in the bag where clocks go back, after message `last` and not after `first`."""

    last: int  # in the order of the bag
    first: int
    recorded: int  # ns, of `first`
    begins: dict[str, int]  # first message after it, of the streams whose own clock goes back

    def begin(self, name: str, stream: Stream) -> int:
        """Return the first message of a stream after it."""
        after = int(np.searchsorted(stream.order, self.last, side="right"))
        return self.begins.get(name, after)


def epochs(streams: Mapping[str, Stream]) -> dict[str, Array]:
    """Return the epoch (M,) of each message, OUT if its stamp is wrong or repeats another.

    Epochs count from 0 and are the same on all topics: a new one begins wherever a clock goes back.
    The stamps of a stream increase within each.
    """
    parts = {name: _parts(stream) for name, stream in streams.items()}
    cuts = _cuts(streams, parts)
    found = {}
    for name, stream in streams.items():
        begins = np.array([cut.begin(name, stream) for cut in cuts], np.int64)
        of_each = np.searchsorted(
            np.maximum.accumulate(begins), np.arange(len(stream.stamps)), side="right"
        )
        found[name] = np.full(len(stream.stamps), OUT, np.int64)
        for first, stop in (span for part in parts[name] for span in part):
            found[name][first:stop] = of_each[first:stop]
    return found


def _cuts(streams: Mapping[str, Stream], parts: Mapping[str, list[_Part]]) -> list[_Cut]:
    """Return where clocks go back, in the order of the bag.

    Streams go back together if the times between their last and first messages overlap, or nearly.
    """
    events = []
    for name, stream in streams.items():
        for before, after in pairwise(parts[name]):
            first = after[0][0]
            last = int(stream.order[before[-1][1] - 1])
            events.append((int(stream.order[first]), last, name, first))
    cuts: list[_Cut] = []
    for place, last, name, first in sorted(events):
        recorded = int(streams[name].recorded[first])
        newest = cuts[-1] if cuts else None
        if newest and name not in newest.begins and (
            last < newest.first or abs(recorded - newest.recorded) <= NEAR
        ):
            newest.begins[name] = first
            newest.last = min(max(newest.last, last), newest.first - 1)
        else:
            cuts.append(_Cut(last, place, recorded, {name: first}))
    return cuts


def _parts(stream: Stream) -> list[_Part]:
    """Return the messages between two times at which the clock goes back, without wrong ones."""
    stamps, recorded = stream.stamps, stream.recorded
    edges = [0, *(np.flatnonzero(np.diff(stamps) <= 0) + 1).tolist(), len(stamps)]
    parts: list[_Part] = []
    for first, stop in pairwise(edges):
        if not parts:
            parts.append([(first, stop)])
            continue
        first += int(stamps[first] == stamps[parts[-1][-1][1] - 1])  # repeated
        if first == stop:
            continue
        last = parts[-1][-1][1] - 1
        if stamps[first] > stamps[last]:
            parts[-1].append((first, stop))
        elif recorded[last] - recorded[first] > JITTER:  # the recorder's clock goes back too
            parts.append([(first, stop)])
        else:
            _join(parts, first, stop, stream)
    return parts


def _join(parts: list[_Part], first: int, stop: int, stream: Stream) -> None:
    """Append messages that begin behind the last one: as a new part, or without the wrong ones."""
    stamps, recorded = stream.stamps, stream.recorded
    behind = int(stamps[parts[-1][-1][1] - 1] - stamps[first])
    allowed = min(max(behind // 2, JITTER), DELAY)

    def agree(one: int, other: int) -> bool:
        elapsed = int(stamps[other] - stamps[one]), int(recorded[other] - recorded[one])
        return abs(elapsed[0] - elapsed[1]) <= allowed

    best: tuple[int, list[_Part], int] | None = None  # messages left out, what is left, and from
    dropped = 0
    for depth in range(min(DEPTH, len(parts))):
        earlier, part = parts[: len(parts) - 1 - depth], parts[-1 - depth]
        last = part[-1][1] - 1
        # The first messages are wrong, those from `then` on follow this part.
        then = first + int(np.searchsorted(stamps[first:stop], stamps[last], side="right"))
        cost = dropped + then - first
        if then < stop and agree(last, then) and (best is None or cost < best[0]):
            best = cost, [*earlier, part], then
        # The last messages of this part are wrong.
        kept = _before(part, stamps, int(stamps[first]))
        size = sum(b - a for a, b in part)
        cost = dropped + size - sum(b - a for a, b in kept)
        if kept and agree(kept[-1][1] - 1, first) and (best is None or cost < best[0]):
            best = cost, [*earlier, kept], first
        dropped += size
    if best is None:
        parts.append([(first, stop)])
    else:
        _, parts[:], then = best
        parts[-1].append((then, stop))


def _before(part: _Part, stamps: Array, stamp: int) -> _Part:
    """Return the messages of a part before a stamp."""
    kept = [(a, b) for a, b in part if stamps[a] < stamp]
    if kept:
        a, b = kept[-1]
        kept[-1] = a, a + int(np.searchsorted(stamps[a:b], stamp))
    return kept
