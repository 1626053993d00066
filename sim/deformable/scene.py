"""An object on a table that an arm of another simulation grasps and carries, tick by tick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from latentplan import config, registry
from latentplan.errors import ConfigError
from latentplan.sim.deformable.env import Deformable
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array, Observation

PINCH = 0.02  # m between the fingers, below which they hold an object


class Scene:
    """The object of an env under the gripper of a separately simulated arm.

    When the fingers close, they grasp the nearest grip within the env's `pick_radius` (and REACH in
    height), as the env's own gripper does; it keeps its offset to the end effector until they open.
    Then the object comes to rest within the env's time. An object at rest that is not held is not
    simulated. The object exerts no force on the arm, and the arm is not in its images: for a camera
    above the table an arm at home is out of view anyway.
    """

    def __init__(self, env: Deformable, *, seed: int = 0) -> None:
        """Take an env with whole picks as actions, and lay its object down."""
        if env.config.control != "pick":
            raise ConfigError(f"{env.name}.control: found {env.config.control!r}, need 'pick'")
        self.env = env
        self.goal: Observation = {}  # the observation to reach
        self.moves = 0  # number of changes of the object's state, for images
        self.reset(seed=seed)

    def reset(self, *, seed: int, goal: Observation | None = None) -> None:
        """Lay the object down for an episode, not held. Without `goal` one is drawn."""
        options = None if goal is None else {"goal": goal}
        _, info = self.env.reset(seed=seed, options=options)
        self.goal = info["goal"]
        self._pinched, self._settling = True, 0  # closed fingers have to open first
        self._clock, self._ticks = 0.0, 0  # s since the reset, and the same in timesteps
        self._before: Array | None = None  # last position of the end effector
        self.moves += 1

    def cameras(self) -> tuple[Camera, ...]:
        """Return the cameras, each with the name of its image."""
        placed = self.env.cameras()
        return tuple(replace(placed[camera], name=key) for key, camera in self.env.views().items())

    def observe(self) -> Observation:
        """Return the env's present observation, privileged keys included."""
        return self.env.observe()

    def images(self) -> Mapping[str, Array]:
        """Return the images (h, w, 3) uint8 by name."""
        seen = self.observe()
        return {key: seen[key] for key in self.env.views()}

    def distance(self) -> float:
        """Return the distance of the object from its goal, m."""
        return self.env.distance(self.observe(), self.goal)

    def follow(self, ee: Array, *, width: float, dt: float) -> None:
        """Simulate dt s, in which the end effector moved straight to `ee` (3,), m.

        `width`, m, is the distance of the fingers at the end. Raises UnstablePhysics.
        """
        engine = self.env.engine
        before = ee if self._before is None else self._before
        first = self._clock
        self._clock, self._before = first + dt, ee
        done, self._ticks = self._ticks, int(self._clock / engine.timestep + 1e-6)
        ticks = np.arange(done, self._ticks) + 1
        if engine.held >= 0 and len(ticks):
            share = (ticks * engine.timestep - first)[:, None] / dt
            engine.follow(self._offset + before + share * (ee - before))
            engine.check()
            self.moves += 1
        elif self._settling > 0 and len(ticks):
            engine.wait(len(ticks))
            engine.check()
            self._settling -= len(ticks)
            if self._settling <= 0:
                engine.rest()
            self.moves += 1
        self._close(ee, pinched=width <= PINCH)

    def close(self) -> None:
        """Free the renderers."""
        self.env.close()

    def _close(self, ee: Array, *, pinched: bool) -> None:
        """Grasp if the fingers have just closed; release if they have opened."""
        engine = self.env.engine
        if pinched and not self._pinched and self.env.grasp(ee) >= 0:
            self._offset = engine.gripper() - ee
        elif self._pinched and not pinched and engine.held >= 0:
            engine.release()
            self._settling = max(1, self.env.config.rest_steps)
        self._pinched = pinched


def lay(name: str, *, seed: int = 0) -> Scene:
    """Return the scene of an env or a preset of one; `env_of` states the errors."""
    make, settings = env_of(name)
    return Scene(make(settings), seed=seed)


def env_of(name: str) -> tuple[Callable[[Any], Deformable], Any]:
    """Return class and settings of the env or preset `name`, which has an object to carry.

    Raises UnknownName for an unknown name, ConfigError if it is not an env of rope or cloth.
    """
    preset = config.resolve("env", name)
    make = registry.get("env", preset.base)
    if not issubclass(make, Deformable):
        raise ConfigError(
            f"scene: {name!r} has no rope or cloth that an arm could carry; use an env such as "
            "rope or cloth"
        )
    return make, config.from_values(make.Config, preset.values)
