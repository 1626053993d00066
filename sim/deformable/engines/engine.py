"""The interface of a task and a physics engine: an object on a table, and one gripper point.

A task (`rope.py`, `cloth.py`) defines the object, the meaning of an action, and success. An engine
(`engines/mujoco.py`, ...) simulates the object and renders it. A new engine for a task is one class
that implements this protocol, and one line below.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from latentplan.errors import unknown
from latentplan.sim.rendering.appearance import Appearance
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array

Kind = Literal["rgb", "depth", "segmentation"]
Pose = TypeVar("Pose", contravariant=True)

ENGINES = {
    "rope": {
        "mujoco": "latentplan.sim.deformable.engines.mujoco_rope:MujocoRope",
        "pybullet": "latentplan.sim.deformable.engines.bullet_rope:BulletRope",
    },
    "cloth": {
        "mujoco": "latentplan.sim.deformable.engines.mujoco_cloth:MujocoCloth",
        "pybullet": "latentplan.sim.deformable.engines.bullet_cloth:BulletCloth",
    },
}


class Engine(Protocol[Pose]):
    """One deformable object on a table in one physics engine. Metres, seconds; z is up.

    Pose describes the object when it is laid down: a `Curve` for a rope, the grid points (P, 3) for
    a cloth. If the simulation diverges, `check` raises UnstablePhysics; after `lay` the engine
    works again. Otherwise it is deterministic: the same calls after the same `lay` or `restore`
    give bit-equal points and images.
    """

    timestep: float  # s, one point of a path
    held: int  # grip that the gripper holds, -1 for none

    def lay(self, pose: Pose) -> None:
        """Lay the object down in a pose, at rest; the gripper holds nothing."""

    def points(self) -> Array:
        """Return the keypoints (P, 3)."""

    def grips(self) -> Array:
        """Return the points (G, 3) at which the gripper can hold the object."""

    def grasp(self, grip: int) -> None:
        """Close the gripper on one of the grips; `follow` then carries it."""

    def release(self) -> None:
        """Open the gripper."""

    def place_gripper(self, position: Array) -> None:
        """Put the empty gripper at `position` (3,)."""

    def follow(self, path: Array) -> None:
        """Move the gripper and the held grip along a path (S, 3), one point per timestep."""

    def wait(self, steps: int) -> None:
        """Step the physics for `steps` timesteps, or until the object rests."""

    def rest(self) -> None:
        """Stop all motion, so that the next state depends on the points alone."""

    def check(self) -> None:
        """Raise UnstablePhysics if the simulation diverged since `lay` or `restore`."""

    def gripper(self) -> Array:
        """Return the position (3,) of the gripper."""

    def image(self, camera: str = "top", kind: Kind = "rgb") -> Array:
        """Return a camera's image, top row first.

        `rgb` is (h, w, 3) uint8; `depth` (h, w) float32, metres along the camera's axis;
        `segmentation` (h, w) uint8: 0 the table, 1 the object, 2 the gripper. Cameras are those of
        `cameras.of(config)`, unless `place_camera` has moved them.
        """

    def place_camera(self, camera: Camera) -> None:
        """Move the camera of this name to its new pose; its images keep their size."""

    def set_appearance(self, appearance: Appearance) -> None:
        """Set the appearance of the scene, until the next call."""

    def snapshot(self) -> Any:
        """Return the full state, including the held grip."""

    def restore(self, state: Any) -> None:
        """Restore a `snapshot` of this engine."""

    def close(self) -> None:
        """Free the renderers."""


def make(task: str, name: str, *, config: Any) -> Any:
    """Return the engine `name` for a task, built for the task's config.

    Raises UnknownName if there is no such engine, MissingDependency if its package is not
    installed.
    """
    known = ENGINES[task]
    if name not in known:
        raise unknown(f"engine for {task}", name, known)
    module, _, attribute = known[name].partition(":")
    return getattr(import_module(module), attribute)(config)


@dataclass(frozen=True)
class Curve:
    """A rope at rest on the table: rigid links from one end to the other."""

    start: Array  # (2,) m, the first end
    heading: float  # rad, direction of the first link
    bends: Array  # (links - 1,) rad, each link against the previous one
    step: float  # m, length of a link

    def points(self) -> Array:
        """Return the links' ends (links + 1, 2) in metres."""
        angles = self.heading + np.concatenate([[0], np.cumsum(self.bends)])
        ways = self.step * np.stack([np.cos(angles), np.sin(angles)], 1)
        points: Array = self.start + np.concatenate([np.zeros((1, 2)), np.cumsum(ways, axis=0)])
        return points


def arc(start: Array, end: Array, *, lift: float, steps: int) -> Array:
    """Return the path (steps, 3) of a carry: up from `start` (3,), and down at `end` (2,).

    Speed is 0 at both ends; in the last quarter of the time the gripper stays at the end.
    """
    way = np.minimum(np.arange(1, steps + 1) / (0.75 * steps), 1.0)
    way = way * way * (3 - 2 * way)
    path = np.empty((steps, 3))
    path[:, :2] = start[:2] + way[:, None] * (end - start[:2])
    path[:, 2] = start[2] + lift * np.sin(np.pi * way)
    return path
