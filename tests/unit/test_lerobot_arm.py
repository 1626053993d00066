"""Arms that LeRobot drives, as a backend."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot_arm import NAMES, SlowArm, SlowConfig

from latentplan.errors import ConfigError, LatentplanError, MissingDependency, RobotError
from latentplan.real_robot.backends.lerobot import LerobotDriver
from latentplan.real_robot.loop.local import LocalRobot
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.real_robot.robot import Setpoint
from latentplan.robots.description import Arm, Gripper, Joint
from latentplan.sim.rendering.cameras import Camera

LIMITS = {"low": -1.5, "high": 1.5, "velocity": 1.0, "acceleration": 10.0, "jerk": 500.0}
ARM = Arm(
    name="small",
    joints=tuple(
        Joint(name=name, alpha=alpha, a=a, **LIMITS)
        for name, alpha, a in (("pan", 0.0, 0.0), ("lift", 1.57, 0.0), ("flex", 0.0, 0.2))
    ),
    gripper=Gripper(length=0.1, width=0.06),
)
CONFIG: dict[str, Any] = {"unit": "degrees", "gripper": "claw", "rate": 100.0}
FRONT = Camera("front", (0.5, 0.0, 0.5), width=32, height=24)


def driver(robot: SlowArm | None = None, **values: Any) -> LerobotDriver:
    robot = robot or SlowArm(SlowConfig())
    config = LerobotDriver.Config(**{**CONFIG, **values})
    return LerobotDriver(ARM, config, cameras=[FRONT], robot=robot)


def heard(found: LerobotDriver, *, after: float = 0.0) -> Any:
    """Return the first reading that came after a time on the driver's clock."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        reading = found.reading()
        if reading is not None and reading.stamp > after:
            return reading
        time.sleep(0.002)
    raise AssertionError("no reading came")


def test_numbers_go_there_and_back_by_the_names_of_motors() -> None:
    robot = SlowArm(SlowConfig(start=(10.0, -20.0, 30.0, 25.0)))
    found = driver(robot, zero=(0.0, 0.5, 0.0), sign=(1, 1, -1))
    found.open()
    try:
        reading = heard(found)
        wanted = np.radians([10, -20, -30]) + [0, 0.5, 0]
        np.testing.assert_allclose(reading.q, wanted, atol=1e-12)
        assert reading.gripper == pytest.approx(0.06 / 4)
        found.write(Setpoint(np.array([0.1, 0.6, 0.2]), np.zeros(3), np.zeros(3), 0.03))
        end = time.monotonic() + 5
        while not robot.sent and time.monotonic() < end:
            time.sleep(0.002)
        degrees = np.degrees([0.1, 0.1, -0.2]).tolist()
        sent = dict(zip((f"{n}.pos" for n in NAMES), [*degrees, 50.0], strict=True))
        assert robot.sent[0] == pytest.approx(sent)
    finally:
        found.close()
    assert not robot.is_connected
    found.close()  # twice


def test_normalised_numbers_need_both_ends_of_every_joint() -> None:
    ends = {"unit": "normalised", "low": (-1.6, -2.0, 1.5), "high": (1.6, 2.0, -1.5)}
    found = driver(SlowArm(SlowConfig(start=(50.0, -100.0, 100.0, 0.0))), **ends)
    found._check = lambda robot: None  # type: ignore[method-assign]  # its motors speak degrees
    found.open()
    np.testing.assert_allclose(heard(found).q, [0.8, -2.0, -1.5], atol=1e-12)
    found.close()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"unit": ""}, r"LerobotDriver\.unit: not set; give the unit of NAME\.pos"),
        ({"unit": "turns"}, r"LerobotDriver\.unit: found 'turns', allowed are degrees"),
        ({"zero": (0.0,)}, r"LerobotDriver\.zero: found 1, the arm small has 3 joints"),
        ({"sign": (1, 2, 1)}, r"LerobotDriver\.sign: found"),
        ({"unit": "normalised"}, r"need rad of each joint at -100 and at 100"),
        ({"low": (0.0,) * 3}, r"are for the unit normalised"),
        (
            {"unit": "normalised", "low": (-1.6, -1.0, -1.6), "high": (1.6,) * 3},
            r"LerobotDriver\.lift: described from -1\.5 to 1\.5 rad, the motor goes from -1\.0",
        ),
        ({"motors": ("pan", "lift", "elbow")}, r"elbow: not a motor; found pan, lift, flex, claw"),
        ({"gripper": ""}, r"claw\.pos would get no command; name it in motors or gripper"),
        ({"gripper_open": 0.0}, r"LerobotDriver\.gripper_open: 0\.0 is gripper_closed"),
    ],
)
def test_what_was_not_said_is_not_guessed(values: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, RobotError), match=says):
        driver(**values).open()


