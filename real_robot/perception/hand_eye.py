"""Least squares of hand-eye calibration: solves X C_i = M_i Y for X, Y and optionally the lens.

X is the pose camera -> its mount, Y the pose board -> its mount, C_i board -> camera in image i,
and M_i, which follows from the joints, mount of the board -> mount of the camera.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentplan.errors import RobotError
from latentplan.real_robot.perception.calibration_target import Corners
from latentplan.robots.camera import distorted
from latentplan.types import Array

X, Y, LENS = slice(0, 6), slice(6, 12), slice(12, None)  # in the unknowns; X, Y: turn and shift
ITERATIONS = 100  # about five are needed; ten if an image is wrong
STEP = 1e-6  # rad, m, pixels, for the derivatives
SETTLED = 1e-4  # largest last step, in stds of an unknown


def closed_form(boards: Array, between: Array) -> tuple[Array, Array]:
    """Return X and Y (4, 4) for C (P, 4, 4) and M (P, 4, 4): turns first, then shifts.

    Turns by the Kronecker product (Shah 2013, "Solving the robot-world/hand-eye calibration problem
    using the Kronecker product", section 3), shifts by linear least squares.
    """
    # R_X R_C = R_M R_Y, with matrices as rows of 9: the null vector of a system linear in R_X, R_Y.
    eye = np.eye(3)
    rows = [
        np.hstack([np.kron(eye, c[:3, :3].T), -np.kron(m[:3, :3], eye)])
        for c, m in zip(boards, between, strict=True)
    ]
    null = np.linalg.svd(np.concatenate(rows))[2][-1].reshape(2, 3, 3)
    x, y = np.eye(4), np.eye(4)
    x[:3, :3], y[:3, :3] = (_nearest_turn(part) for part in null * np.sign(np.linalg.det(null[0])))
    # t_X - R_M t_Y = t_M - R_X t_C
    left = np.concatenate([np.hstack([eye, -m[:3, :3]]) for m in between])
    right = between[:, :3, 3] - boards[:, :3, 3] @ x[:3, :3].T
    shifts = np.linalg.lstsq(left, right.ravel(), rcond=None)[0]
    x[:3, 3], y[:3, 3] = shifts[:3], shifts[3:]
    return x, y


class Fit:
    """A fit of X, Y and a lens that minimises the reprojection error of the corners.

    Each corner has an independent error of the detector, and all corners of one image share the
    error of the arm. The residuals are weighted with the covariance of both; without the second
    part a fit would turn the camera by a degree to explain a millimetre of the arm's error.
    """

    def __init__(
        self, seen: Sequence[Corners], between: Array, *, off: Array, pixel: float, lens: Array
    ) -> None:
        """Take the corners of P images, M (P, 4, 4), and a lens: fx, fy, cx, cy, distortion.

        `off` (J, P, 4, 4) is M with each joint moved by its std; `pixel` is that of a corner.
        """
        counts = [len(corners.pixels) for corners in seen]
        self._image = np.repeat(np.arange(len(seen)), counts)  # (N,) image of each corner
        self._starts = np.cumsum([0, *counts[:-1]])
        self._points = np.concatenate([corners.points for corners in seen])
        self._pixels = np.concatenate([corners.pixels for corners in seen])
        self._between, self._off, self._pixel = between, off, pixel
        self.lens = lens
        self.x, self.y = np.eye(4), np.eye(4)

    def solve(self, x: Array, y: Array, *, lens_free: bool, robust: float) -> None:
        """Find X, Y, and the lens if it is free, starting at X and Y (4, 4).

        The steps are Gauss-Newton's. An image whose residual is `robust` times what the arm's error
        explains has half its weight, and less beyond (Cauchy), because its joints are wrong. Raises
        RobotError if the steps do not converge.
        """
        self.x, self.y = x, y
        unknowns = 12 + (len(self.lens) if lens_free else 0)
        for _ in range(ITERATIONS):
            self._normal, self._gradient = self._equations(unknowns, robust)
            total = self._normal.sum(0)
            std = 1 / np.sqrt(np.maximum(np.diag(total), 1e-12))
            try:
                step = -np.linalg.solve(total * std * std[:, None], self._gradient.sum(0) * std)
            except np.linalg.LinAlgError:
                break
            self.x, self.y, self.lens = self._at(step * std)
            if np.abs(step).max() < SETTLED:
                return
        raise RobotError(
            "calibration: the images and the joints do not fit together; "
            "check the robot, the board's sizes, the mount, and that q is of the same times"
        )

    def gaps(self) -> Array:
        """Return the root mean square (P,) of the corners' distances in each image, pixels."""
        squares = (self._gaps(np.zeros(12), self._between) ** 2).sum(1)
        rms: Array = np.sqrt(np.add.reduceat(squares, self._starts) / np.bincount(self._image))
        return rms

    def spread(self) -> Array:
        """Return the std of each unknown, by the jackknife over images.

        Corners of one image share the arm's error, so only images are independent measurements.
        Each is left out to first order. Infinite if the result depends on one image.
        """
        count, total = len(self._normal), self._normal.sum(0)
        std = 1 / np.sqrt(np.diag(total))
        left = (total - self._normal) * std * std[:, None]
        try:
            changes = np.linalg.solve(left, (self._gradient * std)[..., None])[..., 0] * std
        except np.linalg.LinAlgError:
            return np.full(len(std), np.inf)
        variance = (count - 1) / count * ((changes - changes.mean(0)) ** 2).sum(0)
        return np.asarray(np.sqrt(variance))

    def boards(self) -> Array:
        """Return the fitted pose of the board in each image: (P, 4, 4) board -> camera."""
        poses: Array = np.linalg.inv(self.x) @ self._between @ self.y
        return poses

    def _at(self, unknowns: Array) -> tuple[Array, Array, Array]:
        """Return X, Y and the lens, moved by the unknowns (12,) or, with the lens, more."""
        lens = self.lens + unknowns[LENS] if len(unknowns) > 12 else self.lens
        return self.x @ _motion(unknowns[X]), self.y @ _motion(unknowns[Y]), lens

    def _equations(self, unknowns: int, robust: float) -> tuple[Array, Array]:
        """Return the terms of each image in the normal equations: (P, U, U), (P, U)."""
        now = self._gaps(np.zeros(unknowns), self._between)
        moved = [self._gaps(each, self._between) - now for each in STEP * np.eye(unknowns)]
        errs = [self._gaps(np.zeros(12), each) - now for each in self._off]
        columns = np.stack([now, *(each / STEP for each in moved), *errs], -1) / self._pixel
        normal, gradient = [], []
        for part in np.split(columns, self._starts[1:]):
            rows = part.reshape(-1, part.shape[-1])  # (2n) (1 + U + J)
            # Divided by the root of the covariance 1 + E E', E (2n, J) the joints' effect.
            along, size, _ = np.linalg.svd(rows[:, 1 + unknowns :], full_matrices=False)
            less = 1 - 1 / np.sqrt(1 + size**2)
            white = rows[:, : 1 + unknowns]
            white = white - along @ (less[:, None] * (along.T @ white))
            gap, slopes = white[:, 0], white[:, 1:]
            weight = 1 / (1 + np.mean((along.T @ gap) ** 2) / robust**2)
            normal.append(weight * slopes.T @ slopes)
            gradient.append(weight * slopes.T @ gap)
        return np.stack(normal), np.stack(gradient)

    def _gaps(self, unknowns: Array, between: Array) -> Array:
        """Return the reprojection error (N, 2) of the corners, pixels."""
        x, y, lens = self._at(unknowns)
        poses = (np.linalg.inv(x) @ between @ y)[self._image]
        here = np.einsum("nij,nj->ni", poses[:, :3, :3], self._points) + poses[:, :3, 3]
        flat = here[:, :2] / here[:, 2:]
        radial, tangential = distorted(flat, lens[4:].tolist())
        gaps: Array = (flat * radial + tangential) * lens[:2] + lens[2:4] - self._pixels
        return gaps


def _motion(six: Array) -> Array:
    """Return (4, 4) for a rotation vector, rad, and a shift, m."""
    from scipy.spatial.transform import Rotation

    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(six[:3]).as_matrix()
    pose[:3, 3] = six[3:]
    return pose


def _nearest_turn(matrix: Array) -> Array:
    """Return the rotation (3, 3) nearest to a matrix, up to scale."""
    left, _, right = np.linalg.svd(matrix)
    turn: Array = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
    return turn
