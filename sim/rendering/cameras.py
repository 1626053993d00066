"""Cameras: poses, and projection from points to pixels and back.

All are pinhole cameras without distortion. World: metres, z up, the table at z = 0. Camera frame as
in OpenCV: x right, y down, z forward. Pixel (u, v): u to the right, v down, (0, 0) is the middle of
the first pixel, so that the image's edges are at -0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from latentplan.errors import ConfigError, check_range, unknown
from latentplan.shapes import check
from latentplan.types import Array

Triple = tuple[float, float, float]

HEIGHT = 1.0  # m, height of the camera `top` above the table
OBLIQUE = 40.0  # degrees, field of view of the other built-in cameras


@dataclass(frozen=True)
class Camera:
    """A camera at `position` that points at `target`, with `up` upwards in its image."""

    name: str
    position: Triple  # m
    target: Triple = (0.0, 0.0, 0.0)  # m
    up: Triple = (0.0, 0.0, 1.0)  # not along the line of sight
    fovy: float = 45.0  # degrees from the image's lower to its upper edge
    width: int = 64  # pixels
    height: int = 64  # pixels

    def __post_init__(self) -> None:
        """Raise ConfigError if there is no such camera."""
        where = f"camera {self.name}"
        check_range(f"{where}.fovy", self.fovy, 1, 170)
        check_range(f"{where}.width", self.width, 16, 512)
        check_range(f"{where}.height", self.height, 16, 512)
        if not np.isfinite(_axes(self.position, self.target, self.up)).all():
            raise ConfigError(
                f"{where}: position {self.position}, target {self.target}, up {self.up}; "
                "position and target must differ, and up must not lie along the line between"
            )

    def axes(self) -> Array:
        """Return the rotation (3, 3) world -> camera: its rows are right, down, forward."""
        return _axes(self.position, self.target, self.up).copy()

    def intrinsics(self) -> Array:
        """Return K (3, 3): pixels (u, v, 1) ~ K (x, y, z) of the camera frame."""
        focal = self.height / 2 / np.tan(np.radians(self.fovy) / 2)
        middle = (self.width - 1) / 2, (self.height - 1) / 2
        return np.array([[focal, 0, middle[0]], [0, focal, middle[1]], [0, 0, 1.0]])

    def extrinsics(self) -> Array:
        """Return (4, 4) world -> camera, homogeneous; its inverse is the camera's pose."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.axes()
        matrix[:3, 3] = -matrix[:3, :3] @ self.position
        return matrix

    def project(self, points: Array) -> tuple[Array, Array]:
        """Return the pixels (..., 2) of points (..., 3) in the world, and their depths (...).

        Depth is metres along the optical axis; if it is not positive, the point is behind the
        camera and its pixel is meaningless.
        """
        seen = (points - np.asarray(self.position)) @ self.axes().T
        depth = seen[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = (seen @ self.intrinsics().T)[..., :2] / depth[..., None]
        return pixels, depth

    def unproject(self, depth: Array) -> Array:
        """Return the points (h, w, 3) in the world, m, of a depth image (h, w).

        Raises ShapeError if the image has another size than the camera's.
        """
        return unproject(depth, intrinsics=self.intrinsics(), extrinsics=self.extrinsics())

    def moved(self, shift: Sequence[float], turn: Sequence[float], *, zoom: float = 1.0) -> Camera:
        """Return this camera shifted by (3,) m, then turned by (3,) rad about its own axes.

        The shift is along the world's axes, the turn a rotation vector in the camera frame, and
        `zoom` a factor on the width of the view.
        """
        from scipy.spatial.transform import Rotation

        axes = Rotation.from_rotvec(turn).as_matrix().T @ self.axes()
        position = np.add(self.position, shift)
        distance = np.linalg.norm(np.subtract(self.target, self.position))
        return replace(
            self,
            position=_triple(position),
            target=_triple(position + distance * axes[2]),
            up=_triple(-axes[1]),
            fovy=float(np.degrees(2 * np.arctan(zoom * np.tan(np.radians(self.fovy) / 2)))),
        )


def unproject(depth: Array, *, intrinsics: Array, extrinsics: Array) -> Array:
    """Return the points (h, w, 3) in the world, m, of a camera's depth image (h, w).

    `intrinsics` (3, 3) and `extrinsics` (4, 4) world -> camera may be those of a real camera, as
    OpenCV's calibration returns them. Raises ShapeError for other shapes.
    """
    check("unproject.depth", depth, "h w")
    check("unproject.intrinsics", intrinsics, "row column", row=3, column=3)
    check("unproject.extrinsics", extrinsics, "row column", row=4, column=4)
    v, u = np.indices(depth.shape)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(intrinsics).T
    here = rays * depth[..., None] - extrinsics[:3, 3]
    points: Array = here @ extrinsics[:3, :3]
    return points


@dataclass(frozen=True)
class Pose:
    """The pose and the field of view of the camera `custom`."""

    position: Triple = (0.5, 0.0, 0.5)  # m
    target: Triple = (0.0, 0.0, 0.0)  # m, the point in the image's middle
    up: Triple = (0.0, 0.0, 1.0)  # upwards in its image
    fovy: float = 45.0  # degrees from the image's lower to its upper edge


class CameraConfig(Protocol):
    """The fields of an env's config that place its cameras."""

    @property
    def view(self) -> float:
        """Half the side of the table in the camera `top`'s view, m."""

    @property
    def radius(self) -> float:
        """Height of the object's middle over the table, at which `view` is measured, m."""

    @property
    def image(self) -> int:
        """The side of an image, pixels."""

    @property
    def custom(self) -> Pose:
        """The pose and the field of view of the camera `custom`."""


NAMES = ("top", "front", "side", "angled", "custom")


def of(config: CameraConfig) -> dict[str, Camera]:
    """Return all cameras of an env by name: `top`, and others that view the same part of the table.

    `top` points straight down, with y upwards in its image; `front` is at -y, `side` at +x, both 30
    degrees above the table; `angled` is at a corner, 45 degrees above it; the config places
    `custom`.
    """
    size, lens = config.image, (config.view, config.radius, config.custom)
    return {name: replace(camera, width=size, height=size) for name, camera in _built_in(*lens)}


@lru_cache(maxsize=64)
def _built_in(view: float, radius: float, custom: Pose) -> tuple[tuple[str, Camera], ...]:
    top = np.degrees(2 * np.arctan2(view, HEIGHT - radius))
    level, steep = np.radians(30), np.radians(45)
    places = {
        "front": np.array([0, -np.cos(level), np.sin(level)]),
        "side": np.array([np.cos(level), 0, np.sin(level)]),
        "angled": np.array([np.cos(steep) / 2**0.5, -np.cos(steep) / 2**0.5, np.sin(steep)]),
    }
    found = {
        "top": Camera("top", (0.0, 0.0, HEIGHT), up=(0.0, 1.0, 0.0), fovy=float(top)),
        **{
            name: Camera(name, _triple(_away(place, view) * place), fovy=OBLIQUE)
            for name, place in places.items()
        },
        "custom": Camera(
            "custom",
            custom.position,
            target=custom.target,
            up=custom.up,
            fovy=custom.fovy,
        ),
    }
    return tuple(found.items())


def _away(place: Array, view: float) -> float:
    """Return the least distance from the origin at which the square of +-view is in the image."""
    corners = view * np.array([(x, y, 0) for x in (-1, 1) for y in (-1, 1)])
    right, down, nearer = (corners @ _axes(_triple(place), (0, 0, 0), (0, 0, 1)).T).T
    sideways = np.maximum(np.abs(right), np.abs(down))
    return float((sideways / np.tan(np.radians(OBLIQUE / 2)) - nearer).max())


@lru_cache(maxsize=64)
def _axes(position: Triple, target: Triple, up: Triple) -> Array:
    """Return the rotation (3, 3) world -> camera, NaN if there is none."""
    forward = np.subtract(target, position)
    right = np.cross(forward, up)
    if not np.linalg.norm(right) > 1e-6:  # NaN fails too
        return np.full((3, 3), np.nan)
    forward, right = forward / np.linalg.norm(forward), right / np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


def check_names(where: str, names: Sequence[str]) -> None:
    """Raise ConfigError unless `names` are different cameras, at least one."""
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"{where}: {unknown('camera', name, NAMES)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{where}: found {list(names)}; name each camera once, at least one")


def _triple(values: Array) -> Triple:
    x, y, z = (float(value) for value in values)
    return x, y, z
