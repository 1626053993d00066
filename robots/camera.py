"""A calibrated camera: its lens, the size of its images, and its mount; numpy alone.

Frames are OpenCV's: x right, y down, z forward; (0, 0) is the middle of the first pixel, so that
the image's edges are at -0.5. Lengths in metres; the world is that of the arm, its origin the
middle of the table top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from latentplan import config
from latentplan.errors import ConfigError, RobotError, check_range, unknown
from latentplan.shapes import check
from latentplan.types import Array

MOUNTS = ("table", "flange")
# Values without a default:
NEEDED = ("name", "width", "height", "fx", "fy", "cx", "cy", "position", "rotation")
ROUNDS = 30  # iterations to invert a lens; one that has not converged by then never does


@dataclass(frozen=True)
class CalibratedCamera:
    """A camera beside the table, or on the arm's flange ("eye in hand").

    Its lens is a pinhole with the distortion of Brown and Conrady, in OpenCV's order. `position`
    and `rotation` are the pose of the camera frame in the frame of its mount: the world for a
    camera at the table, the flange for one that the arm carries.
    """

    name: str = ""  # key of its image in observations
    width: int = 640  # pixels
    height: int = 480  # pixels
    fx: float = 600.0  # pixels, focal length along x
    fy: float = 600.0  # pixels, along y
    cx: float = 319.5  # pixels, column of the optical axis
    cy: float = 239.5  # pixels, row of the optical axis
    distortion: tuple[float, ...] = ()  # k1, k2, p1, p2 and k3; none: a pinhole
    mount: str = "table"  # table or flange
    position: tuple[float, float, float] = (0.0, 0.0, 1.0)  # m, in the mount's frame
    rotation: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 0.0)  # w, x, y, z; points down

    def __post_init__(self) -> None:
        """Raise ConfigError if there is no such camera."""
        where = f"camera {self.name}"
        check_range(f"{where}.width", self.width, 16, 16384)
        check_range(f"{where}.height", self.height, 16, 16384)
        for name in ("fx", "fy"):
            check_range(f"{where}.{name}", getattr(self, name), 0.1 * self.width, 50 * self.width)
        check_range(f"{where}.cx", self.cx, 0, self.width - 1)
        check_range(f"{where}.cy", self.cy, 0, self.height - 1)
        if self.mount not in MOUNTS:
            raise ConfigError(f"{where}.mount: {unknown('mount', self.mount, MOUNTS)}")
        for axis, value in zip("xyz", self.position, strict=True):
            check_range(f"{where}.position.{axis}", value, -10, 10)
        length = float(np.linalg.norm(self.rotation))
        if not abs(length - 1) < 1e-3:  # NaN fails too
            raise ConfigError(
                f"{where}.rotation: found {list(self.rotation)} of length {length:.3f}, need a "
                "unit quaternion w, x, y, z"
            )
        self._check_lens(where)

    def _check_lens(self, where: str) -> None:
        """Raise ConfigError unless the lens can be inverted in the whole image."""
        if len(self.distortion) not in (0, 4, 5):
            raise ConfigError(
                f"{where}.distortion: found {len(self.distortion)} numbers; need k1, k2, p1, p2 "
                "and k3, or none"
            )
        for value in self.distortion:
            check_range(f"{where}.distortion", value, -100, 100)
        right, bottom = self.width - 1, self.height - 1
        edge = np.array([(u * right / 8, v * bottom / 8) for u in range(9) for v in range(9)])
        with np.errstate(over="ignore", invalid="ignore"):
            again = self._pixels(self.rays(edge))
        if not np.abs(again - edge).max() < 0.01:
            raise ConfigError(
                f"{where}.distortion: {list(self.distortion)} folds the image at its edges, so "
                "that no pixel there has a ray; calibrate with more images near the edges"
            )

    def intrinsics(self) -> Array:
        """Return K (3, 3): pixels (u, v, 1) ~ K (x, y, z) of the camera frame, undistorted."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    def pose(self) -> Array:
        """Return (4, 4) camera -> mount, homogeneous."""
        from scipy.spatial.transform import Rotation

        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_quat(self.rotation, scalar_first=True).as_matrix()
        matrix[:3, 3] = self.position
        return matrix

    def extrinsics(self) -> Array:
        """Return (4, 4) world -> camera; RobotError for a camera on the flange: see `at`."""
        if self.mount == "flange":
            raise RobotError(
                f"camera {self.name}: is on the flange, so its pose depends on the joints; "
                "use camera.at(flange pose)"
            )
        return np.linalg.inv(self.pose())

    def at(self, flange: Array) -> CalibratedCamera:
        """Return this camera as one at the table, posed as with the flange at (4, 4) in the world.

        `chain.flange` returns that pose at joint positions. A camera at the table stays the same.
        """
        check("CalibratedCamera.flange", flange, "row column", row=4, column=4)
        return self if self.mount == "table" else self.mounted("table", flange @ self.pose())

    def mounted(self, mount: str, pose: Array) -> CalibratedCamera:
        """Return this camera with another pose (4, 4) camera -> mount."""
        from scipy.spatial.transform import Rotation

        quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat(canonical=True, scalar_first=True)
        x, y, z = pose[:3, 3].tolist()
        w, i, j, k = quaternion.tolist()
        return replace(self, mount=mount, position=(x, y, z), rotation=(w, i, j, k))

    def rays(self, pixels: Array) -> Array:
        """Return the rays (..., 3) of pixels (..., 2), in the camera frame with z = 1."""
        seen = (np.asarray(pixels, np.float64) - (self.cx, self.cy)) / (self.fx, self.fy)
        flat = seen.copy()
        if any(self.distortion):
            for _ in range(ROUNDS):  # a fixed point, as OpenCV's undistortPoints
                radial, tangential = distorted(flat, self.distortion)
                before, flat = flat, (seen - tangential) / radial
                if np.abs(flat - before).max(initial=0) < 1e-10:
                    break
        return np.concatenate([flat, np.ones_like(flat[..., :1])], -1)

    def project(self, points: Array) -> tuple[Array, Array]:
        """Return the pixels (..., 2) of points (..., 3) in the world, and their depths (...).

        Depth is metres along the optical axis; if it is not positive, the point is behind the
        camera and its pixel is meaningless.
        """
        matrix = self.extrinsics()
        seen = np.asarray(points) @ matrix[:3, :3].T + matrix[:3, 3]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return self._pixels(seen / seen[..., 2:]), seen[..., 2]

    def unproject(self, depth: Array) -> Array:
        """Return the points (h, w, 3) in the world, m, of a depth image (h, w).

        A pixel without depth (0 or NaN) gives NaN. Raises ShapeError if the image has another size.
        """
        check("CalibratedCamera.depth", depth, "h w", h=self.height, w=self.width)
        v, u = np.indices(depth.shape)
        metres = np.where(depth > 0, depth, np.nan)
        matrix = self.extrinsics()
        here = self.rays(np.stack([u, v], -1)) * metres[..., None] - matrix[:3, 3]
        points: Array = here @ matrix[:3, :3]
        return points

    def on_plane(self, pixels: Array, plane: Array) -> Array:
        """Return the intersections (..., 3) of the rays of pixels (..., 2) with a plane (4,), m.

        The plane is a x + b y + c z + d = 0 in the world, the table (0, 0, 1, 0). A ray that misses
        it gives NaN.
        """
        check("CalibratedCamera.plane", plane, "n", n=4)
        pose = np.linalg.inv(self.extrinsics())
        rays = self.rays(pixels) @ pose[:3, :3].T
        eye, towards = pose[:3, 3], rays @ plane[:3]
        with np.errstate(divide="ignore", invalid="ignore"):
            way = -(eye @ plane[:3] + plane[3]) / towards
        points: Array = eye + np.where(way > 0, way, np.nan)[..., None] * rays
        return points

    def _pixels(self, rays: Array) -> Array:
        """Return the pixels (..., 2) of rays (..., 3) with z = 1."""
        flat = rays[..., :2]
        if any(self.distortion):
            radial, tangential = distorted(flat, self.distortion)
            flat = flat * radial + tangential
        pixels: Array = flat * (self.fx, self.fy) + (self.cx, self.cy)
        return pixels


