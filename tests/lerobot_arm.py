"""A simulated arm of three motors and a gripper, with the interface of LeRobot's robots.

Where LeRobot is installed it is one of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

try:
    from lerobot.motors import Motor, MotorNormMode
    from lerobot.robots import Robot, RobotConfig
except ImportError:
    Robot, RobotConfig = object, object
    MOTORS: dict[str, Any] = {}
else:
    MOTORS = {
        name: Motor(i, "sts3215", MotorNormMode.DEGREES)
        for i, name in enumerate(("pan", "lift", "flex"))
    }

NAMES = ("pan", "lift", "flex", "claw")
SPEED = 200.0  # degrees/s that a motor turns at most


@dataclass
class SlowConfig(RobotConfig):
    """What LeRobot wants every robot to have."""

    id: str | None = "slow"
    calibration_dir: Any = None
    start: tuple[float, ...] = (0.0, 0.0, 0.0, 50.0)
    cameras: dict[str, Any] = field(default_factory=dict)


class SlowArm(Robot):
    """Motors that turn to where they are told at a limited speed, in degrees; the claw 0 to 100."""

    config_class, name = SlowConfig, "slow_arm"

    def __init__(self, config: SlowConfig) -> None:
        if Robot is not object:
            super().__init__(config)
        self.config = config
        self.bus = SimpleNamespace(motors=MOTORS)
        self.is_calibrated, self.limit = True, np.inf
        self.broken: Exception | None = None
        self.delay = 0.0  # s that each call takes
        self.at = np.array(config.start)
        self.goal, self.told = self.at.copy(), time.monotonic()
        self.image = np.zeros((24, 32, 3), np.uint8)
        self.sent: list[dict[str, float]] = []
        self._connected = False

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**self.action_features, "front": (24, 32, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        return {f"{name}.pos": float for name in NAMES}

    @property
    def is_connected(self) -> bool:
        return self._connected

    def connect(self, calibrate: bool = True) -> None:
        if self.broken:
            raise self.broken
        assert not calibrate, "calibrating asks at the keyboard"
        self._connected = True

    @property
    def is_calibrated(self) -> bool:
        return self._calibrated

    @is_calibrated.setter
    def is_calibrated(self, value: bool) -> None:
        self._calibrated = value

    def calibrate(self) -> None:
        raise AssertionError("calibrating asks at the keyboard")

    def configure(self) -> None:
        pass

    def get_observation(self) -> dict[str, Any]:
        self._go_on()
        positions = dict(zip((f"{name}.pos" for name in NAMES), self.at.tolist(), strict=True))
        return {**positions, "front": self.image}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self._go_on()
        wanted = np.array([action[f"{name}.pos"] for name in NAMES])
        self.goal = np.clip(wanted, self.at - self.limit, self.at + self.limit)
        self.sent.append(action)
        return dict(zip(action, self.goal.tolist(), strict=True))

    def disconnect(self) -> None:
        self._connected = False

    def _go_on(self) -> None:
        if self.broken:
            raise self.broken
        time.sleep(self.delay)
        now = time.monotonic()
        step = SPEED * (now - self.told)
        self.at = self.at + np.clip(self.goal - self.at, -step, step)
        self.told = now
