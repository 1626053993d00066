"""Grasps of a parallel gripper for objects on a table: across an object, or at its edge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from latentplan.errors import RobotError, check_range
from latentplan.real_robot.perception.tabletop_segmentation import SegmentedScene
from latentplan.robots.description import Gripper
from latentplan.robots.kinematics import Unreachable
from latentplan.robots.mjcf import FINGER
from latentplan.robots.pick_and_place import Motion, PickAndPlace
from latentplan.types import Array

COLUMN = 0.004  # m, side of the vertical columns that an object is divided into


@dataclass(frozen=True)
class Grasp:
    """A pose of the gripper, by the point between the finger tips, and the opening width."""

    point: Array  # (3,) m in the world
    normal: Array  # (3,) unit: the gripper approaches against it
    yaw: float  # rad about the world's z, direction of the gripper's x; the fingers close across it
    width: float  # m between the fingers on the object; at an edge, m that they gather
    object: int  # number of the object in the scene's labels
    score: float  # the higher the better, 1 at most
    edge: bool = False  # a pinch at the edge of a flat object that is wider than the gripper


@dataclass(frozen=True)
class Config:
    """The search for grasps; lengths in metres."""

    clearance: float = 0.004  # between a finger and the object, on each side, before they close
    depth: float = 0.02  # of the finger tips below the object's top
    floor: float = 0.002  # between the finger tips and the table at least
    places: int = 24  # candidate places on each object
    angles: int = 16  # angles of the gripper at each place, over half a turn
    slope: float = 0.6  # of the sides under the fingers, at most; friction holds up to it
    flat: float = 0.03  # largest height of an object that is grasped at its edge
    inset: float = 0.008  # of the grasp from the edge
    pinch: float = 0.03  # length that the fingers gather at an edge
    apart: float = 0.02  # between two grasps of one object at least

    def __post_init__(self) -> None:
        """Raise ConfigError if a field is out of its range."""
        for name in ("clearance", "depth", "floor", "slope", "flat", "inset", "pinch", "apart"):
            check_range(f"grasps.{name}", getattr(self, name), 0, 1)
        check_range("grasps.places", self.places, 1, 10_000)
        check_range("grasps.angles", self.angles, 2, 360)


def find(scene: SegmentedScene, gripper: Gripper, config: Config | None = None) -> list[Grasp]:
    """Return the grasps of all objects, the best first, each at its own place.

    In a grasp across an object the fingers are on both sides, clear of everything else in the
    scene; narrow grasps near the object's middle score best. A flat object that is too wide for
    that is grasped at its edge, with a preference for corners. Raises RobotError if there is
    nothing on the table, or nothing that the gripper can grasp.
    """
    c = config or Config()
    if not scene.cells:
        raise RobotError(
            "table: nothing on it; put something in the camera's view, or lower "
            "TabletopSegmenter.gap (points below it count as the table)"
        )
    across = _frame(scene.plane[:3])
    flat = [_flattened(scene, cells, across) for cells in scene.cells]  # (V, 3): u, v, height
    everything = np.concatenate(flat)
    found: list[Grasp] = []
    for number, cells in enumerate(flat, start=1):
        candidates = [*_across(cells, everything, gripper, c)]
        wide = not candidates
        if wide and np.quantile(cells[:, 2], 0.95) < c.flat:
            candidates = [*_edges(cells, c)]
        kept: list[Array] = []
        for score, place, angle, width in sorted(candidates, key=lambda each: -each[0]):
            if kept and np.linalg.norm(np.stack(kept) - place, axis=1).min() < c.apart:
                continue
            kept.append(place)
            close = np.cos(angle) * across[0] + np.sin(angle) * across[1]
            ahead = np.cross(close, scene.plane[:3])  # the gripper's x, with z into the table
            found.append(
                Grasp(
                    point=_point(scene, cells, place, across, gripper, c),
                    normal=scene.plane[:3],
                    yaw=float(np.arctan2(ahead[1], ahead[0])),
                    width=width,
                    object=number,
                    score=score,
                    edge=wide,
                )
            )
    if not found:
        raise RobotError(
            f"table: none of {len(flat)} objects has a place narrower than {gripper.width:g} m "
            "with room for the fingers beside it; move them apart, or use a wider gripper"
        )
    return sorted(found, key=lambda each: -each.score)


def carry(
    planner: PickAndPlace,
    grasps: Sequence[Grasp],
    place: Array,
    *,
    lift: float = 0.05,
    start: Array | None = None,
    squeeze: float = 0.01,
) -> tuple[Grasp, Motion]:
    """Return the first reachable grasp, and the motion that puts its object at `place` (2,), m.

    The object is released at the height above the table at which it was grasped, and carried
    `lift` m higher. The fingers close to `squeeze` m less than its width, but the gripper's force
    stops them before. `start` (J,), rad, is the arm's present position, by default home. Raises
    Unreachable, with the reason of the best grasp, if the arm can reach none.
    """
    refused: Unreachable | None = None
    for grasp in grasps:
        # On a tilted plane, another place has another height.
        way = np.asarray(place, np.float64)[:2] - grasp.point[:2]
        end = np.append(place, grasp.point[2] - way @ grasp.normal[:2] / grasp.normal[2])
        grip = max(0.0, grasp.width - squeeze)
        try:
            return grasp, planner.plan(
                grasp.point,
                end,
                lift=lift,
                yaw=grasp.yaw,
                normal=grasp.normal,
                grip=grip,
                start=start,
            )
        except Unreachable as e:
            refused = refused or e
    raise refused or Unreachable("grasps: found none; see grasps.find")


def _frame(normal: Array) -> Array:
    """Return two unit vectors (2, 3) in the table's plane, the first along the world's x."""
    first = np.array([1.0, 0, 0]) - normal[0] * normal
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(normal, first)])


def _flattened(scene: SegmentedScene, points: Array, across: Array) -> Array:
    return np.concatenate([points @ across.T, scene.heights(points)[:, None]], 1)


def _point(
    scene: SegmentedScene, cells: Array, place: Array, across: Array, gripper: Gripper, c: Config
) -> Array:
    """Return the point (3,) of the world between the finger tips, below the object's top there."""
    near = np.linalg.norm(cells[:, :2] - place, axis=1) < max(2 * FINGER[0], c.apart)
    top = float(np.quantile(cells[near, 2], 0.9)) if near.any() else float(cells[:, 2].max())
    height = max(top - c.depth + gripper.tip, gripper.tip + c.floor)
    normal = scene.plane[:3]
    point: Array = place @ across + (height - scene.plane[3]) * normal
    return point


