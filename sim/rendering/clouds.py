"""Point clouds from depth images: cropping, downsampling, normals, planes; by Open3D.

Points are (P, 3) in metres in the world frame, rows in no special order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from latentplan.errors import ConfigError, MissingDependency, ShapeError, check_range
from latentplan.shapes import check
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array, ArraySpec

Corner = tuple[float, float, float]


@cache
def library() -> Any:
    """Return the module open3d; MissingDependency, with the install command, if it is missing."""
    try:
        import open3d
    except ImportError as e:
        if getattr(e, "name", None) == "open3d":
            raise MissingDependency(
                'point clouds need open3d: pip install "latentplan[clouds]"'
            ) from None
        raise MissingDependency(
            f"point clouds: open3d does not load ({e}); type: apt-get install -y libusb-1.0-0 "
            "libgl1 libgomp1 libx11-6"
        ) from None
    return open3d


@dataclass(frozen=True)
class Cloud:
    """The settings of a point cloud; lengths in metres."""

    points: int = 512  # rows of the observation
    low: Corner = (-0.3, -0.3, 0.003)  # lower corner of the crop box: from 3 mm above the table
    high: Corner = (0.3, 0.3, 0.3)  # m, the upper corner of that box
    voxel: float = 0.0  # side of the cubes in which points are averaged first; 0: no averaging
    normals: bool = False  # three more numbers a point: the unit normal, towards a camera

    def __post_init__(self) -> None:
        """Raise ConfigError if a field is out of its range."""
        check_range("cloud.points", self.points, 1, 100_000)
        check_range("cloud.voxel", self.voxel, 0, 1)
        if not (np.less(self.low, self.high)).all():
            raise ConfigError(
                f"cloud.low: {list(self.low)} is not below cloud.high, {list(self.high)}, "
                "along each axis"
            )

    def spec(self) -> ArraySpec:
        """Return the spec of the observation `cloud`."""
        what = "points of all cameras, x, y, z in m, farthest first; zeros where none is seen"
        if self.normals:
            what += "; then the unit normal"
        return ArraySpec((self.points, 6 if self.normals else 3), "float32", what)


def fuse(depths: Sequence[Array], cameras: Sequence[Camera], config: Cloud) -> Array:
    """Return one cloud (points, 3 or 6) float32 of several cameras' depth, in a fixed shape.

    Depth images (h, w) become points, which are cropped to the box, averaged in voxels, and
    downsampled by farthest-point sampling; if they are too few, they are repeated in order.
    """
    seen, normal = [], []
    for depth, camera in zip(depths, cameras, strict=True):
        points = camera.unproject(depth).reshape(-1, 3)
        points = points[inside(points, config.low, high=config.high)]
        seen.append(points)
        if config.normals:
            normal.append(normals(points, viewpoint=np.array(camera.position)))
    columns = [np.concatenate(seen)]
    if config.normals:
        columns.append(np.concatenate(normal))
    rows = np.concatenate(columns, axis=1)
    if config.voxel:
        rows = voxels(rows, config.voxel)
    rows = farthest(rows, config.points)
    if len(rows) == 0:
        return np.zeros(config.spec().shape, np.float32)
    fixed: Array = rows[np.arange(config.points) % len(rows)].astype(np.float32)
    return fixed


def inside(points: Array, low: Sequence[float], *, high: Sequence[float]) -> Array:
    """Return which points (P,) bool lie in the box from `low` (3,) to `high` (3,)."""
    return np.asarray(((points >= low) & (points <= high)).all(-1))


def voxels(rows: Array, side: float) -> Array:
    """Return one row for each cube of `side` m that holds points: the mean of its rows.

    Rows are (P, 3), or (P, 6) with unit normals, which stay unit normals.
    """
    if len(rows) == 0:
        return rows
    cloud = _cloud(rows).voxel_down_sample(side)
    columns = [np.asarray(cloud.points)]
    if rows.shape[1] == 6:
        mean = np.asarray(cloud.normals)
        columns.append(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12))
    averaged = np.concatenate(columns, axis=1)
    order = np.lexsort(np.round(averaged[:, :3] / side, 3).T)  # Open3D returns a hash table's order
    return averaged[order]


def farthest(rows: Array, count: int) -> Array:
    """Return `count` rows, or all if there are fewer, by farthest-point sampling from the first.

    Each has the largest distance to those before (Eldar et al. 1997); the result is deterministic.
    """
    if len(rows) <= count:
        return rows
    cloud = _cloud(rows).farthest_point_down_sample(count)
    columns = [np.asarray(cloud.points)]
    if rows.shape[1] == 6:
        columns.append(np.asarray(cloud.normals))
    return np.concatenate(columns, axis=1)


def normals(points: Array, *, viewpoint: Array, neighbours: int = 12) -> Array:
    """Return unit normals (P, 3) of the surface through each point's neighbours.

    They point towards `viewpoint` (3,), the camera's position. Fewer than three points span no
    surface: their normals point straight at the camera.
    """
    check("normals.points", points, "P xyz", xyz=3)
    if len(points) < 3:
        away = viewpoint - points
        straight: Array = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)
        return straight
    o3d = library()
    cloud = _cloud(points)
    cloud.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(neighbours))
    cloud.orient_normals_towards_camera_location(viewpoint)
    return np.asarray(cloud.normals)


def plane(
    points: Array, *, tolerance: float = 0.005, seed: int = 0, candidates: int = 200
) -> Array:
    """Return the candidate plane (a, b, c, d) with most points within `tolerance` m.

    a x + b y + c z + d = 0, (a, b, c) of length 1, its largest number positive: a table's normal
    points up. RANSAC (Fischler and Bolles 1981) over `candidates` triples of points, then least
    squares over the points nearby. The same seed gives the same plane, unlike Open3D's
    segment_plane. Raises ShapeError if no three points span one.
    """
    check("plane.points", points, "P xyz", xyz=3)
    rows = np.random.default_rng(seed).integers(max(len(points), 1), size=(candidates, 3))
    some = points[rows] if len(points) else np.zeros((1, 3, 3))
    normal = np.cross(some[:, 1] - some[:, 0], some[:, 2] - some[:, 0])
    length = np.linalg.norm(normal, axis=1)
    real = length > 1e-9  # the same point twice, or three on a line, are no plane
    if not real.any():
        raise ShapeError(f"plane.points: {len(points)} points span no plane; need three at least")
    normal = normal[real] / length[real, None]
    offset = (normal * some[real, 0]).sum(1)
    # One after the other: all at once would take gigabytes for a real camera's image.
    tests = (np.abs(points @ n - o) < tolerance for n, o in zip(normal, offset, strict=True))
    near = points[max(tests, key=np.count_nonzero)]
    middle = near.mean(0)
    thinnest = np.linalg.eigh((near - middle).T @ (near - middle))[1][:, 0]
    thinnest = thinnest * np.sign(thinnest[np.abs(thinnest).argmax()])
    return np.append(thinnest, -thinnest @ middle)


def above(points: Array, plane: Array, *, gap: float) -> Array:
    """Return which points (P,) bool lie more than `gap` m above a plane (4,).

    With the plane of a real camera's cloud this corresponds to the simulation's `segmentation`:
    `above(points, plane(points), gap=0.005).reshape(h, w)`.
    """
    return np.asarray(points @ plane[:3] + plane[3] > gap)


def _cloud(rows: Array) -> Any:
    """Return Open3D's cloud of rows (P, 3), or (P, 6) with normals."""
    o3d = library()
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(rows[:, :3]))
    if rows.shape[1] == 6:
        cloud.normals = o3d.utility.Vector3dVector(rows[:, 3:])
    return cloud
