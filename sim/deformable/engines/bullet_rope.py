"""A rope in PyBullet: a chain of rigid links with ball joints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latentplan.errors import ConfigError
from latentplan.sim.deformable.engines.bullet import BulletEngine
from latentplan.sim.deformable.engines.engine import Curve
from latentplan.sim.rendering import cameras
from latentplan.types import Array

if TYPE_CHECKING:
    from latentplan.sim.deformable.rope import Rope

# Ball joints have no damping. Instead, links turn slowly: they have an added inertia of `damping`
# times LAG, and lose SPIN of their angular velocity in a second. Over drags that move a point by
# 56 mm on average, the result differs from MuJoCo's rope by 13 mm after a drag.
LAG = 0.012  # s
SPIN = 1 - 1e-12


class BulletRope(BulletEngine):
    """A rope with the links' ends (links + 1, 3) as keypoints, and their centres as grips."""

    def __init__(self, config: Rope.Config) -> None:
        """Build the world; ConfigError for a stiff rope, since ball joints have no stiffness."""
        if config.stiffness > 0:
            raise ConfigError(
                f"Rope.stiffness: found {config.stiffness}, engine=pybullet has no springs at the "
                "joints; set 0, or engine=mujoco"
            )
        self._config = config
        super().__init__(
            name="rope",
            rgb=(1.0, 0.92, 0.84),
            cameras=cameras.of(config),
            timestep=config.timestep,
            iterations=20,
        )

    def lay(self, pose: Curve) -> None:
        """Lay the rope down along a curve and wait until it rests."""
        self._clear()
        ends = pose.points()
        angles = pose.heading + np.concatenate([[0], np.cumsum(pose.bends)])
        poses = np.zeros((len(angles), 7))
        poses[:, :2] = (ends[1:] + ends[:-1]) / 2
        poses[:, 2] = self._config.radius
        poses[:, 5], poses[:, 6] = np.sin(angles / 2), np.cos(angles / 2)
        self._put(poses, np.zeros((len(angles), 6)))
        self.place_gripper(np.zeros(3))
        self.wait(self._config.rest_steps)
        self.check()
        self.rest()

    def points(self) -> Array:
        """Return the links' ends (links + 1, 3)."""
        poses = self._poses()
        x, y, z, w = poses[:, 3:].T
        along = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], 1)
        half = along * (self._config.length / self._config.links / 2)
        starts, ends = poses[:, :3] - half, poses[:, :3] + half
        # Two links meet in a joint up to the solver's error, so take the middle.
        return np.concatenate([starts[:1], (starts[1:] + ends[:-1]) / 2, ends[-1:]])

    def _build(self) -> list[int]:
        """Return the links; only spheres at their centres touch the table, as in MuJoCo."""
        c, p, client = self._config, self._p, self._client
        self._lay_table(friction=c.friction)
        self._put_walls(c.view - c.radius / 2)
        step, mass = c.length / c.links, c.mass / c.links
        sphere = p.createCollisionShape(p.GEOM_SPHERE, radius=c.radius, physicsClientId=client)
        vertices, triangles, normals = _capsule(c.radius, length=step)
        visual = self._mesh(vertices, triangles, normals=normals)
        links = [self._body(mass, sphere, visual) for _ in range(c.links)]
        inertia = mass * step**2 / 12 + c.damping * LAG
        for link in links:
            p.changeDynamics(
                link,
                -1,
                mass=mass,  # without it Bullet treats the body as massless
                localInertiaDiagonal=(inertia, inertia, inertia),
                linearDamping=0,
                angularDamping=SPIN,
                lateralFriction=1,
                activationState=p.ACTIVATION_STATE_DISABLE_SLEEPING,
                physicsClientId=client,
            )
        half = np.array([step / 2, 0, 0])
        for a, b in zip(links, links[1:], strict=False):
            self._ball_joint(a, b, at=(half, -half))
        return links


def _capsule(radius: float, *, length: float) -> tuple[Array, Array, Array]:
    """Return vertices (V, 3), triangles (T, 3), normals (V, 3) of a capsule along x."""
    sides, rings = 8, 3  # vertices of a ring; rings of a half
    rise = np.linspace(np.pi / 2, 0, rings)  # from the pole, a ring of radius 0
    tilt = np.concatenate([-rise, rise[::-1]])
    turn = np.arange(sides) * 2 * np.pi / sides
    normals = np.stack(
        [
            np.repeat(np.sin(tilt), sides),
            np.outer(np.cos(tilt), np.cos(turn)).ravel(),
            np.outer(np.cos(tilt), np.sin(turn)).ravel(),
        ],
        1,
    )
    vertices = radius * normals
    vertices[:, 0] += np.repeat([-length / 2, length / 2], rings * sides)
    k, i = np.meshgrid(np.arange(2 * rings - 1), np.arange(sides), indexing="ij")
    a, b = (k * sides + i).ravel(), (k * sides + (i + 1) % sides).ravel()
    triangles = np.concatenate(
        [np.stack([a, b, a + sides], 1), np.stack([b, b + sides, a + sides], 1)]
    )
    return vertices, triangles, normals