def test_another_robot_than_described_is_refused_and_left_disconnected() -> None:
    robot = SlowArm(SlowConfig())
    robot.is_calibrated = False
    with pytest.raises(RobotError, match=r"is not calibrated; run lerobot-calibrate"):
        driver(robot).open()
    assert not robot.is_connected
    found = LerobotDriver(
        *(ARM, LerobotDriver.Config(**CONFIG)), cameras=[replace(FRONT, width=64)], robot=robot
    )
    robot.is_calibrated = True
    with pytest.raises(RobotError, match=r"front: found \(24, 32, 3\), described as \(24, 64, 3\)"):
        found.open()
    robot.broken = ConnectionError("no port /dev/ttyACM0\nmore")
    with pytest.raises(RobotError, match=r"lerobot\.connect: no port /dev/ttyACM0 \(Conn"):
        found.open()


def test_the_arm_goes_where_it_is_sent_and_a_failing_bus_stops_it() -> None:
    robot = SlowArm(SlowConfig())
    found = driver(robot, still=True)
    config = SafetyFilter.Config(velocity=0.5, low=(-2, -2, -2), high=(2, 2, 2), age=0.5)
    patient = Supervisor.Config(joints_age=0.3, overruns=100, image_age=0.5)
    supervisor = Supervisor(SafetyFilter(ARM, config), patient, cameras=found.cameras)
    with LocalRobot(found, supervisor) as arm:
        start = arm.observe()
        assert start["front"].shape == (24, 32, 3)
        for _ in range(5):
            arm.send(np.array([0.4, -0.2, 0.0, 1.0]))
        q = arm.observe()["q"]
        assert 0.08 < q[0] < 0.25 and q[1] == pytest.approx(-q[0] / 2, abs=0.03)
        robot.broken = RuntimeError("bus: no answer from motor 2")
        with pytest.raises(RobotError, match=r"lerobot: bus: no answer from motor 2"):
            for _ in range(20):
                arm.send(np.array([0.4, 0.0, 0.0, 1.0]))
        robot.broken = None


def test_what_lerobot_clips_is_told() -> None:
    robot = SlowArm(SlowConfig())
    robot.limit = 5.0  # as max_relative_target does
    found = driver(robot)
    found.open()
    found.write(Setpoint(np.array([0.5, 0.0, 0.0]), np.zeros(3), np.zeros(3), 0.0))
    with pytest.raises(RobotError, match=r"lerobot\.pan: setpoint 28\.65, LeRobot sent 5\.00"):
        for _ in range(1000):
            found.reading()
            time.sleep(0.002)
    found.close()


def test_a_image_that_a_camera_left_behind_is_no_new_one() -> None:
    robot = SlowArm(SlowConfig())
    found = driver(robot)
    found.open()
    first = heard(found)
    heard(found, after=first.stamp + 0.03)
    before = found.images()["front"]
    robot.image = np.full((24, 32, 3), 7, np.uint8)
    later = heard(found, after=time.monotonic() + 0.02)
    after = found.images()["front"]
    found.close()
    assert before.stamp <= first.stamp < after.stamp <= later.stamp
    assert (after.pixels == 7).all() and (before.pixels == 0).all()


def test_without_lerobot_its_extra_is_named() -> None:
    try:
        import lerobot  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependency, match=r"latentplan\[lerobot-arms\]"):
            LerobotDriver(ARM, LerobotDriver.Config(unit="degrees", kind="so101_follower")).open()
    else:
        pytest.skip("LeRobot is installed")


def test_lerobots_own_robots_are_made_by_name(tmp_path: Path) -> None:
    pytest.importorskip("lerobot", reason="needs LeRobot, in an environment of its own")
    for kind, values, says in (
        ("so1O1_follower", {}, r"LerobotDriver\.kind: found 'so1O1_follower', known: .*so101"),
        ("so101_follower", {}, r"LerobotDriver\.values: so101_follower: .*port"),
        ("so101_follower", {"port": "/dev/none", "id": "a"}, r"(lerobot\.connect: |needs )"),
    ):
        values = {**values, **({"calibration_dir": str(tmp_path)} if values else {})}
        config = LerobotDriver.Config(unit="degrees", kind=kind, values=values)
        with pytest.raises(LatentplanError, match=says):
            LerobotDriver(ARM, config).open()
