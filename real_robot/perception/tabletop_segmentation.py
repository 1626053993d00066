"""The segmentation of a tabletop in a depth image: plane, objects and masks, by Open3D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from latentplan.errors import ConfigError, RobotError, ShapeError, check_range
from latentplan.real_robot.robot import View
from latentplan.shapes import check
from latentplan.sim.rendering import clouds
from latentplan.types import Array

UP = np.array([0.0, 0.0, 1.0])
THIN = 20_000  # points for the search for a plane, at most


class DepthCamera(View, Protocol):
    """A camera that converts depth to points: `CalibratedCamera`, or the simulation's `Camera`."""

    def unproject(self, depth: Array) -> Array:
        """Return the points (h, w, 3) in the world, m, of a depth image (h, w)."""


@dataclass(frozen=True)
class SegmentedScene:
    """The table and the objects of one depth image."""

    plane: Array  # (4,) a x + b y + c z + d = 0, m, in the world; the normal points up
    points: Array  # (h, w, 3) m, in the world; NaN without depth
    labels: Array  # (h, w) int: 0 no object, then objects 1, 2, ..., the largest first
    cells: tuple[Array, ...]  # by object, (V, 3) m: its visible points, one a voxel

    @property
    def mask(self) -> Array:
        """Return the mask (h, w) bool of all objects."""
        return np.asarray(self.labels > 0)

    def heights(self, points: Array) -> Array:
        """Return the heights (...) of points (..., 3) above the table, m."""
        return np.asarray(points @ self.plane[:3] + self.plane[3])


