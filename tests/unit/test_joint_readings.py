"""Joint states as drivers of the field send them: without velocities, in halves, with wheels."""

from __future__ import annotations

import logging
import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latentplan.errors import RobotError
from latentplan.real_robot.backends import joint_readings, rosbridge
from latentplan.real_robot.backends.joint_readings import JointReadings
from latentplan.real_robot.backends.topics import Inbox, Topics
from latentplan.real_robot.robot import in_order
from latentplan.robots.description import load

PANDA = load("panda")
NAMES = [joint.name for joint in PANDA.joints]
LEFT, RIGHT = NAMES[:3], NAMES[3:]
DT = 0.01


def take(readings: JointReadings, names: list[str], k: int, dq: Any = None, **more: Any) -> None:
    """Take message `k`: joint i of the arm is at (i + 1) t rad, so it moves at i + 1 rad/s."""
    t = k * DT
    q = [(NAMES.index(n) + 1) * t if n in NAMES else math.nan for n in names]
    given = {"stamp": t, "received": 100 + t} | more
    readings.take(names, q, [] if dq is None else dq, **given)


@pytest.mark.parametrize("dq", [[], [math.nan] * 7, [1.0, *[math.nan] * 6]])
def test_velocities_that_are_missing_are_measured_and_that_is_said_once(
    dq: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    readings = JointReadings(NAMES)
    with caplog.at_level(logging.WARNING):
        for k in range(30):
            take(readings, NAMES, k, dq)
            reading = readings.reading(0.04)
            assert (reading is None) == (k < 5)  # no velocity is made up
            if reading is not None:
                assert (reading.stamp, reading.received) == (k * DT, 100 + k * DT)
                np.testing.assert_allclose(reading.dq, range(1, 8), rtol=1e-6)
    (record,) = caplog.records
    assert "joint_states.velocity: none of" in record.getMessage()
    assert ("joint1" in record.getMessage()) == (len(dq) == 0 or math.isnan(dq[0]))


def test_a_velocity_that_is_infinite_is_no_missing_one() -> None:
    readings = JointReadings(NAMES)
    take(readings, NAMES, 0, [math.inf] * 7)
    reading = readings.reading(0.04)
    assert reading is not None and np.isinf(reading.dq).all()  # the supervisor's fault


def test_halves_of_two_drivers_become_one_reading_as_old_as_the_older(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joint_readings, "PATIENCE", math.inf)
    readings = JointReadings(NAMES)
    take(readings, [*LEFT, "wheel"], 1, [0.0] * 4)
    assert readings.reading(0.04) is None
    for k in range(2, 10):
        take(readings, RIGHT[::-1], k, [1.0] * 4, stamp=500 + k * DT)  # of another clock
        reading = readings.reading(0.04)
        assert reading is not None and reading.received == pytest.approx(100 + (k - 1) * DT)
        take(readings, [*LEFT, "wheel"], k, [0.0] * 4)
        reading = readings.reading(0.04)
        assert reading is not None and reading.received == pytest.approx(100 + k * DT)
        np.testing.assert_allclose(reading.q, np.arange(1, 8) * k * DT)
        assert reading.dq.tolist() == [0, 0, 0, 1, 1, 1, 1]
        assert reading.stamp == pytest.approx(250 + k * DT)
    for k in range(10, 30):  # one falls silent
        take(readings, LEFT, k, [0.0] * 3)
    reading = readings.reading(0.04)
    assert reading is not None and reading.received == pytest.approx(100 + 9 * DT)
    for k in range(30, 40):  # or freezes
        take(readings, LEFT, k, [0.0] * 3)
        take(readings, RIGHT, k, [1.0] * 4, stamp=500 + 9 * DT)
    reading = readings.reading(0.04)
    assert reading is not None and reading.received == pytest.approx(100 + 9 * DT)


def test_a_joint_that_leaves_its_company_is_an_error_at_once() -> None:
    readings = JointReadings(NAMES)
    take(readings, LEFT, 1, [0.0] * 3)
    take(readings, RIGHT, 1, [0.0] * 4)
    with pytest.raises(RobotError, match=r"joint_states\.name: joint4 missing, found joint5"):
        take(readings, RIGHT[1:], 2, [0.0] * 3)
    with pytest.raises(RobotError, match=r"joint1, joint2 missing"):
        take(readings, NAMES[2:5], 2, [0.0] * 3)
    assert readings.reading(0.04) is not None


def test_the_first_messages_of_a_driver_may_lack_a_joint() -> None:
    readings = JointReadings(NAMES)
    take(readings, NAMES[1:], 1, [0.0] * 6)
    take(readings, NAMES, 2, [0.0] * 7)
    reading = readings.reading(0.04)
    assert reading is not None and reading.stamp == 2 * DT


def test_a_half_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_readings, "PATIENCE", 0.02)
    readings = JointReadings(NAMES)
    now = time.monotonic()
    take(readings, LEFT, 1, [0.0] * 3, received=now)
    take(readings, ["wheel"], 1, [0.0], received=now)
    assert readings.reading(0.04) is None
    time.sleep(0.03)
    with pytest.raises(RobotError, match="joint4, joint5, joint6, joint7 missing, found wheel, j"):
        readings.reading(0.04)


def test_wheels_of_any_kind_are_left_out() -> None:
    """A wheel turns without limit, twice of one name, and has no position that is a number."""
    inbox = Inbox(PANDA, [], Topics())
    names = ["wheel", *NAMES, "wheel"]
    values = SimpleNamespace(
        name=names, position=[1e9, *range(7), math.nan], velocity=[math.nan, *range(7), 5.0]
    )
    inbox.joints(values, stamp=1.0)
    reading = inbox.reading()
    assert reading is not None and reading.q.tolist() == list(range(7))


@pytest.mark.parametrize("velocity", [None, [], [None] * 7])
def test_rosbridge_carries_joints_without_velocities(velocity: Any) -> None:
    values: dict[str, Any] = {"name": NAMES, "position": [0.5] * 7}
    if velocity is not None:
        values["velocity"] = velocity
    states = rosbridge._joint_state(values)
    assert states.position == [0.5] * 7
    inbox = Inbox(PANDA, [], Topics())
    for k in range(10):
        inbox.joints(states, stamp=k * DT)
    reading = inbox.reading()
    assert reading is not None and not reading.dq.any()


def test_joints_are_taken_by_name() -> None:
    found = in_order(["a", "b"], ["b", "finger", "a"], [2.0, 9.0, 1.0])
    np.testing.assert_array_equal(found, [1, 2])
    with pytest.raises(RobotError, match=r"joint_states\.name: c, d missing, found b, a"):
        in_order(["a", "c", "d"], ["b", "a"], [1, 2])
    with pytest.raises(RobotError, match="found 1 values for the names a, b"):
        in_order(["a"], ["a", "b"], [1])
    with pytest.raises(RobotError, match="each joint needs one name"):
        in_order(["a"], ["a", "a"], [1, 2])