def _across(
    cells: Array, everything: Array, gripper: Gripper, c: Config
) -> Iterator[tuple[float, Array, float, float]]:
    """Yield score, place (2,), angle in which the fingers close, and width of each grasp."""
    limit = gripper.width - 2 * c.clearance
    # Vertical columns, so that the side that faces the camera does not count more than the top.
    columns = np.unique(np.round(cells[:, :2] / COLUMN), axis=0) * COLUMN
    middle = columns.mean(0)
    radius = max(float(np.linalg.norm(columns - middle, axis=1).max()), 1e-6)
    room = 2 * FINGER[1] + c.clearance  # m that a finger needs beside the object
    for seed in _spread(columns, c.places):
        best: tuple[float, Array, float, float] | None = None
        for angle in np.arange(c.angles) * np.pi / c.angles:
            close = np.array([np.cos(angle), np.sin(angle)])
            side = np.array([-close[1], close[0]])
            at = (everything[:, :2] - seed) @ np.stack([close, side]).T
            slab = at[np.abs(at[:, 1]) < FINGER[0]]
            low, high = _segment(np.sort(slab[:, 0]), room)
            width = high - low
            if width > limit or not _parallel(slab, low, high, c.slope):
                continue
            place = seed + (low + high) / 2 * close
            off = float(np.linalg.norm(place - middle)) / radius
            score = 1 - 0.5 * width / limit - 0.5 * min(off, 1.0)
            if best is None or width < best[3]:
                best = score, place, float(angle), width
        if best is not None:
            yield best


def _segment(along: Array, room: float) -> tuple[float, float]:
    """Return the ends of the segment nearest to 0 in sorted positions.

    Positions less than `room` apart leave no place for a finger, so they are in one segment.
    """
    breaks = np.flatnonzero(np.diff(along) > room)
    starts, ends = along[np.r_[0, breaks + 1]], along[np.r_[breaks, len(along) - 1]]
    which = int(np.maximum(np.maximum(starts, -ends), 0).argmin())
    return float(starts[which]), float(ends[which])


def _parallel(slab: Array, low: float, high: float, slope: float) -> bool:
    """Return whether the segment from low to high has sides that the fingers do not slip off.

    `slab` (S, 2) is along and across the closing direction; in both its halves the sides must be
    at nearly the same place.
    """
    held = slab[(slab[:, 0] >= low) & (slab[:, 0] <= high)]
    if len(held) == 0 or np.abs([held[:, 1].min(), held[:, 1].max()]).min() < FINGER[0] / 2:
        return False  # an end or a corner, which only half a finger would hold
    first, second = held[held[:, 1] < 0, 0], held[held[:, 1] >= 0, 0]
    if len(first) == 0 or len(second) == 0:
        return False
    gaps = first.min() - second.min(), first.max() - second.max()
    return bool(np.abs(gaps).max() < slope * FINGER[0])  # the halves' middles are that far apart


def _edges(cells: Array, c: Config) -> Iterator[tuple[float, Array, float, float]]:
    """Yield score, place, angle and width of grasps at the edge of a flat object.

    At an edge the points nearby lie to one side, and at a corner even more so.
    """
    reach = 4 * c.inset
    for seed in _spread(cells[:, :2], 4 * c.places):
        near = cells[np.linalg.norm(cells[:, :2] - seed, axis=1) < reach, :2]
        inward = near.mean(0) - seed
        share = float(np.linalg.norm(inward)) / reach  # 0.42 at a straight edge, 0.6 at a corner
        if share < 0.35:
            continue
        inward = inward / np.linalg.norm(inward)
        angle = float(np.arctan2(inward[1], inward[0]))
        yield min(share / 0.7, 1.0), seed + c.inset * inward, angle, c.pinch


def _spread(places: Array, count: int) -> Array:
    """Return `count` of the places (V, 2), or all, far from each other, the middle one first."""
    gaps = np.linalg.norm(places - places.mean(0), axis=1)
    chosen = [int(gaps.argmin())]
    gaps = np.linalg.norm(places - places[chosen[0]], axis=1)
    while len(chosen) < min(count, len(places)):
        chosen.append(int(gaps.argmax()))
        gaps = np.minimum(gaps, np.linalg.norm(places - places[chosen[-1]], axis=1))
    return places[chosen]
