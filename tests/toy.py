"""A tiny deterministic env: bright discs on a dark table that a pick and a drag push about."""

from __future__ import annotations

import os
from dataclasses import dataclass
from time import sleep
from typing import Any

import numpy as np

from latentplan.errors import UnstablePhysics, check_range
from latentplan.types import ActionSpec, Array, ArraySpec, Observation, PickSpec, Spec, Step

SIZE = 64  # pixels
TABLE = 0.3  # metres from the middle to the edge of the picture
COLOURS = np.array([(255, 170, 160), (170, 255, 160), (160, 170, 255), (250, 250, 160)], np.uint8)


class ToyEnv:
    @dataclass(frozen=True)
    class Config:
        discs: int = 3  # 1 to 4
        radius: float = 0.03  # metres, of a disc; a pick further away does nothing
        reach: float = 0.1  # metres of a drag of 1
        unstable: float = 0.0  # chance that a step raises UnstablePhysics
        crash: float = 0.0  # chance that a step ends the process, as a segmentation fault would

        def __post_init__(self) -> None:
            check_range("ToyEnv.discs", self.discs, 1, len(COLOURS))
            check_range("ToyEnv.unstable", self.unstable, 0.0, 1.0)
            check_range("ToyEnv.crash", self.crash, 0.0, 1.0)

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()
        self.data_spec = Spec(
            observation={
                "rgb": ArraySpec((SIZE, SIZE, 3), "uint8", "picture from above"),
                "keypoints": ArraySpec((self.config.discs, 2), "float32", "disc middles, metres"),
            },
            action=ActionSpec((-1.0,) * 4, (1.0,) * 4, "pick x, pick y, drag x, drag y"),
            env="toy",
            privileged=("keypoints",),
            pick=PickSpec("rgb", (150, 150, 150)),
        )
        centre = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
        self._x, self._y = np.meshgrid(centre * TABLE, -centre * TABLE)
        self._rng = np.random.default_rng(0)
        self._points = np.zeros((self.config.discs, 2))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._points = self._rng.uniform(-0.8, 0.8, self._points.shape) * TABLE
        return self._observe(), {}

    def step(self, action: Array) -> Step:
        if self._rng.random() < self.config.unstable:
            raise UnstablePhysics("toy: the discs flew off")
        if self.config.crash and self._rng.random() < self.config.crash:
            os._exit(7)
        action = np.clip(np.asarray(action, np.float64), -1, 1)
        away = np.linalg.norm(self._points - action[:2] * TABLE, axis=1)
        nearest = int(away.argmin())
        if away[nearest] <= self.config.radius:
            moved = self._points[nearest] + action[2:] * self.config.reach
            self._points[nearest] = np.clip(moved, -0.9 * TABLE, 0.9 * TABLE)
        return Step(self._observe(), 0.0, False, False, {})

    def snapshot(self) -> Any:
        return self._points.copy(), self._rng.bit_generator.state

    def restore(self, state: Any) -> Observation:
        self._points, self._rng.bit_generator.state = state[0].copy(), state[1]
        return self._observe()

    def distance(self, observation: Observation, goal: Observation) -> float:
        away = observation["keypoints"] - goal["keypoints"]
        return float(np.linalg.norm(away, axis=1).mean())

    def oracle(self, observation: Observation, goal: Observation) -> Array:
        points, target = observation["keypoints"], goal["keypoints"]
        worst = int(np.linalg.norm(target - points, axis=1).argmax())
        drag = (target[worst] - points[worst]) / self.config.reach
        drag /= max(1.0, float(np.abs(drag).max()))
        return np.concatenate([points[worst] / TABLE, drag]).astype(np.float32)

    def expert(self, observation: Observation, rng: np.random.Generator) -> Array:
        return self.oracle(observation, {"keypoints": np.zeros_like(self._points)})

    def close(self) -> None:
        pass

    def _observe(self) -> Observation:
        picture = np.full((SIZE, SIZE, 3), 40, np.uint8)
        for (x, y), colour in zip(self._points, COLOURS, strict=False):
            picture[(self._x - x) ** 2 + (self._y - y) ** 2 <= self.config.radius**2] = colour
        return {"rgb": picture, "keypoints": self._points.astype(np.float32)}


class SlowToyEnv(ToyEnv):
    def step(self, action: Array) -> Step:
        sleep(0.01)
        return super().step(action)
