"""Domain randomisation: quantities drawn for each episode, or for each step.

Tobin et al. 2017 (arXiv 1703.06907) for images, Peng et al. 2018 (arXiv 1710.06537) for physics,
noise and latency. All quantities are uniform within their ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from latentplan.errors import ConfigError, check_range
from latentplan.sim.rendering.appearance import Appearance
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array

Range = tuple[float, ...]  # (low, high); () does not randomise the quantity

OBJECT = ("friction", "mass", "stiffness", "damping", "length", "radius", "size")
LIMITS = {  # limits of a range; the env's config sets those of the object's quantities
    "object_colour": (0.0, 1.0),
    "table_colour": (0.0, 1.0),
    "texture": (0.0, 1.0),
    "light": (0.1, 2.0),
    "light_tilt": (0.0, 80.0),
    "camera_shift": (-1.0, 1.0),
    "camera_turn": (-45.0, 45.0),
    "camera_zoom": (0.5, 2.0),
    "action_noise": (0.0, 1.0),
    "rgb_noise": (0.0, 255.0),
    "depth_noise": (0.0, 1.0),
    "latency": (0.0, 100.0),
}


@dataclass(frozen=True)
class Randomisation:
    """A range (low, high) for each quantity; none is randomised by default.

    The object and the latency are always drawn per episode. Picks find the object by its colour:
    keep `object_colour` times the light, dimmer if it is tilted, within the env's `PickSpec`.
    """

    per: str = "episode"  # whether the others are drawn per "episode" or per "step"
    friction: Range = ()  # as the env's setting of the same name
    mass: Range = ()  # kg, as the env's setting
    stiffness: Range = ()  # in the unit of the env's setting
    damping: Range = ()  # in the unit of the env's setting
    length: Range = ()  # m, of a rope
    radius: Range = ()  # m, of a rope
    size: Range = ()  # m, of a cloth's side
    object_colour: Range = ()  # red, green and blue, each 0 to 1
    table_colour: Range = ()  # red, green and blue, each 0 to 1
    texture: Range = ()  # contrast of a random pattern on the table, 0 to 1
    light: Range = ()  # factor on the brightness
    light_tilt: Range = ()  # degrees from the vertical, of a light from any side
    camera_shift: Range = ()  # m, of each camera along each axis of the world
    camera_turn: Range = ()  # degrees, of each camera about each of its own axes
    camera_zoom: Range = ()  # factor on the tangent of half of each camera's field of view
    action_noise: Range = ()  # std of noise on each number of an action, 1 = its bound
    rgb_noise: Range = ()  # std of noise on each colour of a pixel, levels of 255
    depth_noise: Range = ()  # std of noise on each pixel's depth, m
    latency: Range = ()  # delay of an action, in actions; control=velocity

    def __post_init__(self) -> None:
        """Raise a ConfigError that names the range if one is invalid, inverted or too wide."""
        if self.per not in ("episode", "step"):
            raise ConfigError(f"randomise.per: {self.per!r} is not one of episode, step")
        for name, span in self.ranges().items():
            where = f"randomise.{name}"
            if len(span) != 2:
                raise ConfigError(f"{where}: found {list(span)}, need [low, high], or [] for none")
            low, high = LIMITS.get(name, (None, None))
            for end in span:
                check_range(where, end, low, high)
            if span[0] > span[1]:
                raise ConfigError(
                    f"{where}: {list(span)} is inverted, need low <= high; "
                    f"write [{span[1]:g}, {span[0]:g}]"
                )

    def ranges(self) -> dict[str, Range]:
        """Return the ranges that are set, by name."""
        spans = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "per"}
        return {name: span for name, span in spans.items() if span}


def check(where: str, config: Any) -> None:
    """Raise ConfigError if `config.randomise` has a range that its env does not support."""
    ranges = config.randomise.ranges()
    if "latency" in ranges and config.control != "velocity":
        raise ConfigError(
            f"{where}.randomise.latency: needs control=velocity, found {config.control!r}: "
            "a pick waits until the object rests"
        )
    known = [f.name for f in fields(config) if f.name in OBJECT]
    for name in [name for name in OBJECT if name in ranges]:
        if name not in known:
            raise ConfigError(
                f"{where}.randomise.{name}: there is no such setting; known: {', '.join(known)}"
            )
        for end in ranges[name]:  # raises as the setting itself would
            replace(config, **{"randomise": Randomisation(), name: end})


@dataclass(frozen=True)
class State:
    """The inputs of the conditions at one step."""

    key: int  # seed of the episode's draws
    noise: int  # seed of the sensors' noise
    step: int  # steps since the reset
    waiting: tuple[tuple[float, ...], ...] = ()  # delayed actions


class Conditions:
    """The draws of an episode. Each number depends on its name, the key and the step alone.

    Therefore `state` restores a step exactly, and the draws of one range do not depend on the other
    ranges.
    """

    def __init__(
        self, ranges: Randomisation, *, cameras: Mapping[str, Camera], action: int, motion: int
    ) -> None:
        """Take the env's own cameras; an action has `action` numbers, `motion` of them noisy."""
        self.ranges = ranges.ranges()
        self._cameras = dict(cameras)
        self._action, self._motion = action, motion
        self._each_step = ranges.per == "step"
        self._quantities = {f.name: i for i, f in enumerate(fields(ranges))}
        self.state = State(0, noise=0, step=0)
        self.values: dict[str, float] = {}  # current values, by name
        self.begin(0)

    def begin(self, key: int) -> None:
        """Draw an episode's conditions from the seed `key`."""
        self.restore(State(key, noise=key, step=0))
        late = int(self.values.get("latency", 0))
        still = ((0.0,) * self._action,) * late
        self.restore(State(key, noise=key, step=0, waiting=still))

    def restore(self, state: State) -> None:
        """Restore the conditions of a state."""
        self.state = state
        self.values = {}
        for name, (low, high) in self.ranges.items():
            fixed = name in OBJECT or name == "latency" or not self._each_step
            rng = self._rng(state.key, 0 if fixed else state.step, self._quantities[name])
            self.values |= self._draw(name, rng, low, high)

    def act(self, action: Array) -> Array:
        """Advance by one step; return the executed action (A,), delayed and noisy."""
        state = self.state
        first, *rest = (*state.waiting, tuple(action.tolist()))
        now, waiting = np.array(first), tuple(rest)
        self.restore(State(state.key, noise=state.noise, step=state.step + 1, waiting=waiting))
        std = self.values.get("action_noise", 0.0)
        if std:
            rng = self._rng(state.key, self.state.step, len(self._quantities))
            now[: self._motion] += rng.normal(0, std, self._motion)
        return np.asarray(np.clip(now, -1, 1))

    def object(self) -> dict[str, float]:
        """Return the drawn settings of the object, by name."""
        return {name: value for name, value in self.values.items() if name in OBJECT}

    def appearance(self) -> Appearance:
        """Return the appearance of the scene."""
        v = self.values
        tilt = v.get("light_tilt")
        return Appearance(
            object=self._colour("object_colour"),
            table=self._colour("table_colour"),
            brightness=v.get("light", 1.0),
            light=None if tilt is None else (np.radians(tilt), np.radians(v["light_heading"])),
            contrast=v.get("texture", 0.0),
            pattern=int(v.get("texture_seed", 0)),
        )

    def cameras(self) -> dict[str, Camera]:
        """Return the cameras at their drawn poses, by name."""
        return {name: self._moved(camera) for name, camera in self._cameras.items()}

    def noisy(self, sensor: str, image: Array, *, number: int) -> Array:
        """Return an image with the noise of `rgb` or `depth`; `number` is the sensor's."""
        std = self.values.get(f"{sensor}_noise", 0.0)
        if not std:
            return image
        rng = self._rng(self.state.noise, self.state.step, len(self._quantities) + 1 + number)
        noisy = image + rng.normal(0, std, image.shape)
        if sensor == "rgb":
            return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        return np.maximum(noisy, 0).astype(np.float32)

    def per_step(self) -> dict[str, float]:
        """Return the values that change from step to step."""
        if not self._each_step:
            return {}
        return {k: v for k, v in self.values.items() if k not in OBJECT and k != "latency"}

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(key)

    def _draw(
        self, name: str, rng: np.random.Generator, low: float, high: float
    ) -> dict[str, float]:
        """Return the drawn parts of a quantity, by name."""
        if name == "latency":
            return {name: float(rng.integers(round(low), round(high) + 1))}
        parts = {
            "object_colour": [f"{name}_{colour}" for colour in ("red", "green", "blue")],
            "table_colour": [f"{name}_{colour}" for colour in ("red", "green", "blue")],
            "camera_shift": [f"{name}_{camera}_{a}" for camera in self._cameras for a in "xyz"],
            "camera_turn": [f"{name}_{camera}_{a}" for camera in self._cameras for a in "xyz"],
            "camera_zoom": [f"{name}_{camera}" for camera in self._cameras],
        }.get(name, [name])
        drawn = {part: float(rng.uniform(low, high)) for part in parts}
        if name == "light_tilt":
            drawn["light_heading"] = float(rng.uniform(0, 360))
        if name == "texture":
            drawn["texture_seed"] = float(rng.integers(2**24))  # exact as a float32
        return drawn

    def _colour(self, name: str) -> Any:
        parts = [self.values.get(f"{name}_{colour}") for colour in ("red", "green", "blue")]
        return None if parts[0] is None else tuple(parts)

    def _moved(self, camera: Camera) -> Camera:
        def of(quantity: str) -> list[float]:
            return [self.values.get(f"{quantity}_{camera.name}_{axis}", 0.0) for axis in "xyz"]

        return camera.moved(
            of("camera_shift"),
            np.radians(of("camera_turn")).tolist(),
            zoom=self.values.get(f"camera_zoom_{camera.name}", 1.0),
        )
