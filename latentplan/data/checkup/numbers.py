"""Checks of actions and of observations that are numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from latentplan.data.checkup.findings import Finding
from latentplan.data.checkup.seen import Seen
from latentplan.types import Array, Spec

SATURATED = 0.5  # share of a number's actions that lie at one of its bounds
UNUSED = 0.02  # of half the range: actions that are all smaller have another unit
FEWEST = 100  # rows, to tell what is usual
JUMP = 20  # times the 99th percentile of a number's steps
TURN = 2 * np.pi
LAGS = 9  # rows by which an observation may follow an action
FOLLOWS = 0.5  # least correlation of an observation that follows an action
CLOCKS = ("timestamp", "time", "stamp")


def checks(seen: Sequence[Seen], spec: Spec) -> Iterator[Finding]:
    """Yield what is wrong with actions and vectors."""
    if not seen:
        return
    yield from _finite(seen)
    yield from _bounds(seen, spec)
    yield from _idle(seen)
    yield from _jumps(seen)
    yield from _constant(seen)
    yield from _lag(seen)
    yield from _clock(seen, spec)


def _finite(seen: Sequence[Seen]) -> Iterator[Finding]:
    for where in ("action", *seen[0].vectors):
        bad = {}
        for each in seen:
            rows = each.actions if where == "action" else each.vectors[where]
            wrong = np.flatnonzero(~np.isfinite(rows).all(1))
            if len(wrong):
                bad[each.number] = int(wrong[0])
        if bad:
            first = min(bad)
            text = "NaN or infinite; leave the episode out"
            yield Finding("not finite", where, tuple(sorted(bad)), bad[first], text)


def _bounds(seen: Sequence[Seen], spec: Spec) -> Iterator[Finding]:
    low, high = np.array(spec.action.low), np.array(spec.action.high)
    every = np.concatenate([each.actions for each in seen])
    with np.errstate(invalid="ignore"):
        outside = {
            each.number: np.argwhere((each.actions < low - 1e-4) | (each.actions > high + 1e-4))
            for each in seen
        }
    bad = [number for number, places in outside.items() if len(places)]
    if bad:
        row, number = (int(x) for x in outside[bad[0]][0])
        text = f"outside its bounds {low[number]:g} to {high[number]:g}"
        yield Finding("out of bounds", f"action[{number}]", tuple(bad), row, text)
    for i, (least, most) in enumerate(zip(low, high, strict=True)):
        values = every[np.isfinite(every[:, i]), i]
        if not (np.isfinite(least) and np.isfinite(most)) or most <= least or not len(values):
            continue
        half, distinct = (most - least) / 2, len(np.unique(values))
        at = max(float((np.abs(values - end) < 1e-6 * half).mean()) for end in (least, most))
        if distinct > 2 and at > SATURATED and len(values) >= FEWEST:
            text = f"at a bound in {at:.0%} of the rows: the bounds may be too narrow"
            yield Finding("saturated", f"action[{i}]", (), None, text)
        # A number that never moves is constant, not of another unit.
        largest = np.abs(values - (least + most) / 2).max()
        if distinct > 2 and np.ptp(values) > 0 and largest < UNUSED * half:
            text = (
                f"at most {largest:.2g} where {half:.2g} is allowed: another unit "
                "(mm for m, degrees for rad), or bounds that are far too wide"
            )
            yield Finding("unit", f"action[{i}]", (), None, text)


def _idle(seen: Sequence[Seen]) -> Iterator[Finding]:
    found = []
    for each in seen:
        still = len(each.actions) >= 5 and np.ptp(each.actions, axis=0).max() < 1e-6
        if still:
            found.append(each.number)
    if found:
        text = "all actions are equal; leave the episode out"
        yield Finding("no motion", "action", tuple(found), 0, text)


def _jumps(seen: Sequence[Seen]) -> Iterator[Finding]:
    for key in seen[0].vectors:
        if key in CLOCKS:
            continue
        steps = {each.number: np.diff(each.vectors[key], axis=0) for each in seen}
        every = np.abs(np.concatenate([*steps.values()]))
        every = every[np.isfinite(every).all(1)]
        if len(every) < FEWEST:
            continue
        # Without the largest few, which may be what is looked for in a small set.
        usual = np.percentile(np.sort(every, axis=0)[: -min(8, 1 + len(every) // 20)], 99, axis=0)
        scale = np.maximum(JUMP * usual, 1e-6)
        for i in range(len(usual)):
            if usual[i] == 0 or len(np.unique(every[:, i])) <= 3:
                continue  # switches are not followed by small steps
            size = {n: np.abs(step[:, i]) for n, step in steps.items()}
            turned = [n for n, d in size.items() if (np.abs(d - TURN) < 0.3).any()]
            if turned and usual[i] < TURN / JUMP:
                row = int(np.abs(size[turned[0]] - TURN).argmin()) + 1
                text = "jumps by a full turn; give angles as sine and cosine, or unwrap them"
                yield Finding("angle", f"{key}[{i}]", tuple(turned), row, text, "note")
                continue
            # What jumps by less than its range may be a gripper that opens.
            far = [
                n for n, d in size.items()
                if (d > scale[i]).any() and d.max() > _range_without(seen, n, key, i)
            ]  # fmt: skip
            if far:
                row = int(size[far[0]].argmax()) + 1
                text = (
                    f"jumps by {size[far[0]].max():.3g} where 99 % of the steps are at most "
                    f"{usual[i]:.3g}: a wrong reading"
                )
                yield Finding("jump", f"{key}[{i}]", tuple(far), row, text)


def _range_without(seen: Sequence[Seen], number: int, key: str, i: int) -> float:
    """Return the range of a number over all episodes but one."""
    others = [each.vectors[key][:, i] for each in seen if each.number != number]
    values = np.concatenate(others) if others else np.zeros(0)
    values = values[np.isfinite(values)]
    return float(np.ptp(values)) if len(values) else np.inf


def _constant(seen: Sequence[Seen]) -> Iterator[Finding]:
    for where in ("action", *seen[0].vectors):
        rows = [e.actions if where == "action" else e.vectors[where] for e in seen]
        same = np.flatnonzero(np.ptp(np.concatenate(rows), axis=0) == 0)
        if len(same):
            names = ", ".join(map(str, same[:8])) + (", ..." if len(same) > 8 else "")
            text = f"numbers {names} are constant: nothing can be learnt of them"
            yield Finding("constant", where, (), None, text, "note")


def _lag(seen: Sequence[Seen]) -> Iterator[Finding]:
    """Yield where observations follow actions late, or come before them."""
    long = [each for each in seen if len(each.actions) > LAGS + 3]
    best: tuple[float, int, float, str] | None = None
    for key in long[0].vectors if len(long) >= 2 else ():
        for kind in ("change", "place"):
            found = np.stack([_correlation(long, key, kind, lag) for lag in range(-2, LAGS)])
            strongest = found.max(0)
            i, j = np.unravel_index(int(strongest.argmax()), strongest.shape)
            lag = int(found[:, i, j].argmax()) - 2
            at, now = float(found[lag + 2, i, j]), float(found[2, i, j])
            if best is None or at > best[0]:
                best = (at, lag, now, f"action[{i}]")
    if best is None or best[0] < FOLLOWS or best[0] < best[2] + 0.15:
        return
    at, lag, now, where = best
    if lag >= 2 or lag < 0:
        text = (
            f"the observations follow {lag} rows late (correlation {at:.2f}; {now:.2f} in the same "
            "row)" if lag > 0 else f"the observations come {-lag} rows before it ({at:.2f})"
        )  # fmt: skip
        yield Finding("lag", where, (), None, text + "; shift the actions")


def _correlation(seen: Sequence[Seen], key: str, kind: str, lag: int) -> Array:
    """Return correlations (A, n) of actions with the vector `lag` rows after their effect."""
    left, right = [], []
    for each in seen:
        given = (each.vectors[key], each.actions)
        x, actions = (np.nan_to_num(rows, posinf=0, neginf=0) for rows in given)
        after = np.diff(x, axis=0) if kind == "change" else x[1:]
        a = actions[: len(after) - lag] if lag >= 0 else actions[-lag:]
        b = after[lag:] if lag >= 0 else after[: len(after) + lag]
        left.append(a - a.mean(0))
        right.append(b - b.mean(0))
    a, b = np.concatenate(left), np.concatenate(right)
    size = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)
    return np.asarray(np.abs(a.T @ b) / np.maximum(size, 1e-9))


def _clock(seen: Sequence[Seen], spec: Spec) -> Iterator[Finding]:
    for key in seen[0].vectors:
        if key not in CLOCKS:
            continue
        steps = {each.number: np.diff(each.vectors[key][:, 0]) for each in seen}
        usual = float(np.median(np.concatenate([*steps.values()])))
        for name, text, least in (
            ("clock", "goes back or stands still", -np.inf),
            ("gap", f"a step is over 2.5 times the usual {usual:.3g} s", 2.5 * usual),
        ):
            most = 0.0 if name == "clock" else np.inf
            bad = {n: np.flatnonzero((d > least) & (d <= most)) for n, d in steps.items()}
            found = [n for n, rows in bad.items() if len(rows)]
            if found:
                yield Finding(name, key, tuple(found), int(bad[found[0]][0]) + 1, text)
        every = np.concatenate([*steps.values()])
        if usual > 0 and np.percentile(np.abs(every - usual), 90) > 0.2 * usual:
            text = f"a tenth of the steps differ by over 20 % from the usual {usual:.3g} s"
            yield Finding("jitter", key, (), None, text + "; import onto one clock")
        if spec.dt and usual > 0 and not 0.8 < usual / spec.dt < 1.25:
            text = f"steps of {usual:.3g} s, where the data state {spec.dt:g} s"
            yield Finding("rate", key, (), None, text)
