"""A cloth in PyBullet: a grid of small crosses, joined at their tips."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latentplan.errors import UnstablePhysics
from latentplan.sim.deformable.engines.bullet import OBJECT, TABLE, BulletEngine
from latentplan.sim.rendering import cameras
from latentplan.types import Array

if TYPE_CHECKING:
    from latentplan.sim.deformable.cloth import Cloth

STILL = 0.05  # m/s, root mean square of the points' speeds at rest
CHUNK = 4  # timesteps between two checks for rest
TORN = 2.0  # ratio of neighbours' distance to that at rest, above which the simulation has failed
SLIP = 0.1  # friction of a ball; the table's compensates for it, so that layers slide
SPIN = 1 - 1e-6  # share of a cross's angular velocity that is lost in a second
INERTIA = 0.1  # moment of a cross, in units of its mass times the spacing squared


class BulletCloth(BulletEngine):
    """A cloth with the crosses' centres (rows * columns, 3) as keypoints and grips, row by row.

    Each cross is rigid, and ball joints connect its four tips to those of its neighbours. The net
    bends and folds, also diagonally, and hardly stretches or shears: it is a discrete orthogonal
    geodesic net (Rabinovich et al. 2018, https://doi.org/10.1145/3180494) with slightly soft
    joints. A ball at each centre collides with the table and the other balls.

    PyBullet's soft bodies are not used. In the deformable world a step takes ten times as long and
    diverges at 10 ms; in the other world bending cannot be set, and the sheet flattens by itself.
    Neither exposes velocities, which are needed to restore a state.
    """

    _touches = TABLE | OBJECT

    def __init__(self, config: Cloth.Config) -> None:
        """Build the world."""
        self._config = config
        grid = np.arange(config.rows * config.columns).reshape(config.rows, config.columns)
        self._rows, self._columns = _pairs(grid[:-1], grid[1:]), _pairs(grid[:, :-1], grid[:, 1:])
        self._joined = np.concatenate([self._rows, self._columns])
        a, b, d, e = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
        self._triangles = np.concatenate([_pairs(a, b, d), _pairs(a, d, e)])
        super().__init__(
            name="cloth",
            rgb=(1.0, 0.8, 0.35),
            cameras=cameras.of(config),
            timestep=config.timestep,
            iterations=config.iterations,
        )

    def lay(self, pose: Array) -> None:
        """Lay the points (P, 3) down and wait until they rest."""
        self._clear()
        grid = pose.reshape(self._config.rows, self._config.columns, 3)
        poses = np.concatenate([pose, _turns(grid)], 1)
        self._put(poses, np.zeros((len(pose), 6)))
        self.place_gripper(np.zeros(3))
        self.wait(self._config.rest_steps)
        self.check()
        self.rest()

    def wait(self, steps: int) -> None:
        """Step the physics until the cloth rests, or for `steps` timesteps."""
        for done in range(0, steps, CHUNK):
            super().wait(min(CHUNK, steps - done))
            if (self._velocities()[:, :3] ** 2).sum(1).mean() < STILL**2:
                return

    def check(self) -> None:
        """Raise UnstablePhysics if a point is far away, or the cloth is torn apart."""
        super().check()
        points = self.grips()
        ways = points[self._joined[:, 0]] - points[self._joined[:, 1]]
        if np.linalg.norm(ways, axis=1).max() > TORN * self._config.spacing:
            raise UnstablePhysics("cloth: it was torn apart; reset and drop the episode")

    def _draw(self) -> None:
        """Draw both sides of the sheet through the points."""
        if self._drawn != self._bodies:
            self._p.removeBody(self._drawn[0], physicsClientId=self._client)
        points = self.grips()
        corners = points[self._triangles]  # t 3 xyz
        faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normals = np.zeros_like(points)
        for corner in self._triangles.T:
            np.add.at(normals, corner, faces)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
        # Half the flex's thickness, so that each side is at MuJoCo's place.
        thick = normals * self._config.radius / 3
        back = self._triangles[:, ::-1] + len(points)
        visual = self._mesh(
            np.concatenate([points + thick, points - thick]),
            np.concatenate([self._triangles, back]),
            normals=np.concatenate([normals, -normals]),
        )
        self._drawn = [self._body(0, -1, visual)]
        self._colour(self._drawn[0], self._appearance.object or self._rgb)

    def _build(self) -> list[int]:
        """Return the crosses; only the balls at their middles collide."""
        c, p, client = self._config, self._p, self._client
        self._lay_table(friction=c.friction / SLIP)
        self._put_walls(c.view - c.radius)
        mass = c.mass / (c.rows * c.columns)
        sphere = p.createCollisionShape(p.GEOM_SPHERE, radius=c.radius, physicsClientId=client)
        crosses = [self._body(mass, sphere, self._unseen) for _ in range(c.rows * c.columns)]
        for cross in crosses:
            p.changeDynamics(
                cross,
                -1,
                mass=mass,  # without it Bullet treats the body as massless
                localInertiaDiagonal=(INERTIA * mass * c.spacing**2,) * 3,
                linearDamping=1 - np.exp(-c.damping),
                angularDamping=SPIN,
                lateralFriction=SLIP,
                activationState=p.ACTIVATION_STATE_DISABLE_SLEEPING,
                physicsClientId=client,
            )
        for pairs, way in ((self._rows, (1, 0, 0)), (self._columns, (0, 1, 0))):
            tip = np.array(way) * c.spacing / 2
            for a, b in pairs:
                self._ball_joint(crosses[a], crosses[b], at=(tip, -tip))
        return crosses


def _pairs(*corners: Array) -> Array:
    return np.stack([c.ravel() for c in corners], 1)


def _turns(grid: Array) -> Array:
    """Return quaternions (P, 4) of crosses whose arms lie along a grid (rows, columns, 3)."""
    from scipy.spatial.transform import Rotation

    along, across = _unit(np.gradient(grid, axis=0)), _unit(np.gradient(grid, axis=1))
    # The two right-angled directions nearest to both.
    middle, side = _unit(along + across), _unit(along - across)
    x, y = (middle + side) / np.sqrt(2), (middle - side) / np.sqrt(2)
    frames = np.stack([x, y, np.cross(x, y)], -1).reshape(-1, 3, 3)
    quaternions: Array = Rotation.from_matrix(frames).as_quat()
    return quaternions


def _unit(vectors: Array) -> Array:
    units: Array = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-9)
    return units
