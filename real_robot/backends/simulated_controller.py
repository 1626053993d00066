"""A simulated arm, its controller and its camera, for a dry run over any transport.

The arm follows trajectory points as ros2_control's joint trajectory controller does: from its
present setpoint to the point, within the point's time. Without another point it stays there. The
caller receives points over its transport and publishes the joint states.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any, NamedTuple

import numpy as np

from latentplan.errors import RobotError
from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.robot import Setpoint, in_order
from latentplan.robots.description import Arm
from latentplan.robots.simulated_arm import SimulatedArm
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array

FLOOR, LIGHT = (0.36, 0.38, 0.40, 1.0), (0.5, 0.5, 0.5)


class JointStates(NamedTuple):
    """The joint states that an arm's driver publishes."""

    stamp: float  # s since 1970
    names: tuple[str, ...]
    q: tuple[float, ...]  # rad
    dq: tuple[float, ...]  # rad/s


class Move(NamedTuple):
    """A motion of the controller: cubic in time if an end velocity was given, else linear."""

    begin: float  # s
    end: float  # s
    q: Array  # (2, J) rad, at begin and end
    dq: Array | None  # (2, J) rad/s; None: linear

    def at(self, now: float) -> tuple[Array, Array]:
        """Return q and dq (J,) at `now` s; at rest before and after."""
        span = self.end - self.begin
        share = 1.0 if span <= 0 else (now - self.begin) / span
        if share >= 1:
            return self.q[1], np.zeros_like(self.q[1])
        way = self.q[1] - self.q[0]
        if self.dq is None:
            return self.q[0] + share * way, way / span
        # Hermite's cubic, and its derivative.
        a, b = span * self.dq[0] - way, way - span * self.dq[1]
        other = 1 - share
        q = other * self.q[0] + share * self.q[1] + share * other * (other * a + share * b)
        bend = (other - share) * (other * a + share * b) + share * other * (b - a)
        return q, (way + bend) / span


class SimulatedController:
    """A simulated arm with a joint trajectory controller, in real time."""

    def __init__(self, arm: Arm, *, rate: float = 100.0) -> None:
        """Start at home; publish `rate` joint states a second."""
        self.arm, self.dt = arm, 1 / rate
        self.names = tuple(joint.name for joint in arm.joints)
        config = SimulatedDriver.Config(dt=self.dt, rate=rate, real_time=True)
        self._driver = SimulatedDriver(arm, config)
        self._driver.open()
        reading = self._driver.reading()
        assert reading is not None
        self._move = Move(0, 0, np.array([reading.q, reading.q]), None)
        self._gripper = reading.gripper

    def follow(
        self,
        names: Sequence[str],
        positions: Sequence[float],
        velocities: Sequence[float] = (),
        *,
        due: float = 0.0,
    ) -> None:
        """Move to `positions`, rad, within `due` s, with end `velocities`, rad/s.

        RobotError if a joint is missing or a number is not finite; the arm goes on as before.
        """
        now = self._driver.now()
        q, dq = self._move.at(now)
        end = in_order(self.names, names, positions)
        if not np.isfinite([*end, *velocities]).all():
            raise RobotError(f"controller: found {list(positions)}, every number must be finite")
        ends = None
        if len(velocities):
            ends = np.array([dq, in_order(self.names, names, velocities)])
        self._move = Move(now, now + due, np.array([q, end]), ends)

    def grip(self, width: float) -> None:
        """Open or close the gripper to `width` m."""
        self._gripper = width

    def run(self, publish: Callable[[JointStates], None], leave: Event) -> None:
        """Move, and publish the joint states, until `leave` is set."""
        driver, due = self._driver, self._driver.now()
        while not leave.is_set():
            due += self.dt
            q, dq = self._move.at(due)
            driver.write(Setpoint(q, dq, np.zeros_like(q), self._gripper))
            driver.wait(due)
            reading = driver.reading()
            assert reading is not None
            states = JointStates(
                time.time(), self.names, tuple(reading.q.tolist()), tuple(reading.dq.tolist())
            )
            publish(states)
            due = max(due, driver.now() - self.dt)
        driver.close()


class SimulatedCamera:
    """A camera that renders the arm at its joint states, over a plain table."""

    def __init__(self, arm: Arm, camera: Camera) -> None:
        """Take the arm and the camera; MissingDependency if nothing can be rendered."""
        from latentplan.sim.rendering import mujoco_renderer

        self._names = tuple(joint.name for joint in arm.joints)
        self._arm = SimulatedArm(arm, scene=_table(mujoco_renderer.mujoco))
        self._q = self._arm.q
        self._mujoco = mujoco_renderer.mujoco
        self._renderer = mujoco_renderer.Renderer(self._arm.model, camera)
        self.image()  # the first render is slow

    def see(self, names: Sequence[str], positions: Sequence[float]) -> None:
        """Set the joints to `positions`, rad; joints of other arms are ignored."""
        if set(self._names) <= set(names):
            self._q = in_order(self._names, names, positions)

    def image(self) -> Array:
        """Return the image (h, w, 3) uint8."""
        data = self._arm.data
        data.qpos[: len(self._q)] = self._q
        self._mujoco.mj_kinematics(self._arm.model, data)
        return self._renderer.image(data)

    def run(
        self, publish: Callable[[float, Array], None], leave: Event, *, fps: float = 30.0
    ) -> None:
        """Publish images, each with its time in s since 1970, until `leave` is set."""
        due = time.monotonic()
        while not leave.is_set():
            publish(time.time(), self.image())
            due = max(due + 1 / fps, time.monotonic())
            leave.wait(due - time.monotonic())


def _table(mujoco: Any) -> Any:
    """Return the MjSpec of a table."""
    spec = mujoco.MjSpec()
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = LIGHT, LIGHT
    plane, down = mujoco.mjtGeom.mjGEOM_PLANE, (0, 0, -1e-3)
    spec.worldbody.add_geom(name="table", type=plane, size=(2, 2, 0.1), pos=down, rgba=FLOOR)
    return spec


def camera_options(parser: ArgumentParser) -> None:
    """Add the options of arm and camera to a command line; `camera_of` reads them."""
    parser.add_argument("--robot", default="panda", help="a name, or a file that describes an arm")
    parser.add_argument("--camera", default="front", help="its name")
    parser.add_argument("--size", type=int, default=64, help="pixels, of a side")
    parser.add_argument("--position", type=float, nargs=3, default=(1.1, 0.0, 0.7), help="m")
    parser.add_argument("--fps", type=float, default=30.0)


def camera_of(given: Namespace) -> Camera:
    """Return the camera that a command line describes."""
    return Camera(given.camera, tuple(given.position), width=given.size, height=given.size)
