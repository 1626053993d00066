"""The physics of the tabletop in PyBullet: bodies, the gripper's servo, states, images.

Metres, seconds, rad; the origin is the middle of the table top, x right, y away, z up.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from latentplan.errors import MissingDependency, UnstablePhysics
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array

FOLDER = Path(__file__).parent
TIMESTEP = 1 / 120  # s, of the physics
BLOCK = 0.05  # m, the side of a block
COLOURS = {"red": (0.85, 0.08, 0.08), "blue": (0.10, 0.22, 0.90), "pink": (1.0, 0.50, 0.85)}
RANGES = {"drawer": 0.18, "slider": 0.24, "switch": 0.08}  # m, range of each from 0
FRICTION = {"drawer": 2.0, "slider": 1.0, "switch": 0.5}  # N, friction that holds each
LAMP = (0.24, 0.225, 0.12)  # m, its middle
LIT, DARK = (1.0, 0.93, 0.25, 1), (0.16, 0.17, 0.24, 1)  # rgba of the lamp
FLOOR, FLOOR_RGBA = -0.23, (0.33, 0.37, 0.42, 1)  # m, height of the floor
OPEN = 0.04  # m, travel of each open finger
MOTORS = tuple(range(8))  # x, y, z, yaw, pitch, roll, two fingers
FORCES = (60.0,) * 3 + (6.0,) * 3 + (15.0,) * 2  # N, N m
GAINS = (0.5,) * 8  # share of a joint's error that is corrected in a timestep
NEAR, FAR = 0.02, 5.0  # m, clipping planes of a camera
FARTHEST = 4.0  # m from the origin, and above any angle; beyond it a body has diverged
LAID = 24  # timesteps until a new scene is at rest
STATIC = Camera("static", position=(0.0, -0.80, 0.86), target=(0.0, -0.06, 0.0), fovy=39.0)
WRIST = (0.0, -0.065, 0.055), (0.0, -0.005, -0.03)  # m from the tool: camera, its target
WRIST_FOVY = 80.0  # degrees


class Scene(NamedTuple):
    """The movable parts of the desk, without the gripper."""

    drawer: float  # m, opening of the drawer
    slider: float  # m of the door to the left of its right end
    switch: float  # m of the lever from its near end, which is off
    blocks: Array  # (3, 6): x, y, z in m, euler xyz in rad; red, blue, pink

    @property
    def lit(self) -> bool:
        """Whether the lamp is on."""
        return lights(self.switch)


def lights(switch: float) -> bool:
    """Return whether the lamp is on, which is so if the lever is past its middle."""
    return switch > RANGES["switch"] / 2


@dataclass(frozen=True)
class CameraImage:
    """An image of a camera, top row first."""

    rgb: Array  # (h, w, 3) uint8
    depth: Array  # (h, w) float32, m along the camera's axis


class World:
    """A desk in a separate PyBullet client; the same calls give bit-equal numbers."""

    def __init__(self, *, substeps: int, static: int, gripper: int) -> None:
        """Build the world: physics steps of a `move`, and pixels a side of both cameras.

        Raises MissingDependency if PyBullet is not installed.
        """
        self._p: Any = _bullet()
        self._client = self._p.connect(self._p.DIRECT)
        self._free = weakref.finalize(self, self._p.disconnect, self._client)
        self._substeps = substeps
        self._pixels = {"static": static, "gripper": gripper}
        self._shown: bool | None = None  # whether the lamp is rendered lit
        self._build()
        self._pristine = self._p.saveState(self._client)

    def lay(self, scene: Scene, *, pose: Array) -> None:
        """Set the scene at rest, and the open gripper at `pose` (6,), m and rad.

        The next states depend on these numbers alone.
        """
        p, client = self._p, self._client
        p.restoreState(self._pristine, physicsClientId=client)
        for joint, value in enumerate(scene[:3]):
            p.resetJointState(self._desk, joint, value, 0.0, client)
        for block, (x, y, z, *turn) in zip(self._blocks, scene.blocks.tolist(), strict=True):
            quaternion = p.getQuaternionFromEuler(turn)
            p.resetBasePositionAndOrientation(block, (x, y, z), quaternion, client)
            p.resetBaseVelocity(block, (0, 0, 0), (0, 0, 0), client)
        joints = _joints(pose, closed=False)
        for joint, value in enumerate(joints):
            p.resetJointState(self._gripper, joint, value, 0.0, client)
        self._servo(joints.tolist())
        for _ in range(LAID):
            p.stepSimulation(client)

    def move(self, start: Array, end: Array, *, closed: bool) -> None:
        """Move the servo's target from a pose (6,) to another in a period, the fingers at once."""
        a, b = _joints(start, closed=closed), _joints(end, closed=closed)
        for joints in np.linspace(a, b, self._substeps + 1)[1:].tolist():
            self._servo(joints)
            self._p.stepSimulation(self._client)

    def hand(self) -> Array:
        """Return the tool centre point (m), its euler xyz (rad), the fingers' gap (m), (7,).

        Raises UnstablePhysics if the gripper is far away or not finite.
        """
        x, y, z, yaw, pitch, roll, left, right = self._states(self._gripper)
        return _sane(np.array([x, y, z, roll, pitch, yaw, left + right]))

    def scene(self) -> Scene:
        """Return the scene; UnstablePhysics if a block is far away or not finite."""
        p, blocks = self._p, []
        for block in self._blocks:
            position, quaternion = p.getBasePositionAndOrientation(block, self._client)
            blocks.append((*position, *p.getEulerFromQuaternion(quaternion)))
        drawer, slider, switch = self._states(self._desk)
        return Scene(drawer, slider, switch, _sane(np.array(blocks)))

    def camera(self, name: str) -> Camera:
        """Return a camera at its present pose: `static` before the desk, `gripper` on the wrist."""
        pixels = self._pixels[name]
        if name == "static":
            at, target, up, fovy = STATIC.position, STATIC.target, STATIC.up, STATIC.fovy
        else:
            x, y, z, *turn = self.hand()[:6].tolist()
            turned = self._p.getMatrixFromQuaternion(self._p.getQuaternionFromEuler(turn))
            axes = np.reshape(turned, (3, 3))
            eye, look = (x, y, z) + axes @ WRIST[0], (x, y, z) + axes @ WRIST[1]
            at, target, up, fovy = tuple(eye), tuple(look), tuple(axes[:, 1]), WRIST_FOVY
        return Camera(name, at, target, up, fovy, pixels, pixels)

    def image(self, name: str) -> CameraImage:
        """Return a camera's present image."""
        p, view = self._p, self.camera(name)
        lit = lights(self._states(self._desk)[2])
        if lit != self._shown:
            p.changeVisualShape(
                self._lamp, -1, rgbaColor=LIT if lit else DARK, physicsClientId=self._client
            )
            self._shown = lit
        # TinyRenderer treats the corner of a pixel as its middle, so shift by half a pixel.
        half = NEAR * np.tan(np.radians(view.fovy) / 2) / view.height  # half a pixel, at NEAR
        edges = (1 - view.width) * half, (1 + view.width) * half
        _, _, rgb, depth, _ = p.getCameraImage(
            view.width,
            view.height,
            p.computeViewMatrix(view.position, view.target, view.up),
            p.computeProjectionMatrix(*edges, *edges, NEAR, FAR),
            lightDirection=(-0.5, -1.0, 2.0),
            lightColor=(1, 1, 1),
            lightAmbientCoeff=0.62,
            lightDiffuseCoeff=0.42,
            lightSpecularCoeff=0,
            shadow=0,
            flags=p.ER_NO_SEGMENTATION_MASK,
            renderer=p.ER_TINY_RENDERER,
            physicsClientId=self._client,
        )
        shape = (view.height, view.width)
        buffer = np.reshape(depth, shape).astype(np.float64)
        metres = FAR * NEAR / (FAR - (FAR - NEAR) * buffer)
        colours = np.reshape(rgb, (*shape, 4))[..., :3].astype(np.uint8)
        return CameraImage(np.ascontiguousarray(colours), metres.astype(np.float32))

    def snapshot(self) -> Kept:
        """Return the whole state of the physics; it is freed with the value."""
        number = self._p.saveState(self._client)
        self._p.restoreState(number, physicsClientId=self._client)
        return Kept(self, number)

    def restore(self, kept: Kept) -> None:
        """Restore a `snapshot` of this world."""
        self._p.restoreState(kept.number, physicsClientId=self._client)

    def close(self) -> None:
        """Disconnect from PyBullet; the world is unusable afterwards."""
        self._free()

    def _states(self, body: int) -> list[float]:
        states = self._p.getJointStates(body, range(self._count[body]), self._client)
        return [state[0] for state in states]

    def _servo(self, joints: list[float]) -> None:
        """Set the targets of the gripper's motors."""
        self._p.setJointMotorControlArray(
            self._gripper,
            MOTORS,
            self._p.POSITION_CONTROL,
            targetPositions=joints,
            forces=FORCES,
            positionGains=GAINS,
            physicsClientId=self._client,
        )

    def _build(self) -> None:
        p, client = self._p, self._client
        p.setPhysicsEngineParameter(
            fixedTimeStep=TIMESTEP,
            numSolverIterations=30,
            deterministicOverlappingPairs=1,
            physicsClientId=client,
        )
        p.setGravity(0, 0, -9.81, physicsClientId=client)
        flags = {"useFixedBase": True, "physicsClientId": client}
        self._desk = p.loadURDF(str(FOLDER / "desk.urdf"), **flags)
        self._gripper = p.loadURDF(str(FOLDER / "gripper.urdf"), **flags)
        self._count = {b: p.getNumJoints(b, client) for b in (self._desk, self._gripper)}
        for joint, force in enumerate(FRICTION.values()):
            p.setJointMotorControl2(
                self._desk, joint, p.VELOCITY_CONTROL, force=force, physicsClientId=client
            )
        for finger in (6, 7):
            p.changeDynamics(self._gripper, finger, lateralFriction=1.5, physicsClientId=client)
        half = (BLOCK / 2,) * 3
        self._blocks = [self._box(half, (*rgb, 1), mass=0.05) for rgb in COLOURS.values()]
        for number, block in enumerate(self._blocks):
            at = (0.15 * (number - 1), 0, BLOCK / 2)
            p.resetBasePositionAndOrientation(block, at, (0, 0, 0, 1), client)
            p.changeDynamics(
                block,
                -1,
                lateralFriction=0.7,
                activationState=p.ACTIVATION_STATE_DISABLE_SLEEPING,
                physicsClientId=client,
            )
        self._box((1.5, 1.5, 0.02), FLOOR_RGBA, at=(0, 0, FLOOR - 0.02))
        self._lamp = self._box((0.045, 0.035, 0.045), DARK, at=LAMP, touches=False)

    def _box(
        self,
        half: tuple[float, float, float],
        rgba: tuple[float, ...],
        *,
        at: tuple[float, float, float] = (0.0, 0.0, 0.0),
        mass: float = 0.0,
        touches: bool = True,
    ) -> int:
        """Return a new box; without mass it is fixed."""
        p, client = self._p, self._client
        shape = -1
        if touches:
            shape = p.createCollisionShape(p.GEOM_BOX, halfExtents=half, physicsClientId=client)
        seen = p.createVisualShape(
            p.GEOM_BOX, halfExtents=half, rgbaColor=rgba, physicsClientId=client
        )
        body: int = p.createMultiBody(mass, shape, seen, at, physicsClientId=client)
        return body


