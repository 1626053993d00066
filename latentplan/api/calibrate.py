"""Calibration of a camera by the arm: its lens and its pose, from images of a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentplan import config
from latentplan.api.choice import Overrides, as_overrides
from latentplan.errors import ConfigError, RobotError, SourceError
from latentplan.urls import local, public

if TYPE_CHECKING:
    from latentplan.real_robot.perception.calibration import Result
    from latentplan.real_robot.perception.calibration_target import CalibrationTarget
    from latentplan.robots.camera import CalibratedCamera
    from latentplan.robots.description import Arm
    from latentplan.types import Array

SUSPECT = 3.0  # times the median error, from which an image is named


@dataclass(frozen=True)
class Calibrated:
    """A camera that was calibrated, and how well it fits each image."""

    file: Path  # that was written
    result: Result
    images: tuple[str, ...]  # names, in the order of `result.errors`

    @property
    def without_target(self) -> list[str]:
        """Images in which no target was found."""
        pairs = zip(self.images, self.result.errors, strict=True)
        return [name for name, error in pairs if np.isnan(error)]

    @property
    def suspects(self) -> dict[str, float]:
        """Images that fit worse than the others, with their errors in pixels."""
        limit = SUSPECT * float(np.nanmedian(self.result.errors))
        pairs = zip(self.images, self.result.errors, strict=True)
        return {name: float(error) for name, error in pairs if error > limit}


def draw_target(
    out: str | Path, *, kind: str = "charuco", overrides: Overrides = ()
) -> CalibrationTarget:
    """Write a calibration target to print to `out`, a .png or .pdf, and return it."""
    from latentplan.real_robot.perception.calibration_target import CalibrationTarget

    given = [f"kind={kind}", *as_overrides(overrides)]
    target: CalibrationTarget = config.load({"board": CalibrationTarget}, overrides=given)["board"]
    target.save(local(out, where="calibrate.out"))
    return target


def calibrate(
    source: str | Path,
    *,
    out: str | Path,
    kind: str = "charuco",
    robot: str = "panda",
    mount: str = "table",
    camera: str = "rgb",
    lens: str | Path | None = None,
    overrides: Overrides = (),
) -> Calibrated:
    """Calibrate `camera` from the images and joint positions of `source`, and write it to `out`.

    `source` is a store or a folder (see `calibration_samples.read`), `robot` the arm, `mount` the
    camera's place: `table` (the arm carries the target) or `flange`. `lens` is a file of an earlier
    calibration whose lens is taken; without one it is estimated too. Sections of `overrides`:
    board, calibration. Raises a LatentplanError if there is too little to calibrate from.
    """
    from latentplan.real_robot.perception import calibration
    from latentplan.real_robot.perception.calibration_target import CalibrationTarget
    from latentplan.robots import description
    from latentplan.robots.camera import load

    sections = {"board": CalibrationTarget, "calibration": calibration.Config}
    given = [f"board.kind={kind}", *as_overrides(overrides)]
    settings = config.load(sections, overrides=given)
    board: CalibrationTarget = settings["board"]
    out = local(out, where="calibrate.out")
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"calibrate.out: {str(out)!r} must end with .yaml")
    arm = description.load(robot)
    known = None if lens is None else replace(load(str(lens)), name=camera)
    found = _images(source, arm, board, camera=camera, known=known)
    if not any(found.seen):
        raise RobotError(
            f"{public(source)}: no image of {len(found.seen)} shows a {board.kind} target, "
            f"{board.columns} x {board.rows}, {board.dictionary or 'default dictionary'}; check "
            "columns, rows, dictionary"
        )
    result = calibration.calibrate(
        found.seen,
        np.stack(found.positions),
        arm=arm,
        camera=known or _without_lens(camera, *found.size),
        mount=mount,
        lens_known=known is not None,
        config=settings["calibration"],
    )
    about: dict[str, object] = {"robot": robot, "board": config.to_values(board)}
    save(out, result, found.names, about=about)
    return Calibrated(out, result, tuple(found.names))


@dataclass
class _Images:
    """The target as it was found in each image."""

    names: list[str] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)
    positions: list[Array] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)  # width and height, pixels


def _images(
    source: str | Path,
    arm: Arm,
    board: CalibrationTarget,
    *,
    camera: str,
    known: CalibratedCamera | None,
) -> _Images:
    """Return where the target is in the images at which the arm rests."""
    from latentplan.real_robot.perception import calibration_samples
    from latentplan.real_robot.perception.calibration_target import TargetDetector

    finder, found = TargetDetector(board), _Images()
    if known is not None:
        found.size = known.width, known.height
    for shot in calibration_samples.read(str(source), arm, camera=camera):
        height, width = shot.image.shape[:2]
        if found.size == (0, 0):
            found.size = width, height
        if (width, height) != found.size:
            raise SourceError(
                f"{public(source)}: {shot.name} has {width} x {height} pixels, need "
                f"{found.size[0]} x {found.size[1]} of "
                f"{'the given lens' if known else 'the first one'}"
            )
        found.names.append(shot.name)
        found.positions.append(shot.q)
        found.seen.append(finder.find(shot.image))
    if not found.names:
        raise SourceError(
            f"{public(source)}: holds no image at which the arm rests; move it, wait a second, "
            "move on"
        )
    return found


def _without_lens(name: str, width: int, height: int) -> CalibratedCamera:
    """Return a camera whose lens is still to be found."""
    from latentplan.robots.camera import CalibratedCamera

    cx, cy, focal = (width - 1) / 2, (height - 1) / 2, float(width)
    return CalibratedCamera(name, width, height, fx=focal, fy=focal, cx=cx, cy=cy)


def save(file: Path, result: Result, names: Sequence[str], *, about: dict[str, object]) -> None:
    """Write the camera and its calibration: whole or not at all."""
    turned: CalibratedCamera = result.camera.mounted("table", result.board)
    each = {
        name: None if np.isnan(error) else round(float(error), 3)
        for name, error in zip(names, result.errors, strict=True)
    }
    figures = {
        **about,
        **{name: round(value, 4) for name, value in result.figures.items()},
        "board_position": list(turned.position),
        "board_rotation": list(turned.rotation),
        "image_px": each,
    }
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(result.camera).items()}
    config.save_yaml(file, values | {"calibration": figures})
