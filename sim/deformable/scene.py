"""An object on a table that an arm, simulated elsewhere, grasps and carries, tick by tick."""

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

PINCH = 0.02  # m between the fingers, at which they hold what lies there


class Scene:
    """The object of an env under the gripper of an arm that moves by itself.

    Where the fingers close, the nearest grip within the env's `pick_radius` (and REACH in height)
    is grasped, as with the env's own gripper; it keeps its place beside the end effector until
    they open. After that the object comes to rest in the time that the env gives it. What nobody
    holds and what rests is not simulated. The object does not push back, and the arm is not in its
    images: to a camera above the table an arm at home is out of view anyway.
    """

    def __init__(self, env: Deformable, *, seed: int = 0) -> None:
        """Take an env with whole picks as actions, and lay its object down."""
        if env.config.control != "pick":
            raise ConfigError(f"{env.name}.control: found {env.config.control!r}, need 'pick'")
        self.env = env
        self.goal: Observation = {}  # what shall be seen in the end
        self.moves = 0  # counts up whenever something may look different
        self.reset(seed=seed)

    def reset(self, *, seed: int, goal: Observation | None = None) -> None:
        """Lay the object down for an episode; nothing holds it. `goal` is drawn if not given."""
        options = None if goal is None else {"goal": goal}
        _, told = self.env.reset(seed=seed, options=options)
        self.goal = told["goal"]
        self._pinched, self._settling = True, 0  # fingers that are closed have to open first
        self._clock, self._ticks = 0.0, 0  # s since the reset, and timesteps that are in it
        self._before: Array | None = None  # where the end effector was
        self.moves += 1

    def cameras(self) -> tuple[Camera, ...]:
        """Return the cameras that see it, each with the name of its image."""
        placed = self.env.cameras()
        return tuple(replace(placed[camera], name=key) for key, camera in self.env.views().items())

    def observe(self) -> Observation:
        """Return what the env would show now, privileged keys included."""
        return self.env.observe()

    def images(self) -> Mapping[str, Array]:
        """Return the images (h, w, 3) uint8 by name."""
        seen = self.observe()
        return {key: seen[key] for key in self.env.views()}

    def distance(self) -> float:
        """Return how far from its goal the object is, m."""
        return self.env.distance(self.observe(), self.goal)

    def follow(self, ee: Array, *, width: float, dt: float) -> None:
        """Go on for dt s in which the end effector came to `ee` (3,), m, in a straight line.

        `width`, m, is how far the fingers are apart at its end. Raises UnstablePhysics.
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
        """Grasp when the fingers have just closed; release when they have opened."""
        engine = self.env.engine
        if pinched and not self._pinched and self.env.grasp(ee) >= 0:
            self._offset = engine.gripper() - ee
        elif self._pinched and not pinched and engine.held >= 0:
            engine.release()
            self._settling = max(1, self.env.config.rest_steps)
        self._pinched = pinched


def lay(name: str, *, seed: int = 0) -> Scene:
    """Return the scene of an env or a preset of one; see `env_of` for what is raised."""
    make, settings = env_of(name)
    return Scene(make(settings), seed=seed)


def env_of(name: str) -> tuple[Callable[[Any], Deformable], Any]:
    """Return class and settings of the env or preset `name`, which has something to carry.

    Raises UnknownName if there is none of that name, ConfigError if it has another table.
    """
    preset = config.resolve("env", name)
    make = registry.get("env", preset.base)
    if not issubclass(make, Deformable):
        raise ConfigError(
            f"scene: {name!r} has no rope or cloth that an arm could carry; use an env such as "
            "rope or cloth"
        )
    return make, config.from_values(make.Config, preset.values)