class Kept:
    """A state in PyBullet's memory, by its number."""

    def __init__(self, world: World, number: int) -> None:
        """Take the state's world and number; the state lives as long as both."""
        self.number = number
        self._world = weakref.ref(world)

    def __del__(self) -> None:
        """Free the state in PyBullet."""
        world = self._world()
        if world is not None and world._free.alive:
            world._p.removeState(self.number, physicsClientId=world._client)


def _sane(numbers: Array) -> Array:
    """Return poses unchanged; UnstablePhysics if one diverged."""
    if not np.abs(numbers).max() < FARTHEST:  # NaN fails too
        raise UnstablePhysics("tabletop: the simulation diverged; reset and drop the episode")
    return numbers


def _joints(pose: Array, *, closed: bool) -> Array:
    """Return the gripper's joints (8,) at a pose (6,): x, y, z, yaw, pitch, roll, fingers."""
    fingers = 0.0 if closed else OPEN
    return np.array([*pose[:3], pose[5], pose[4], pose[3], fingers, fingers])


def _bullet() -> Any:
    """Return the module pybullet; MissingDependency if it is not installed."""
    try:
        import pybullet
    except ImportError:
        raise MissingDependency(
            'env tabletop needs PyBullet: pip install "latentplan[bullet]"'
        ) from None
    return pybullet
