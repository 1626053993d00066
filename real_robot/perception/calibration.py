"""The pose and lens of a camera, from images of a target and the joint positions of each.

Either the camera is fixed at the table and the arm carries the board, or the arm carries the camera
and the board is fixed. The measurements are corners in the images and joints, each with its error.
OpenCV finds the board and initialises the lens; `hand_eye` solves the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from latentplan.errors import ConfigError, RobotError, check_range, unknown
from latentplan.real_robot.perception.calibration_target import Corners, library
from latentplan.real_robot.perception.hand_eye import LENS, Fit, X, closed_form
from latentplan.robots.camera import MOUNTS, CalibratedCamera
from latentplan.robots.chain import flange
from latentplan.robots.description import Arm
from latentplan.types import Array


@dataclass(frozen=True)
class Config:
    """The least data for a calibration, and the assumed errors."""

    images: int = 6  # images that show the board, at least
    corners: int = 8  # corners of the board in such an image, at least
    turn: float = 5.0  # degrees, root mean square, of the hand's turns about two axes, at least
    lens: int = 4  # numbers of distortion to find: 0, 4 (k1, k2, p1, p2) or 5 (and k3)
    focal: float = 0.02  # largest std of the focal length, as a share of it
    pixel_std: float = 0.2  # pixels, error of each corner
    joint_std: float = 0.05  # degrees, error of a joint; its ratio to pixel_std sets the weights
    robust: float = 3.0  # multiple of the arm's error at which an image has half its weight

    def __post_init__(self) -> None:
        """Raise ConfigError if a field is out of its range."""
        check_range("calibration.images", self.images, 4, 1000)
        check_range("calibration.corners", self.corners, 4, 1000)
        check_range("calibration.turn", self.turn, 0.1, 90)
        check_range("calibration.focal", self.focal, 1e-6, 1)
        check_range("calibration.pixel_std", self.pixel_std, 1e-3, 100)
        check_range("calibration.joint_std", self.joint_std, 0, 10)
        check_range("calibration.robust", self.robust, 0.1, 1000)
        if self.lens not in (0, 4, 5):
            raise ConfigError(f"calibration.lens: found {self.lens}, allowed are 0, 4 and 5")


class Result(NamedTuple):
    """A calibrated camera, and how well everything fits."""

    camera: CalibratedCamera
    board: Array  # (4, 4) board -> its mount: the flange, or the world
    figures: dict[str, float]  # by name, which ends with the unit
    errors: Array  # (P,) px, root mean square of each image; NaN if it was not used


def calibrate(
    seen: Sequence[Corners | None],
    q: Array,
    *,
    arm: Arm,
    camera: CalibratedCamera,
    mount: str,
    lens_known: bool = False,
    config: Config | None = None,
) -> Result:
    """Return the camera, calibrated from P images taken with the arm's joints at q (P, J) rad.

    `camera` gives name and size of the images, and the lens if `lens_known`. The arm carries
    the board for a camera on the table; the board is fixed for one on the flange. Raises RobotError
    if the images are too few, or do not determine the camera.
    """
    c = config or Config()
    if mount not in MOUNTS:
        raise ConfigError(f"calibration.mount: {unknown('mount', mount, MOUNTS)}")
    shown = {i: each for i, each in enumerate(seen) if each and _is_enough(each, c.corners)}
    enough, corners = list(shown), list(shown.values())
    if len(enough) < c.images:
        raise RobotError(
            f"calibration.images: {len(enough)} of {len(seen)} show {c.corners} corners of the "
            f"board, not all in one row, needed are {c.images}; take more, or check that the board "
            "is the given one"
        )
    q = np.asarray(q, np.float64)[enough]
    between = _between(arm, q, mount)
    _check_turns(between, c.turn)
    if not lens_known:
        camera = _lens(corners, camera, c.lens)
    boards = np.stack([_pose(each, camera) for each in corners])
    moved = np.radians(c.joint_std) * np.eye(q.shape[1])
    off = np.stack([_between(arm, q + each, mount) for each in moved])
    fit = Fit(corners, between, off=off, pixel=c.pixel_std, lens=_numbers(camera))
    fit.solve(*closed_form(boards, between), lens_free=not lens_known, robust=c.robust)
    std = fit.spread()
    if not lens_known:
        share = std[LENS][0] / fit.lens[0]
        if not share < c.focal:
            raise RobotError(
                f"calibration.lens: the focal length is known to {100 * share:.1f} %, needed are "
                f"{100 * c.focal:g} %; tilt the board by 20 to 40 degrees, or give a known lens"
            )
        camera = _with(camera, fit.lens)
        boards = np.stack([_pose(each, camera) for each in corners])
    errors = np.full(len(seen), np.nan)
    errors[enough] = fit.gaps()
    figures = _figures(fit, corners, boards, std)
    return Result(camera.mounted(mount, fit.x), fit.y, figures, errors)


def _is_enough(found: Corners, least: int) -> bool:
    """Return whether an image shows so many corners, and not in one line, which fixes no pose."""
    if len(found.pixels) < least:
        return False
    metres, pixels = (
        np.linalg.svd(each - each.mean(0), compute_uv=False)[1]
        for each in (found.points, found.pixels)
    )  # across the line that fits best
    return bool(metres > 1e-4 and pixels > 1.0)


def _between(arm: Arm, q: Array, mount: str) -> Array:
    """Return M (P, 4, 4): mount of the board -> mount of the camera."""
    poses = flange(arm, q)
    return poses if mount == "table" else np.asarray(np.linalg.inv(poses))


def _check_turns(between: Array, needed: float) -> None:
    """Raise RobotError unless the arm turned about two axes, by `needed` degrees or more each."""
    from scipy.spatial.transform import Rotation

    turns = Rotation.from_matrix(between[:, :3, :3])
    vectors = np.degrees((turns * turns.mean().inv()).as_rotvec())  # (P, 3) from the mean
    _, second, first = np.linalg.svd(vectors / np.sqrt(len(vectors)))[1][::-1]
    if second < needed:
        raise RobotError(
            f"calibration.turn: the hand turns by {first:.1f} degrees about one axis and by "
            f"{second:.1f} about any other, needed are {needed:g} about two; tilt the wrist both "
            "ways"
        )


def _lens(corners: Sequence[Corners], camera: CalibratedCamera, count: int) -> CalibratedCamera:
    """Return the camera with a lens from the images alone (Zhang 2000, by OpenCV)."""
    cv2 = library()
    flags = {
        0: cv2.CALIB_FIX_K1 | cv2.CALIB_FIX_K2 | cv2.CALIB_FIX_K3 | cv2.CALIB_ZERO_TANGENT_DIST,
        4: cv2.CALIB_FIX_K3,
        5: 0,
    }[count]
    points = [each.points.astype(np.float32) for each in corners]
    pixels = [each.pixels.astype(np.float32) for each in corners]
    size = (camera.width, camera.height)
    try:
        _, k, lens, _, _ = cv2.calibrateCamera(points, pixels, size, None, None, flags=flags)
    except cv2.error as e:
        raise _undetermined(e.err) from None
    numbers = [k[0, 0], k[1, 1], k[0, 2], k[1, 2], *lens.ravel()[:count]]
    return _with(camera, np.array(numbers))


def _with(camera: CalibratedCamera, lens: Array) -> CalibratedCamera:
    """Return the camera with a lens (4 or more,); RobotError if it is invalid."""
    fx, fy, cx, cy, *distortion = lens.tolist()
    try:
        return replace(camera, fx=fx, fy=fy, cx=cx, cy=cy, distortion=tuple(distortion))
    except ConfigError as e:
        raise _undetermined(str(e)) from None


def _undetermined(reason: str) -> RobotError:
    return RobotError(
        f"calibration.lens: the images do not determine it ({reason}); take more, tilted by 20 to "
        "40 degrees and up to the image's edges, or give a known lens"
    )


def _numbers(camera: CalibratedCamera) -> Array:
    return np.array([camera.fx, camera.fy, camera.cx, camera.cy, *camera.distortion])


def _pose(corners: Corners, camera: CalibratedCamera) -> Array:
    """Return (4, 4) board -> camera from one image alone."""
    cv2 = library()
    flat = np.ascontiguousarray(camera.rays(corners.pixels)[:, :2])
    eye, points = np.eye(3), np.ascontiguousarray(corners.points)
    # Of the two poses in which a flat board looks nearly the same, the one that fits better.
    try:
        _, turn, shift = cv2.solvePnP(points, flat, eye, None, flags=cv2.SOLVEPNP_IPPE)
        turn, shift = cv2.solvePnPRefineLM(points, flat, eye, None, turn, shift)
    except cv2.error as e:
        raise _undetermined(e.err) from None
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], shift.ravel()
    return pose


def _figures(fit: Fit, corners: Sequence[Corners], boards: Array, std: Array) -> dict[str, float]:
    """Return the residuals: pixels, and the board's pose by images against its pose by joints."""
    from scipy.spatial.transform import Rotation

    middle = np.append(np.mean([each.points.mean(0) for each in corners], 0), 1)
    by_joints = fit.boards()
    gap = ((by_joints - boards) @ middle)[:, :3]
    turn = Rotation.from_matrix(by_joints[:, :3, :3].transpose(0, 2, 1) @ boards[:, :3, :3])
    std_turn, std_shift = std[X][:3], std[X][3:]
    return {
        "images": float(len(corners)),
        "reprojection_px": _rms(fit.gaps()),
        "hand_eye_mm": 1e3 * _rms(np.linalg.norm(gap, axis=1)),
        "hand_eye_deg": float(np.degrees(_rms(turn.magnitude()))),
        "position_std_mm": 1e3 * float(np.linalg.norm(std_shift)),
        "rotation_std_deg": float(np.degrees(np.linalg.norm(std_turn))),
    }


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))
