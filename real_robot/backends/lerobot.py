"""LeRobot's arms as a backend: any arm of its class `Robot`, by the names of its motors."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentplan.data.images import as_rgb
from latentplan.errors import ConfigError, MissingDependency, RobotError, check_range
from latentplan.real_robot.backends.measured_velocity import MeasuredVelocity
from latentplan.real_robot.robot import CameraImage, Reading, Setpoint, View
from latentplan.robots.description import Arm
from latentplan.types import Array

UNITS = {"degrees": np.pi / 180, "rad": 1.0, "normalised": 0.01}  # rad, or a share, per unit
NORMS = {"degrees": "degrees", "range_m100_100": "normalised"}  # LeRobot's names
CLIPPED = 1e-3  # rad, largest difference of LeRobot's command from the setpoint


class LerobotDriver:
    """A driver on LeRobot's `get_observation` and `send_action`, positions by motor name.

    Both calls block, so a separate thread makes them, `rate` times a second, and at once if a
    setpoint waits; a bus that hangs appears as a silent sensor. LeRobot measures no velocities:
    they are the slope of the positions over `window`. Calibrate the arm before, with
    `lerobot-calibrate`.
    """

    @dataclass(frozen=True)
    class Config:
        """The robot, and the units of its motors; neither is guessed."""

        kind: str = ""  # LeRobot's name: so101_follower; lerobot_robot_* packages add more
        values: dict[str, Any] = field(default_factory=dict)  # config fields: port, id, cameras
        motors: tuple[str, ...] = ()  # motor of each joint, in order; empty: the joints' names
        unit: str = ""  # unit of NAME.pos: degrees, rad, or normalised (-100 to 100)
        zero: tuple[float, ...] = ()  # rad of each joint if its motor reads 0; empty: 0
        sign: tuple[int, ...] = ()  # 1, or -1 if a motor turns the other way; empty: 1
        low: tuple[float, ...] = ()  # rad of each joint at -100; for normalised only
        high: tuple[float, ...] = ()  # rad of each joint at 100; for normalised only
        gripper: str = ""  # motor; empty: no sensor, the width is as sent
        gripper_closed: float = 0.0  # reading of that motor when closed
        gripper_open: float = 100.0  # reading when open to the described width
        rate: float = 50.0  # readings a second
        window: float = 0.1  # s over which velocities are measured
        still: bool = False  # an unchanged image counts as new (in simulation)

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            if self.unit not in ("", *UNITS):
                known = ", ".join(UNITS)
                raise ConfigError(f"LerobotDriver.unit: found {self.unit!r}, allowed are {known}")
            if not set(self.sign) <= {1, -1}:
                raise ConfigError(f"LerobotDriver.sign: found {self.sign}, allowed are 1 and -1")
            for name in ("zero", "low", "high"):
                for value in getattr(self, name):
                    check_range(f"LerobotDriver.{name}", value, -1e3, 1e3)
            for name in ("gripper_closed", "gripper_open"):
                check_range(f"LerobotDriver.{name}", getattr(self, name), -1e6, 1e6)
            check_range("LerobotDriver.rate", self.rate, 1, 1000)
            check_range("LerobotDriver.window", self.window, 1e-3, 1)
            if self.gripper and abs(self.gripper_open - self.gripper_closed) < 1e-9:
                raise ConfigError(
                    f"LerobotDriver.gripper_open: {self.gripper_open} is gripper_closed, too"
                )

    def __init__(
        self,
        arm: Arm,
        config: Config | None = None,
        *,
        cameras: Sequence[View] = (),
        robot: Any = None,
    ) -> None:
        """Take the arm, its cameras, and a `lerobot.robots.Robot`; None: make one of `kind`.

        Raises ConfigError if the config does not define the motors' units.
        """
        self.arm = arm
        self.config = config or self.Config()
        self.cameras = tuple(camera.name for camera in cameras)
        self._views = tuple(cameras)
        self._robot = robot
        self._motors = self.config.motors or tuple(joint.name for joint in arm.joints)
        self._zero, self._scale = _line(arm, self.config)  # q = zero + scale * value
        self._lock = threading.Lock()
        self._wake, self._leave = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._reading: Reading | None = None
        self._images: dict[str, CameraImage] = {}
        self._wrong = ""
        self._setpoint: Setpoint | None = None
        self._width = arm.gripper.width  # m, as sent
        self._velocity = MeasuredVelocity(self.config.window)

    def open(self) -> None:
        """Connect, and start to read.

        Raises MissingDependency without LeRobot; RobotError if it does not connect, is not
        calibrated, or its motors, units or cameras differ from the config.
        """
        if self._robot is None:
            self._robot = _made(self.config)
        robot = self._robot
        try:
            robot.connect(calibrate=False)
        except _failures() as e:
            self._hang_up()
            raise RobotError(f"lerobot.connect: {_why(e)}") from None
        self._reading, self._images, self._setpoint, self._wrong = None, {}, None, ""
        self._velocity = MeasuredVelocity(self.config.window)
        try:
            self._check(robot)
        except BaseException:
            robot.disconnect()
            raise
        self._leave.clear()
        self._thread = threading.Thread(target=self._run, name="lerobot", daemon=True)
        self._thread.start()

    def now(self) -> float:
        """Return the machine's monotonic clock, s."""
        return time.monotonic()

    def wait(self, until: float) -> None:
        """Wait until `until` s on that clock."""
        time.sleep(max(0.0, until - time.monotonic()))

    def reading(self) -> Reading | None:
        """Return the newest joint reading; RobotError, once, if LeRobot raised an error."""
        with self._lock:
            wrong, self._wrong = self._wrong, ""
            if wrong:
                raise RobotError(wrong)
            return self._reading

    def images(self) -> Mapping[str, CameraImage]:
        """Return the newest image of each camera."""
        with self._lock:
            return dict(self._images)

    def write(self, setpoint: Setpoint) -> None:
        """Queue a setpoint until the bus is free; a newer one replaces it."""
        with self._lock:
            self._setpoint = setpoint
        self._wake.set()

    def close(self) -> None:
        """Send the queued setpoint and disconnect; motors hold unless `values` release them."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._leave.set()
        self._wake.set()
        thread.join(2.0)
        if thread.is_alive():
            raise RobotError("lerobot: its bus does not answer; cut the arm's power")
        try:
            self._robot.disconnect()
        except _failures() as e:
            raise RobotError(f"lerobot.disconnect: {_why(e)}") from None

    def _hang_up(self) -> None:
        """Disconnect what a failed `connect` has opened."""
        if self._robot.is_connected:
            with suppress(*_failures()):  # `open` raises the reason of the failure
                self._robot.disconnect()

    def _run(self) -> None:
        """Communicate with the robot until `close`; no other thread does."""
        due, failures = time.monotonic(), _failures()
        while True:
            leaving = self._leave.is_set()
            with self._lock:
                setpoint, self._setpoint = self._setpoint, None
                self._wake.clear()
            try:
                if setpoint is not None:
                    self._send(setpoint)
                if leaving:
                    return
                if time.monotonic() >= due:
                    self._observe()
                    due = max(due + 1 / self.config.rate, time.monotonic())
            except failures as e:
                with self._lock:
                    self._wrong = self._wrong or f"lerobot: {_why(e)}"
                due = time.monotonic() + 1 / self.config.rate
            except RobotError as e:
                with self._lock:
                    self._wrong = self._wrong or str(e)
            self._wake.wait(max(0.0, due - time.monotonic()))

    def _send(self, setpoint: Setpoint) -> None:
        c = self.config
        values = (setpoint.q - self._zero) / self._scale
        action = {f"{m}.pos": float(v) for m, v in zip(self._motors, values, strict=True)}
        if c.gripper:
            share = setpoint.gripper / self.arm.gripper.width
            action[f"{c.gripper}.pos"] = c.gripper_closed + share * (
                c.gripper_open - c.gripper_closed
            )
        sent = self._robot.send_action(dict(action))
        for motor, scale in zip(self._motors, self._scale, strict=True):
            asked, went = action[f"{motor}.pos"], float(sent.get(f"{motor}.pos", np.nan))
            if not abs(asked - went) * abs(scale) <= CLIPPED:
                raise RobotError(
                    f"lerobot.{motor}: setpoint {asked:.2f}, LeRobot sent {went:.2f}; its own "
                    "limit is tighter: raise max_relative_target, or lower the filter's velocity"
                )
        self._width = setpoint.gripper

    def _observe(self) -> None:
        c = self.config
        seen = self._robot.get_observation()
        now = time.monotonic()
        q = self._zero + self._scale * np.array([float(seen[f"{m}.pos"]) for m in self._motors])
        width = self._width
        if c.gripper:
            share = float(seen[f"{c.gripper}.pos"]) - c.gripper_closed
            width = share / (c.gripper_open - c.gripper_closed) * self.arm.gripper.width
        dq = self._velocity.take(now, q)
        reading = Reading(now, now, q, np.zeros_like(q) if dq is None else dq, width)
        shown = {name: as_rgb(f"lerobot.{name}", np.array([seen[name]])) for name in self.cameras}
        with self._lock:
            self._reading = reading
            for name, (pixels,) in shown.items():
                before = self._images.get(name)
                # LeRobot returns its newest image, which may be old if a camera has stopped.
                if c.still or before is None or not np.array_equal(before.pixels, pixels):
                    self._images[name] = CameraImage(now, now, pixels)

    def _check(self, robot: Any) -> None:
        """Raise RobotError if the robot does not fit its description."""
        c, features = self.config, robot.observation_features
        wanted = [*self._motors, *filter(None, [c.gripper])]
        known = [k.removesuffix(".pos") for k in features if k.endswith(".pos")]
        missing = [m for m in wanted if f"{m}.pos" not in features]
        if missing:
            raise RobotError(
                f"lerobot: {', '.join(missing)}: not a motor; found {', '.join(known)}; set motors"
            )
        unused = [k for k in robot.action_features if k.removesuffix(".pos") not in wanted]
        if unused:
            raise RobotError(
                f"lerobot: {', '.join(unused)} would get no command; name it in motors or gripper"
            )
        if not robot.is_calibrated:
            raise RobotError(
                f"lerobot: {robot} is not calibrated; run lerobot-calibrate with the same id"
            )
        motors = getattr(getattr(robot, "bus", None), "motors", {})
        for motor in self._motors:
            norm = getattr(getattr(motors.get(motor), "norm_mode", None), "value", "")
            if norm and NORMS.get(norm) != c.unit:
                raise RobotError(
                    f"lerobot.{motor}: reports {norm}, unit is {c.unit!r}; set unit (and zero, or "
                    "low and high) to match it"
                )
        for view in self._views:
            shape = tuple(features.get(view.name, ()))
            if shape != (view.height, view.width, 3):
                images = {k: v for k, v in features.items() if isinstance(v, tuple)}
                raise RobotError(
                    f"lerobot.{view.name}: found {shape or 'no such camera'}, described as "
                    f"{(view.height, view.width, 3)}; cameras of the robot: {images or 'none'}"
                )


def _line(arm: Arm, c: LerobotDriver.Config) -> tuple[Array, Array]:
    """Return zero and scale (J,), q = zero + scale * value; ConfigError if they are not set."""
    count = len(arm.joints)
    where = "LerobotDriver"
    if not c.unit:
        raise ConfigError(
            f"{where}.unit: not set; give the unit of NAME.pos: {', '.join(UNITS)} (see "
            "use_degrees in LeRobot's config of the robot)"
        )
    given = {"motors": c.motors, "zero": c.zero, "sign": c.sign, "low": c.low, "high": c.high}
    for name, values in given.items():
        if values and len(values) != count:
            raise ConfigError(
                f"{where}.{name}: found {len(values)}, the arm {arm.name} has {count} joints"
            )
    if c.unit == "normalised":
        if not c.low or not c.high or c.zero or c.sign:
            raise ConfigError(
                f"{where}.low, high: need rad of each joint at -100 and at 100 (and neither zero "
                "nor sign) if the unit is normalised"
            )
        low, high = np.array(c.low), np.array(c.high)
        for joint, ends in zip(arm.joints, np.sort([low, high], axis=0).T, strict=True):
            if joint.low < ends[0] or joint.high > ends[1]:
                raise ConfigError(
                    f"{where}.{joint.name}: described from {joint.low} to {joint.high} rad, the "
                    f"motor goes from {ends[0]} to {ends[1]}; narrow the description"
                )
        return (low + high) / 2, (high - low) / 2 * UNITS[c.unit]
    if c.low or c.high:
        raise ConfigError(f"{where}.low, high: are for the unit normalised; set zero and sign")
    sign = np.array(c.sign or [1] * count, np.float64)
    return np.array(c.zero or [0.0] * count, np.float64), sign * UNITS[c.unit]


def _made(c: LerobotDriver.Config) -> Any:
    """Return the robot that the config describes; MissingDependency without LeRobot."""
    try:
        import draccus
        from lerobot.robots import RobotConfig, make_robot_from_config
        from lerobot.utils.import_utils import register_third_party_plugins
    except ImportError as e:
        raise MissingDependency(
            f'backend lerobot needs {e.name}: pip install "latentplan[lerobot-arms]"'
        ) from None
    _register(c.kind)
    register_third_party_plugins()
    known = RobotConfig.get_known_choices()
    if c.kind not in known:
        raise ConfigError(
            f"LerobotDriver.kind: found {c.kind!r}, known: {', '.join(sorted(known))}"
        )
    values = dict(c.values)
    # LeRobot's default lets the arm drop when it disconnects.
    if "disable_torque_on_disconnect" in getattr(known[c.kind], "__dataclass_fields__", {}):
        values.setdefault("disable_torque_on_disconnect", False)
    try:
        return make_robot_from_config(draccus.decode(RobotConfig, {"type": c.kind, **values}))
    except (draccus.utils.DraccusException, *_failures()) as e:
        raise ConfigError(f"LerobotDriver.values: {c.kind}: {_why(e)}") from None


def _register(kind: str) -> None:
    """Import LeRobot's own package of a robot, which registers its config."""
    import importlib
    import pkgutil

    from lerobot import robots

    for package in pkgutil.iter_modules(robots.__path__):
        # so101_follower lies in so_follower, reachy2 in reachy2.
        if package.ispkg and kind.startswith(package.name.split("_")[0]):
            try:
                importlib.import_module(f"{robots.__name__}.{package.name}")
            except ImportError as e:
                raise MissingDependency(
                    f"LeRobot's {kind} needs {e.name}: pip install lerobot with the extra for it"
                ) from None


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors that LeRobot raises if motors or cameras fail."""
    # Its DeviceNotConnectedError is a ConnectionError, thus an OSError.
    return (OSError, RuntimeError, ValueError, KeyError, ImportError, TypeError)


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{lines[0]} ({type(error).__name__})".strip()
