"""`latentplan calibrate`: where a camera is and what its lens does, from pictures of a board."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentplan import config
from latentplan.errors import ConfigError, RobotError, SourceError

if TYPE_CHECKING:
    from latentplan.real_robot.perception.calibration import Result
    from latentplan.real_robot.perception.calibration_target import Board
    from latentplan.robots.camera import CalibratedCamera

SUSPECT = 3.0  # times the median error, from which on a picture is named


def draw(kind: str, *, out: str, overrides: Sequence[str]) -> None:
    """Write a board to print to `out`, a .png or .pdf, and print its size."""
    from latentplan.real_robot.perception.calibration_target import Board

    board: Board = config.load({"board": Board}, overrides=[f"kind={kind}", *overrides])["board"]
    board.save(Path(out))
    width, height = board.size
    print(
        f"{out}: {board.kind}, {board.columns} x {board.rows}, {width:.3f} x {height:.3f} m; print "
        f"it at 100 %, glue it on something flat, and measure square={board.square}"
    )


def run(
    source: str,
    *,
    kind: str,
    robot: str,
    mount: str,
    camera: str,
    out: str,
    lens: str | None,
    overrides: Sequence[str],
) -> None:
    """Calibrate `camera` from the pictures and joint positions of `source`, and write it to `out`.

    `source` is a store or a folder (see `calibration_samples.read`), `robot` the arm, `mount` where
    the camera is: `table` (the arm carries the board) or `flange`. `lens` is a file of an earlier
    calibration whose lens is taken; without one it is found, too. What else is settable are the
    fields of Board and of calibration.Config. Raises a LatentplanError where nothing comes of it.
    """
    from latentplan.real_robot.perception import calibration, calibration_samples
    from latentplan.real_robot.perception.calibration_target import Board, Finder
    from latentplan.robots import description
    from latentplan.robots.camera import load

    sections = {"board": Board, "calibration": calibration.Config}
    settings = config.load(sections, overrides=[f"board.kind={kind}", *overrides])
    board: Board = settings["board"]
    if not out.endswith((".yaml", ".yml")):
        raise ConfigError(f"--out: {out!r} must end with .yaml")
    arm, finder = description.load(robot), Finder(board)
    known = None if lens is None else replace(load(lens), name=camera)
    names, seen, positions, size = [], [], [], None
    for shot in calibration_samples.read(source, arm, camera=camera):
        height, width = shot.picture.shape[:2]
        size = size or (known and (known.width, known.height)) or (width, height)
        if (width, height) != size:
            raise SourceError(
                f"{source}: {shot.name} has {width} x {height} pixels, need {size[0]} x {size[1]} "
                f"of {'--lens' if known else 'the first one'}"
            )
        names.append(shot.name)
        positions.append(shot.q)
        seen.append(finder.find(shot.picture))
    if size is None:
        raise SourceError(
            f"{source}: holds no picture at which the arm rests; move it, wait a second, move on"
        )
    if not any(seen):
        raise RobotError(
            f"{source}: no picture of {len(seen)} shows a {board.kind} board, {board.columns} x "
            f"{board.rows}, {board.dictionary or 'default dictionary'}; check columns, rows, "
            "dictionary"
        )
    result = calibration.calibrate(
        seen,
        np.stack(positions),
        arm=arm,
        camera=known or _without_lens(camera, *size),
        mount=mount,
        lens_known=known is not None,
        config=settings["calibration"],
    )
    save(Path(out), result, names, about={"robot": robot, "board": config.to_values(board)})
    _tell(out, result, names, carrier="flange" if mount == "table" else "world")


def _without_lens(name: str, width: int, height: int) -> CalibratedCamera:
    """Return a camera whose lens is still to be found."""
    from latentplan.robots.camera import CalibratedCamera

    cx, cy, focal = (width - 1) / 2, (height - 1) / 2, float(width)
    return CalibratedCamera(name, width, height, fx=focal, fy=focal, cx=cx, cy=cy)


def save(file: Path, result: Result, names: Sequence[str], *, about: dict[str, object]) -> None:
    """Write the camera and how it came about: whole or not at all."""
    turned: CalibratedCamera = result.camera.mounted("table", result.board)
    each = {
        name: None if np.isnan(error) else round(float(error), 3)
        for name, error in zip(names, result.errors, strict=True)
    }
    told = {
        **about,
        **{name: round(value, 4) for name, value in result.figures.items()},
        "board_position": list(turned.position),
        "board_rotation": list(turned.rotation),
        "picture_px": each,
    }
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(result.camera).items()}
    config.save_yaml(file, values | {"calibration": told})


def _tell(out: str, result: Result, names: Sequence[str], *, carrier: str) -> None:
    f, camera = result.figures, result.camera
    left = [name for name, error in zip(names, result.errors, strict=True) if np.isnan(error)]
    print(f"{out}: camera {camera.name}, {camera.width} x {camera.height}, on the {camera.mount}")
    print(
        f"lens         fx {camera.fx:.2f} fy {camera.fy:.2f} cx {camera.cx:.2f} cy {camera.cy:.2f} "
        f"px, distortion {[round(number, 4) for number in camera.distortion]}"
    )
    place = [round(value, 4) for value in camera.position]
    print(f"position     {place} m in the frame of the {camera.mount}")
    print(f"pictures     {f['pictures']:.0f} of {len(names)}")
    print(f"reprojection {f['reprojection_px']:.3f} px")
    print(f"hand-eye     {f['hand_eye_mm']:.2f} mm, {f['hand_eye_deg']:.3f} deg")
    print(f"std          {f['position_std_mm']:.2f} mm, {f['rotation_std_deg']:.3f} deg")
    if left:
        print(f"no board in  {', '.join(left)}")
    limit = SUSPECT * float(np.nanmedian(result.errors))
    suspects = [
        f"{name} ({error:.2f} px)"
        for name, error in zip(names, result.errors, strict=True)
        if error > limit
    ]
    if suspects:
        print(f"look at      {', '.join(suspects)}: they fit worse than the others")
