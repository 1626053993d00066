"""A simulated arm as a backend: MuJoCo's dynamics, servos of limited torque, cameras, a clock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentplan.errors import ConfigError, check_range
from latentplan.real_robot.robot import CameraImage, Reading, Setpoint
from latentplan.robots.description import Arm
from latentplan.robots.simulated_arm import SimulatedArm
from latentplan.sim.deformable.scene import Scene, lay
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array

TABLE = (0.36, 0.38, 0.40, 1.0)  # red, green, blue, opacity
BOX = (0.62, 0.42, 0.24, 1.0)
Box = tuple[float, float, float, float, float, float]  # from x, y, z to x, y, z; m


class SimulatedDriver:
    """A simulated arm over a table that follows setpoints with position servos.

    Its torques are limited, and it collides with the table, itself and the boxes, so it may be
    blocked or lag. The clock is the simulation's, which advances in `wait` alone, as fast as it
    can; in real time it is the machine's. Without new setpoints the arm holds the last position.
    A `Scene` holds an object to carry: a rope or a cloth that follows the gripper, with its own
    cameras. The other cameras show the arm, but not the object.
    """

    @dataclass(frozen=True)
    class Config:
        """The scene on the table, and the rates of sensors and clock."""

        dt: float = 0.02  # s in which a setpoint is reached
        rate: float = 100.0  # joint readings a second
        fps: float = 30.0  # images a second, of each camera
        real_time: bool = False  # wait for the machine's clock
        scene: str = ""  # env or preset of the object on the table, such as rope; empty: none
        seed: int = 0  # of the object's placement

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("SimulatedDriver.dt", self.dt, 1e-3, 0.1)
            check_range("SimulatedDriver.rate", self.rate, 1, 1000)
            check_range("SimulatedDriver.fps", self.fps, 0.1, 1000)
            check_range("SimulatedDriver.seed", self.seed, 0)

    def __init__(
        self,
        arm: Arm,
        config: Config | None = None,
        *,
        cameras: Sequence[Camera] = (),
        boxes: Sequence[Box] = (),
        scene: Scene | None = None,
    ) -> None:
        """Take the arm, its cameras, obstacle boxes, and the object on the table.

        `scene` defaults to that of the config.
        """
        self.arm = arm
        self.config = config or self.Config()
        named = self.config.scene
        self.scene = scene or (lay(named, seed=self.config.seed) if named else None)
        brought = () if self.scene is None else self.scene.cameras()
        self.cameras = tuple(camera.name for camera in (*cameras, *brought))
        if len(set(self.cameras)) < len(self.cameras):
            raise ConfigError(f"cameras: found {list(self.cameras)}; each needs a name of its own")
        self._views = tuple(cameras)
        self._simulation = SimulatedArm(arm, scene=_scene(boxes), solid=True)
        self._renderers: dict[str, Any] = {}
        self._time = self._start = 0.0  # s: the simulation's time; the machine's time at its start
        self._reading: Reading | None = None
        self._images: dict[str, CameraImage] = {}
        self._shown = -1  # count of the scene's moves at its last images

    def open(self) -> None:
        """Start the clock, with the arm at home; MissingDependency if nothing can be rendered."""
        if self._views:
            from latentplan.sim.rendering import mujoco_renderer

            mujoco_renderer.self_test()
            model = self._simulation.model
            make = mujoco_renderer.Renderer
            self._renderers = {view.name: make(model, view) for view in self._views}
        self._simulation.reset()
        self._time, self._reading, self._images = 0.0, None, {}
        self._hold(self._simulation.q, self._simulation.gripper)
        self._start = time.monotonic()
        self._sense()

    def now(self) -> float:
        """Return the clock, s since `open`."""
        if self.config.real_time:
            return time.monotonic() - self._start
        return self._time

    def wait(self, until: float) -> None:
        """Advance the simulation until `until` s."""
        if self.config.real_time:
            time.sleep(max(0.0, until - self.now()))
            until = self.now()
        while self._time < until - 1e-9:
            stops = [until, _next(self._time, self.config.rate)]
            if self._due > self._time + 1e-9:
                stops.append(self._due)
            self._move(min(stops) - self._time)
            self._sense()

    def reading(self) -> Reading | None:
        """Return the newest joint reading."""
        return self._reading

    def images(self) -> Mapping[str, CameraImage]:
        """Return the newest image of each camera."""
        return self._images

    def write(self, setpoint: Setpoint) -> None:
        """Move the servos' target to the setpoint within a tick, straight from the one before."""
        self._wanted = np.append(setpoint.q, setpoint.gripper)
        self._speed = setpoint.dq
        self._due = self._time + self.config.dt

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}
        if self.scene is not None:
            self.scene.close()

    def _hold(self, q: Array, gripper: float) -> None:
        self._wanted = self._target = np.append(q, gripper)  # (J + 1,): at the end, and now
        self._speed = self._rate = np.zeros(len(q))
        self._due = self._time

    def _move(self, dt: float) -> None:
        """Advance by dt s, towards the setpoint, or hold it if it is due."""
        left = self._due - self._time
        if left > 1e-9:
            share = min(1.0, dt / left)
            self._target = self._target + share * (self._wanted - self._target)
            self._rate = self._rate + share * (self._speed - self._rate)
        else:
            self._rate = np.zeros_like(self._rate)
        q, gripper = self._target[:-1], float(self._target[-1])
        arm = self._simulation
        arm.servo(q, dq=self._rate, gripper=gripper, dt=dt)
        self._time += dt
        if self.scene is not None:
            self.scene.follow(arm.ee[:3], width=arm.gripper, dt=dt)

    def _sense(self) -> None:
        """Read the joints and take images, each if one is due."""
        arm, now = self._simulation, self._time
        if self._reading is None or now - self._reading.stamp > 1 / self.config.rate - 1e-6:
            self._reading = Reading(now, now, arm.q, arm.dq, arm.gripper)
        for name, renderer in self._renderers.items():
            if self._due_for(name):
                self._images[name] = CameraImage(now, now, renderer.image(arm.data))
        if self.scene is not None:
            self._look_at(self.scene)

    def _look_at(self, scene: Scene) -> None:
        """Take the scene's images if they are due; render only if it has moved."""
        now = self._time
        names = [camera for camera in self.cameras if camera not in self._renderers]
        if not self._due_for(names[0]):
            return
        if self._shown != scene.moves:
            self._shown = scene.moves
            self._seen = scene.images()
        for name in names:
            self._images[name] = CameraImage(now, now, self._seen[name])

    def _due_for(self, name: str) -> bool:
        before = self._images.get(name)
        return before is None or self._time - before.stamp > 1 / self.config.fps - 1e-6


def _next(now: float, rate: float) -> float:
    """Return the first multiple of 1 / rate s after `now`."""
    return float((np.floor(now * rate + 1e-6) + 1) / rate)


def _scene(boxes: Sequence[Box]) -> Any:
    """Return an MjSpec of a table and the boxes on it."""
    import mujoco

    spec = mujoco.MjSpec()
    spec.visual.quality.shadowsize = 0
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = (0.5,) * 3, (0.5,) * 3
    spec.worldbody.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=(2, 2, 0.1),
        pos=(0, 0, -1e-3),  # the base stands on it
        rgba=TABLE,
    )
    for box in boxes:
        low, high = np.array(box[:3]), np.array(box[3:])
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX, size=(high - low) / 2, pos=(low + high) / 2, rgba=BOX
        )
    spec.add_exclude(bodyname1="world", bodyname2="base")
    return spec
