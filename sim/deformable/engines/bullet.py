"""The base of the PyBullet engines: the world, the gripper, the state, the images."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from latentplan.errors import MissingDependency, UnstablePhysics
from latentplan.shapes import check
from latentplan.sim.deformable.engines.engine import Kind
from latentplan.sim.rendering.appearance import TILE, Appearance, Colour
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array

NEAR, FAR = 0.05, 50.0  # m, clipping planes of the camera
ERP = 0.8  # share of a joint's error that is corrected in a timestep
NO_TIME = 1e-15  # s; Bullet skips a step that takes less than its epsilon
TEXEL = 0.5 / TILE  # m, of the table's pattern
FARTHEST = 10.0  # m from the centre of the table, beyond which a body has diverged
TABLE, OBJECT = 1, 2  # collision groups
TABLE_RGB = (0.18, 0.45, 0.34)
STATE = 13  # numbers of a body: position, quaternion, velocity, angular velocity


class BulletEngine(ABC):
    """An object of rigid bodies with joints, in its own PyBullet world.

    All bodies are single ones (`useMaximalCoordinates`), connected by ball joints. The first of
    them are the grips, which the gripper can hold. The gripper is a body without shape and mass; a
    ball joint connects it to the held body.

    Bullet keeps contacts and their order from one step to the next, and `saveState` does not
    restore all of them. Therefore a state is a vector of numbers, and `snapshot` also restores it:
    the bodies get new entries in the broad phase, in the same order, so that the next steps depend
    on the numbers only.
    """

    _touches = TABLE  # collision groups that the bodies collide with

    def __init__(
        self,
        *,
        name: str,
        rgb: Colour,
        cameras: Mapping[str, Camera],
        timestep: float,
        iterations: int,
    ) -> None:
        """Make the world; `rgb` is the object's own colour, `iterations` are of the solver."""
        self._p: Any = _bullet()
        self._name = name
        self._rgb = rgb
        self._cameras = dict(cameras)
        self._appearance = Appearance()
        self._iterations = iterations
        self.timestep = timestep
        self.held = -1
        # Poses and velocities last set for the bodies, if no step followed.
        self._as_put: tuple[Array, Array] | None = None
        self._client = self._p.connect(self._p.DIRECT)
        self._free = weakref.finalize(self, self._p.disconnect, self._client)
        self._make()

    @abstractmethod
    def _build(self) -> list[int]:
        """Add the object's bodies to the empty world and return them, the grips first."""

    def _draw(self) -> None:  # noqa: B027, a hook: most bodies move by themselves
        """Update the visual bodies `self._drawn`; those of the simulation move by themselves."""

    def points(self) -> Array:
        """Return the keypoints (P, 3): here the grips."""
        return self.grips()

    def grips(self) -> Array:
        """Return the centres of the bodies, (G, 3)."""
        return self._poses()[:, :3]

    def grasp(self, grip: int) -> None:
        """Move the gripper to a body and connect them."""
        self._hold(grip, self.grips()[grip])

    def release(self) -> None:
        """Remove the joint between gripper and body."""
        if self.held >= 0:
            self._p.removeConstraint(self._tie, physicsClientId=self._client)
        self.held = -1

    def place_gripper(self, position: Array) -> None:
        """Put the empty gripper at `position` (3,)."""
        self._position = np.array(position, np.float64)
        self._p.resetBasePositionAndOrientation(
            self._gripper, self._position, (0, 0, 0, 1), physicsClientId=self._client
        )

    def follow(self, path: Array) -> None:
        """Move the gripper along a path (S, 3), one point per timestep."""
        self._as_put = None
        for point in path:
            self.place_gripper(point)
            self._p.stepSimulation(physicsClientId=self._client)

    def wait(self, steps: int) -> None:
        """Step the physics."""
        self._as_put = None
        for _ in range(steps):
            self._p.stepSimulation(physicsClientId=self._client)

    def rest(self) -> None:
        """Stop all motion, so that the next state depends on the points alone."""
        self._put(self._poses(), np.zeros((len(self._bodies), 6)))

    def check(self) -> None:
        """Raise UnstablePhysics if a body is far away or its position is not finite."""
        if not np.abs(self._poses()[:, :3]).max() < FARTHEST:  # NaN fails too
            self._diverged = True
            raise UnstablePhysics(
                f"{self._name}: the simulation diverged; reset and drop the episode"
            )

    def gripper(self) -> Array:
        """Return the position (3,) of the gripper."""
        return self._position.copy()

    def image(self, camera: str = "top", kind: Kind = "rgb") -> Array:
        """Return a camera's image; see `Engine.image`."""
        self._draw()
        p, view, seen = self._p, self._cameras[camera], self._appearance
        light = seen.toward_light()
        # TinyRenderer treats the corner of a pixel as its middle, so shift by half a pixel.
        half = NEAR * np.tan(np.radians(view.fovy) / 2) / view.height  # half a pixel, at NEAR
        left, right = (1 - view.width) * half, (1 + view.width) * half
        low, high = (1 - view.height) * half, (1 + view.height) * half
        _, _, rgb, depth, bodies = p.getCameraImage(
            view.width,
            view.height,
            p.computeViewMatrix(view.position, view.target, view.up),
            p.computeProjectionMatrix(left, right, low, high, NEAR, FAR),
            lightDirection=-view.axes()[2] if light is None else light,
            lightColor=(1, 1, 1),
            lightAmbientCoeff=0.4 * seen.brightness,
            lightDiffuseCoeff=0.6 * seen.brightness,
            lightSpecularCoeff=0,
            shadow=0,
            flags=p.ER_NO_SEGMENTATION_MASK if kind == "depth" else 0,
            renderer=p.ER_TINY_RENDERER,
            physicsClientId=self._client,
        )
        shape = (view.height, view.width)
        if kind == "segmentation":
            return np.isin(np.reshape(bodies, shape), self._drawn).astype(np.uint8)
        buffer = np.reshape(depth, shape).astype(np.float64)
        metres: Array = FAR * NEAR / (FAR - (FAR - NEAR) * buffer)
        if kind == "depth":
            return metres.astype(np.float32)
        nothing = metres > 0.9 * FAR  # black, as in MuJoCo
        shade = np.where(nothing, 0.0, 1.0)
        if seen.contrast > 0:
            # Not a texture, since TinyRenderer never frees one.
            texels = np.floor(view.unproject(metres)[..., :2] / TEXEL).astype(int) % TILE
            table = ~nothing & (np.reshape(bodies, shape) == self._table)
            shade[table] = self._tile[texels[table, 1], texels[table, 0]]
        colours: Array = np.reshape(rgb, (*shape, 4))[..., :3] * shade[..., None]
        return colours.astype(np.uint8)

    def place_camera(self, camera: Camera) -> None:
        """Move the camera of this name to its new pose; its images keep their size."""
        self._cameras[camera.name] = camera

    def set_appearance(self, appearance: Appearance) -> None:
        """Set the appearance of the scene."""
        self._appearance = appearance
        if appearance.contrast > 0:
            self._tile = appearance.tile()
        self._colour(self._table, appearance.table or TABLE_RGB)
        for body in self._drawn:
            self._colour(body, appearance.object or self._rgb)

    def snapshot(self) -> Array:
        """Return the state of all bodies and of the gripper as a vector."""
        # Bullet changes the last bit of a quaternion that is set, so return the one that was set.
        poses, velocities = self._as_put or (self._poses(), self._velocities())
        self._put(poses, velocities)  # so that the next steps equal those after a `restore`
        bodies = np.concatenate([poses, velocities], 1)
        return np.concatenate([bodies.ravel(), self._position, [self.held]])

    def restore(self, state: Array) -> None:
        """Restore a `snapshot`."""
        size = STATE * len(self._bodies)
        check(f"{self._name}.restore", state, "n", n=size + 4)
        self._clear()
        bodies = state[:size].reshape(-1, STATE)
        self._put(bodies[:, :7], bodies[:, 7:])
        if state[-1] >= 0:
            self._hold(int(state[-1]), state[size : size + 3])
        else:
            self.place_gripper(state[size : size + 3])

    def close(self) -> None:
        """Disconnect from the world; the engine is unusable afterwards."""
        self._free()

    def _make(self) -> None:
        """Build the world from an empty one."""
        p, client = self._p, self._client
        p.resetSimulation(physicsClientId=client)
        p.setGravity(0, 0, -9.81, physicsClientId=client)
        p.setPhysicsEngineParameter(
            numSubSteps=0,
            numSolverIterations=self._iterations,
            deterministicOverlappingPairs=1,
            warmStartingFactor=0,
            physicsClientId=client,
        )
        self._time(self.timestep, erp=ERP)
        # Without a visual shape Bullet renders the collision shape, so hide one below the table.
        below = np.array([(0, 0, -1), (1, 0, -1), (0, 1, -1)]) * 0.001 - [0, 0, 1]
        self._unseen = self._mesh(below, np.array([(0, 1, 2)]), normals=np.tile((0, 0, 1), (3, 1)))
        self._gripper = self._body(0, -1, self._unseen)
        self.held, self._diverged = -1, False
        self._as_put = None
        self.place_gripper(np.zeros(3))
        self._bodies = self._build()
        self._drawn = list(self._bodies)
        self.set_appearance(self._appearance)

    def _body(self, mass: float, shape: int, visual: int) -> int:
        """Return a new single body at the origin; shape and visual may be -1 for none."""
        body: int = self._p.createMultiBody(
            mass, shape, visual, useMaximalCoordinates=1, physicsClientId=self._client
        )
        return body

    def _lay_table(self, *, friction: float) -> None:
        """Add the table, z = 0."""
        corners = np.array([(-2, -2, 0), (2, -2, 0), (2, 2, 0), (-2, 2, 0)])
        up = np.tile((0, 0, 1), (4, 1))
        top = self._mesh(corners, np.array([(0, 1, 2), (0, 2, 3)]), normals=up)
        self._table = self._plane(top, friction=friction)

    def _put_walls(self, edge: float) -> None:
        """Add four invisible upright planes at +-edge metres, which keep the object in view."""
        for angle in np.arange(4) * np.pi / 2:
            wall = self._plane(self._unseen, friction=0.1)
            inwards = self._p.getQuaternionFromEuler((0, -np.pi / 2, angle))  # its normal
            at = (edge * np.cos(angle), edge * np.sin(angle), 0)
            self._p.resetBasePositionAndOrientation(wall, at, inwards, self._client)

    def _plane(self, visual: int, *, friction: float) -> int:
        """Add a plane z = 0 that collides with the object, and return it."""
        p, client = self._p, self._client
        plane = self._body(0, p.createCollisionShape(p.GEOM_PLANE, physicsClientId=client), visual)
        p.changeDynamics(plane, -1, lateralFriction=friction, physicsClientId=client)
        p.setCollisionFilterGroupMask(plane, -1, TABLE, OBJECT, physicsClientId=client)
        return plane

    def _mesh(self, vertices: Array, triangles: Array, *, normals: Array) -> int:
        """Return a visual shape: vertices and normals (V, 3), triangles (T, 3) anticlockwise."""
        visual: int = self._p.createVisualShape(
            self._p.GEOM_MESH,
            vertices=vertices.tolist(),
            indices=triangles.ravel().tolist(),
            normals=normals.tolist(),
            physicsClientId=self._client,
        )
        return visual

    def _colour(self, body: int, rgb: Colour) -> None:
        rgba = (*(np.array(rgb) + 0.5 / 255), 1)  # TinyRenderer truncates instead of rounding
        self._p.changeVisualShape(body, -1, rgbaColor=rgba, physicsClientId=self._client)

    def _ball_joint(self, a: int, b: int, *, at: tuple[Array, Array]) -> int:
        """Join two bodies at a point, given in the frame of each, and return the joint."""
        joint: int = self._p.createConstraint(
            a,
            -1,
            b,
            -1,
            self._p.JOINT_POINT2POINT,
            (0, 0, 0),
            at[0],
            at[1],
            physicsClientId=self._client,
        )
        return joint

    def _hold(self, grip: int, position: Array) -> None:
        """Connect a body to the gripper at `position`."""
        self.release()
        self.place_gripper(position)
        origin = np.zeros(3)
        self._tie = self._ball_joint(self._gripper, self._bodies[grip], at=(origin, origin))
        self.held = grip

    def _clear(self) -> None:
        """Release the gripper, and rebuild a world that has diverged."""
        if self._diverged:
            self._make()
        self.release()

    def _poses(self) -> Array:
        """Return position and quaternion of every body, (bodies, 7)."""
        get, client = self._p.getBasePositionAndOrientation, self._client
        return np.array([(*x, *q) for x, q in (get(b, client) for b in self._bodies)])

    def _velocities(self) -> Array:
        """Return velocity and angular velocity of every body, (bodies, 6)."""
        get, client = self._p.getBaseVelocity, self._client
        return np.array([(*v, *w) for v, w in (get(b, client) for b in self._bodies)])

    def _put(self, poses: Array, velocities: Array) -> None:
        """Set the state of all bodies, independent of earlier contacts and rotations.

        Bullet turns a body's inertia with it at the end of a step only; hence a step of no time,
        without contacts and joint forces.
        """
        self._set(poses, np.zeros_like(velocities), touches=0)
        self._time(NO_TIME, erp=0)
        self._p.stepSimulation(physicsClientId=self._client)
        self._time(self.timestep, erp=ERP)
        self._set(poses, velocities, touches=self._touches)
        self._as_put = poses.copy(), velocities.copy()

    def _set(self, poses: Array, velocities: Array, *, touches: int) -> None:
        p, client = self._p, self._client
        for body, pose, velocity in zip(
            self._bodies, poses.tolist(), velocities.tolist(), strict=True
        ):
            p.resetBasePositionAndOrientation(body, pose[:3], pose[3:], client)
            p.resetBaseVelocity(body, velocity[:3], velocity[3:], client)
            p.setCollisionFilterGroupMask(body, -1, OBJECT, touches, client)

    def _time(self, step: float, *, erp: float) -> None:
        """Set the length of a step, s, and the share of a joint's error that it corrects."""
        self._p.setPhysicsEngineParameter(fixedTimeStep=step, erp=erp, physicsClientId=self._client)


def _bullet() -> Any:
    """Return the module pybullet; MissingDependency if it is not installed."""
    try:
        import pybullet
    except ImportError:
        raise MissingDependency('engine=pybullet needs: pip install "latentplan[bullet]"') from None
    return pybullet
