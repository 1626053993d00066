"""Checks of whole episodes: their lengths, doubles and texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from latentplan.data.checkup.findings import Finding
from latentplan.data.checkup.seen import Seen
from latentplan.data.windows import HELD_OUT, is_test

UNLIKE = 10  # times longer or shorter than the median


def checks(seen: Sequence[Seen]) -> Iterator[Finding]:
    """Yield what is wrong with episodes as a whole."""
    if not seen:
        return
    lengths = np.array([len(each.actions) for each in seen])
    usual = float(np.median(lengths))
    least = max(2, usual / UNLIKE)
    short = [each.number for each, n in zip(seen, lengths, strict=True) if n < least]
    if short:
        text = f"at most {lengths.min()} actions where the median is {usual:g}; leave them out"
        yield Finding("short episode", "", tuple(short), None, text)
    long = [each.number for each, n in zip(seen, lengths, strict=True) if n > UNLIKE * usual]
    if long:
        text = f"{lengths.max()} actions where the median is {usual:g}: several in one?"
        yield Finding("long episode", "", tuple(long), None, text)
    yield from _doubles(seen)
    yield from _texts(seen)


def _doubles(seen: Sequence[Seen]) -> Iterator[Finding]:
    first: dict[str, int] = {}
    again, leaked = [], []
    for each in seen:
        before = first.setdefault(each.start, each.number)
        if before != each.number:
            again.append(each.number)
            one, other = is_test(np.array([before, each.number]), HELD_OUT)
            if one != other:
                leaked.append(each.number)
    if leaked:
        text = "equal to an episode of the other side: what is trained on is held out as well"
        yield Finding("leak", "", tuple(leaked), None, text)
    rest = tuple(number for number in again if number not in leaked)
    if rest:
        yield Finding("double", "", rest, None, "equal to an earlier episode; leave one out")


def _texts(seen: Sequence[Seen]) -> Iterator[Finding]:
    without = [each.number for each in seen if not each.labels]
    if without and len(without) < len(seen):
        text = f"no label, where {len(seen) - len(without)} others have one"
        yield Finding("text missing", "", tuple(without), None, text)
    empty = [each.number for each in seen if each.texts < each.labels]
    if empty:
        yield Finding("empty text", "", tuple(empty), None, "a label without words")