class TabletopSegmenter:
    """A segmenter of the table and the objects on it, in depth images of a calibrated camera.

    The table is the plane with most points (RANSAC); it must be near z = 0 of the world, its place
    in the arm's description. Objects are clusters of the points above it (DBSCAN, Ester et al.
    1996): two objects that touch are one. A single image shows one side of an object.
    """

    @dataclass(frozen=True)
    class Config:
        """The region and the thresholds of the search; lengths in metres."""

        low: tuple[float, float, float] = (-0.3, -0.3, -0.1)  # corner of the region, in the world
        high: tuple[float, float, float] = (0.3, 0.3, 0.4)  # its opposite corner
        tolerance: float = 0.006  # of a table point from the plane; above the depth's noise
        share: float = 0.2  # of all points that the plane holds, at least
        tilt: float = 10.0  # degrees between the plane's normal and the world's z, at most
        off: float = 0.05  # between the plane and the world's origin, at most
        gap: float = 0.006  # above the plane; a point above it belongs to an object
        voxel: float = 0.004  # side of the cubes in which points are averaged
        join: float = 0.012  # between neighbouring points of one object, at most
        least: int = 12  # voxels of an object, at least; a smaller cluster is noise
        near: float = 0.1  # least depth that is used
        far: float = 3.0  # largest depth that is used

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("TabletopSegmenter.tolerance", self.tolerance, 1e-4, 0.1)
            check_range("TabletopSegmenter.share", self.share, 0.01, 1)
            check_range("TabletopSegmenter.tilt", self.tilt, 0.1, 60)
            check_range("TabletopSegmenter.off", self.off, 1e-3, 2)
            check_range("TabletopSegmenter.gap", self.gap, 1e-4, 0.5)
            check_range("TabletopSegmenter.voxel", self.voxel, 5e-4, 0.1)
            check_range("TabletopSegmenter.join", self.join, self.voxel, 0.5)
            check_range("TabletopSegmenter.least", self.least, 1, 100_000)
            check_range("TabletopSegmenter.near", self.near, 1e-3, 10)
            check_range("TabletopSegmenter.far", self.far, self.near, 100)
            if not np.less(self.low, self.high).all():
                raise ConfigError(
                    f"TabletopSegmenter.low: {list(self.low)} is not below high, "
                    f"{list(self.high)}, along each axis"
                )

    def __init__(self, config: Config | None = None) -> None:
        """Take the settings; MissingDependency without Open3D."""
        self.config = config or self.Config()
        clouds.library()

    def look(
        self, depth: Array, camera: DepthCamera, *, hide: Array | None = None
    ) -> SegmentedScene:
        """Return the scene of a depth image (h, w), m; 0 and NaN are pixels without depth.

        `hide` (h, w) bool are pixels to leave out, such as the arm's own. An empty table is a scene
        without objects. Raises ShapeError if the image does not fit the camera, RobotError if it
        has no table.
        """
        c, name = self.config, camera.name
        check(f"camera {name}: depth", depth, "h w", h=camera.height, w=camera.width)
        depth = np.asarray(depth, np.float64)
        known = (depth > c.near) & (depth < c.far)
        if hide is not None:
            check(f"camera {name}: hide", hide, "h w", h=camera.height, w=camera.width)
            known &= ~hide
        points = camera.unproject(np.where(known, depth, np.nan))
        with np.errstate(invalid="ignore"):
            inside = clouds.inside(points, c.low, high=c.high)
        if inside.sum() < max(c.least, 100):
            raise RobotError(_nothing(name, depth, known, inside, c))
        plane = self._plane(points[inside], name)
        with np.errstate(invalid="ignore"):
            above = inside & clouds.above(points, plane, gap=c.gap)
        labels = np.zeros(depth.shape, np.int64)
        labels[above], cells = self._objects(points[above])
        return SegmentedScene(plane, points, labels, cells)

    def _plane(self, points: Array, name: str) -> Array:
        """Return the table's plane (4,); RobotError if there is none at the expected place."""
        c = self.config
        some = points[:: 1 + len(points) // THIN]
        try:
            plane = clouds.plane(some, tolerance=c.tolerance)
        except ShapeError as e:
            raise RobotError(f"camera {name}: no table in the depth image ({e})") from None
        if plane[:3] @ UP < 0:
            plane = -plane
        near = float(np.mean(np.abs(some @ plane[:3] + plane[3]) < c.tolerance))
        if near < c.share:
            raise RobotError(
                f"camera {name}: no table in the depth image, the best plane has {100 * near:.0f}"
                f" % of the points, needed are {100 * c.share:.0f} %; clear the table, or set "
                "TabletopSegmenter.low and TabletopSegmenter.high around it"
            )
        tilt = float(np.degrees(np.arccos(np.clip(plane[:3] @ UP, -1, 1))))
        if tilt > c.tilt or abs(plane[3]) > c.off:
            raise RobotError(
                f"camera {name}: the plane is tilted by {tilt:.1f} degrees and {-plane[3]:.3f} m "
                f"above the origin, allowed are {c.tilt:g} and {c.off:g}; calibrate the camera, or "
                "correct the arm's position"
            )
        return plane

    def _objects(self, points: Array) -> tuple[Array, tuple[Array, ...]]:
        """Return the object (P,) of each point, 0 for none, and the voxels of each object."""
        c = self.config
        labels = np.zeros(len(points), np.int64)
        if len(points) == 0:
            return labels, ()
        cells, owner, count = np.unique(
            np.floor(points / c.voxel).astype(np.int64),
            axis=0,
            return_inverse=True,
            return_counts=True,
        )
        owner = owner.ravel()
        sums = np.stack([np.bincount(owner, axis, len(cells)) for axis in points.T], 1)
        means = np.asarray(sums / count[:, None], np.float64)
        o3d = clouds.library()
        cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(means))
        found = np.asarray(cloud.cluster_dbscan(c.join, min_points=4))
        sizes = np.bincount(found[found >= 0], minlength=1)
        order = np.argsort(-sizes, kind="stable")
        order = order[sizes[order] >= c.least]
        number = np.zeros(len(sizes) + 1, np.int64)  # the last is DBSCAN's -1: noise
        number[order] = np.arange(1, len(order) + 1)
        return number[found][owner], tuple(means[found == cluster] for cluster in order)


def _nothing(
    name: str, depth: Array, known: Array, inside: Array, c: TabletopSegmenter.Config
) -> str:
    """Return why an image has too few usable points."""
    finite = depth[np.isfinite(depth) & (depth > 0)]
    if len(finite) and np.median(finite) > 50:
        return (
            f"camera {name}: depth is {np.median(finite):.0f} in the middle, need metres; divide "
            "millimetres by 1000"
        )
    return (
        f"camera {name}: {known.sum()} of {depth.size} pixels have a depth of {c.near:g} to "
        f"{c.far:g} m, {inside.sum()} of them in the box {list(c.low)} to {list(c.high)}; turn the "
        "camera to the table, calibrate it, or set TabletopSegmenter.low and TabletopSegmenter.high"
    )
