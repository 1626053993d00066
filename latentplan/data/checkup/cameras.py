"""Checks of images: dark, frozen, repeated, flipped, with swapped colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from latentplan.data.checkup.findings import Finding
from latentplan.data.checkup.seen import Camera, Seen
from latentplan.types import Array

DARK, BRIGHT = 8, 247  # of 255: all of a black image is below, of a white one above
FROZEN = 10  # equal images in a row while something else changes
REPEATED = 0.15  # share of images equal to the one before, while something else changes
EXPOSURES = {
    "black image": "all pixels are dark",
    "white image": "all pixels are bright",
    "uniform image": "all pixels have one value",
}
TURNS = {"upside down": (0,), "left to right": (1,), "by half a turn": (0, 1)}
ALIKE = 0.8  # correlation of thumbnails with those of the other episodes, flipped ones included
UNLIKE = 0.5  # of the usual thumbnail with its own flip: else nothing can be told
FEWEST = 4  # episodes, to tell which is unlike the others
FEWEST_ROWS = 100  # to tell what is usual


def checks(seen: Sequence[Seen]) -> Iterator[Finding]:
    """Yield what is wrong with the images."""
    for key in seen[0].cameras if seen else ():
        yield from _exposure(seen, key)
        yield from _frozen(seen, key)
        yield from _orientation(seen, key)
        yield from _colours(seen, key)


def _exposure(seen: Sequence[Seen], key: str) -> Iterator[Finding]:
    for name, text in EXPOSURES.items():
        rows = {each.number: np.flatnonzero(_exposed(each.cameras[key], name)) for each in seen}
        found = [number for number, bad in rows.items() if len(bad)]
        if found:
            count = sum(len(rows[n]) for n in found)
            what = f"{text} in {count} images; leave these episodes out, or check the camera"
            yield Finding(name, key, tuple(found), int(rows[found[0]][0]), what)


def _exposed(camera: Camera, name: str) -> Array:
    """Return which images (L + 1,) bool are so."""
    black, white = camera.high < DARK, camera.low > BRIGHT
    found = {"black image": black, "white image": white}
    return np.asarray(found.get(name, (camera.high == camera.low) & ~black & ~white))


def _frozen(seen: Sequence[Seen], key: str) -> Iterator[Finding]:
    frozen, repeated, moving = {}, 0, 0
    for each in seen:
        changed = each.changed if each.vectors else np.ones(len(each.actions), bool)
        still = each.cameras[key].same & changed
        start, length = _longest(still)
        if length >= min(FROZEN, max(3, len(still) // 2)) and length >= 3:
            frozen[each.number] = start
        elif each.vectors:
            repeated += int(still.sum())
            moving += int(changed.sum())
    if frozen:
        first = min(frozen)
        text = "the image stays the same while the rest goes on; leave the episode out"
        yield Finding("frozen camera", key, tuple(sorted(frozen)), int(frozen[first]), text)
    if moving >= FEWEST_ROWS and repeated / moving > REPEATED:
        text = (
            f"{repeated / moving:.0%} of the images equal the one before while the rest goes on: "
            "the camera is slower than the data; import at its rate"
        )
        yield Finding("repeated images", key, (), None, text)


def _longest(flags: Array) -> tuple[int, int]:
    """Return start and length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.r_[False, flags, False].astype(int)))
    if not len(edges):
        return 0, 0
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    best = int(lengths.argmax())
    return int(starts[best]), int(lengths[best])


def _orientation(seen: Sequence[Seen], key: str) -> Iterator[Finding]:
    if len(seen) < FEWEST:
        return
    thumbs = np.stack([each.cameras[key].thumb for each in seen])
    usual = np.median(thumbs, axis=0)
    own = np.array([_alike(thumb, usual) for thumb in thumbs])
    if np.median(own) < ALIKE:  # the views differ too much
        return
    for name, axes in TURNS.items():
        if _alike(np.flip(usual, axes), usual) > UNLIKE:
            continue
        found = []
        for each, thumb, as_is in zip(seen, thumbs, own, strict=True):
            turned = _alike(np.flip(thumb, axes), usual)
            others = max(_alike(np.flip(thumb, other), usual) for other in TURNS.values())
            if turned >= others and turned > ALIKE and as_is < UNLIKE:
                found.append(each.number)
        if found:
            text = f"flipped {name}, compared with the other episodes; turn them before training"
            yield Finding("flipped image", key, tuple(found), 0, text)


def _colours(seen: Sequence[Seen], key: str) -> Iterator[Finding]:
    if len(seen) < FEWEST:
        return
    means = np.stack([each.cameras[key].thumb.mean((0, 1)) for each in seen])
    usual = np.median(means, axis=0)
    own = np.abs(means - usual).max(1)
    swapped = np.abs(means[:, ::-1] - usual).max(1)
    found = [s.number for s, a, b in zip(seen, own, swapped, strict=True) if a > 10 and b < 0.4 * a]
    if found:
        text = "red and blue are swapped, compared with the other episodes; swap them back"
        yield Finding("swapped colours", key, tuple(found), 0, text)


def _alike(a: Array, b: Array) -> float:
    a, b = a - a.mean((0, 1)), b - b.mean((0, 1))
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float((a * b).sum() / size) if size > 1e-9 else 0.0