def distorted(flat: Array, distortion: Sequence[float]) -> tuple[Array, Array]:
    """Return the distortion of x, y (..., 2) at z = 1: a factor (..., 1) and a shift (..., 2)."""
    k1, k2, p1, p2, k3 = (*distortion, *(0.0,) * 5)[:5]
    x, y = flat[..., 0], flat[..., 1]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    shift = [2 * p1 * x * y + p2 * (r2 + 2 * x * x), p1 * (r2 + 2 * y * y) + 2 * p2 * x * y]
    return radial[..., None], np.stack(shift, -1)


def from_row(row: Mapping[str, Any]) -> CalibratedCamera:
    """Return the camera of a row of values, of a robot's file or one of `latentplan calibrate`.

    The row's `calibration`, for people, is ignored. Raises ConfigError if a value is missing or
    wrong.
    """
    missing = [key for key in NEEDED if key not in row]
    if missing:
        name = row.get("name", "without a name")
        raise ConfigError(f"camera {name}: {', '.join(missing)} missing; see latentplan calibrate")
    values = {key: value for key, value in row.items() if key != "calibration"}
    return config.from_values(CalibratedCamera, values)


def load(file: str) -> CalibratedCamera:
    """Return the camera that `latentplan calibrate` wrote to a YAML file; else ConfigError."""
    try:
        return from_row(config.read_yaml(file))
    except ConfigError as e:
        raise e if str(e).startswith(str(file)) else ConfigError(f"{file}: {e}") from None
