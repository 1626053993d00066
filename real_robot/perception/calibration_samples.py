"""Calibration samples: images with the joint positions of each, from a store or a folder."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from latentplan import budget, foreign
from latentplan.data import image_files
from latentplan.data.store import ZarrStore
from latentplan.errors import RobotError, SourceError
from latentplan.real_robot.robot import in_order
from latentplan.robots.description import Arm
from latentplan.types import Array

LISTS = ("joints.csv", "joints.json")  # beside the images of a folder
STILL = 0.01  # rad/s, of every joint at most; a moving arm has no exact joints in an image
APART = 0.03  # rad, the least difference of some joint from all images before


class CalibrationSample(NamedTuple):
    """One image and the joint positions at that time."""

    name: str  # for messages: a file name, or `episode 3 row 17`
    image: Array  # (h, w, 3) uint8
    q: Array  # (J,) rad


def read(source: str, arm: Arm, *, camera: str) -> Iterator[CalibrationSample]:
    """Yield the samples of a store or a folder, in order.

    A store (DATA.zarr, as `latentplan record` writes it) holds `q`, `dq` and the images of
    `camera`; a row is taken if the arm rests in a new position. A folder holds images and a
    list of them: `joints.csv` with a line `image, <joint>, <joint>, ...` above, or `joints.json`
    with a list of `{"image": ..., "q": {<joint>: ...}}`; positions in rad. Raises SourceError
    if it is neither, or does not fit the arm.
    """
    path = Path(source)
    if path.suffix == ".zarr" or "://" in source or (path / "zarr.json").exists():
        return _of_store(source, arm, camera)
    return _of_folder(path, arm)


def _of_store(source: str, arm: Arm, camera: str) -> Iterator[CalibrationSample]:
    with ZarrStore.open(source) as store:
        there, joints = store.spec.observation, len(arm.joints)
        images = [key for key, each in there.items() if len(each.shape) == 3]
        if camera not in images:
            raise SourceError(
                f"{store.path}: no images of a camera {camera!r}; name one of: "
                f"{', '.join(images) or 'it has none'}"
            )
        for key in ("q", "dq"):
            if key not in there or there[key].shape != (joints,):
                found = f"of shape {there[key].shape}" if key in there else "missing"
                raise SourceError(
                    f"{store.path}: observation {key} is {found}, need ({joints},) for the "
                    f"{arm.name}; record it on the arm, or name another robot"
                )
        starts = [0, *(int(end) for end in store.ends)]
        taken: list[Array] = []
        for number, (start, stop) in enumerate(zip(starts, starts[1:], strict=False)):
            q = store.rows("observation/q", start, stop)
            fastest = np.abs(store.rows("observation/dq", start, stop)).max(1)
            still = np.asarray(fastest < STILL)
            # An image may be older than the joints of its row.
            still[1:] &= np.abs(np.diff(q, axis=0)).max(1) < 1e-3
            for row in np.flatnonzero(still).tolist():
                if taken and np.abs(np.stack(taken) - q[row]).max(1).min() < APART:
                    continue
                taken.append(q[row])
                at = start + row
                image = store.rows(f"observation/{camera}", at, at + 1)[0]
                yield CalibrationSample(f"episode {number} row {row}", image, q[row].astype(float))


def _of_folder(path: Path, arm: Arm) -> Iterator[CalibrationSample]:
    if path.name in LISTS:
        path = path.parent
    lists = [path / name for name in LISTS if (path / name).is_file()]
    if len(lists) != 1:
        found = "both" if lists else "neither"
        raise SourceError(
            f"{path}: holds {found} of {' and '.join(LISTS)}; need one list of images with joint "
            "positions, or a store DATA.zarr"
        )
    rows = _csv(lists[0]) if lists[0].suffix == ".csv" else _json(lists[0])
    if not rows:
        raise SourceError(f"{lists[0]}: names no image")
    names = [joint.name for joint in arm.joints]
    for name, joints in rows:
        try:
            values = [float(value) for value in joints.values()]
            q = in_order(names, list(joints), values)
        except (TypeError, ValueError, RobotError) as e:
            raise SourceError(f"{lists[0]}: {name}: {e}") from None
        if not np.isfinite(q).all():
            raise SourceError(f"{lists[0]}: {name}: found joints {q.tolist()}, need finite rad")
        yield CalibrationSample(name, _image(path / name), q)


def _csv(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    lines = foreign.text(file, error=SourceError).splitlines()
    budget.claim(str(file), items=len(lines))
    table = csv.DictReader(lines, skipinitialspace=True)
    try:
        if not table.fieldnames or "image" not in table.fieldnames:
            raise SourceError(f"{file}: no column `image` in line 1; need image, <joint>, ...")
        return [(row.pop("image") or "", row) for row in table]
    except csv.Error as e:
        raise SourceError(f"{file}: not a table ({e})") from None


def _json(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    rows = foreign.read_json(file, error=SourceError)
    try:
        return [(str(row["image"]), dict(row["q"])) for row in rows]
    except (ValueError, TypeError, KeyError) as e:
        raise SourceError(
            f'{file}: need a list of {{"image": FILE, "q": {{JOINT: rad}}}} '
            f"({type(e).__name__}: {e})"
        ) from None


def _image(file: Path) -> Array:
    with image_files.opened(file, where=str(file), error=SourceError) as image:
        return image_files.rgb(image, where=str(file), error=SourceError)
