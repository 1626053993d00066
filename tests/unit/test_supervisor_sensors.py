"""What the supervisor checks of sensors and clocks: silence, jumps, delay, unsound numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from supervised_arm import DT, HOME, MOVE, PIXELS, STAY, STILL, SupervisedArm, check_fault, in_state

from latentplan.errors import RobotError
from latentplan.real_robot.loop.supervisor import State
from latentplan.real_robot.robot import CameraImage, Command, Reading


def test_silent_joints_are_a_fault() -> None:
    arm = SupervisedArm().moving()
    arm.muted = {"joints"}
    check_fault(arm, "joints: silent for", within=0.1 + DT)


def test_a_silent_camera_is_a_fault() -> None:
    arm = SupervisedArm().moving()
    arm.muted = {"front"}
    check_fault(arm, "front: silent for", within=0.2 + DT)


def test_a_frozen_clock_counts_as_silence() -> None:
    arm = SupervisedArm().moving()
    arm.muted = {"joints"}
    frozen, begin = arm.now, arm.now
    while arm.supervisor.state is State.ARMED:
        arm.supervisor.hear(Reading(frozen, arm.now, arm.q, arm.dq, 0.04), {})
        arm.tick(MOVE)
    assert "joints: silent" in arm.supervisor.reason
    assert arm.now - begin <= 0.1 + 2 * DT


def test_readings_out_of_order_are_left_out() -> None:
    arm = SupervisedArm().moving()
    newest = arm.supervisor.reading
    arm.supervisor.hear(Reading(arm.now - 0.05, arm.now, HOME, STILL, 0.0), {})
    assert arm.supervisor.reading is newest


@pytest.mark.parametrize("jump", [-100.0, 100.0])
def test_a_clock_that_jumps_is_a_fault(jump: float) -> None:
    arm = SupervisedArm().moving()
    reading = Reading(arm.now + jump, arm.now + 0.001, arm.q, arm.dq, 0.04)
    arm.supervisor.hear(reading, {})
    arm.tick()
    assert arm.supervisor.state is State.STOPPING
    assert "its clock went" in arm.supervisor.reason


NOT_FINITE = (np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("field", ["stamp", "received"])
@pytest.mark.parametrize("source", ["joints", "front"])
def test_a_time_that_is_not_finite_is_a_fault(source: str, field: str, value: float) -> None:
    arm = SupervisedArm().moving()
    arm.muted = {source}
    now = arm.now + 0.001
    if source == "joints":
        reading = Reading(now, now, arm.q, arm.dq, 0.04)
        arm.supervisor.hear(reading._replace(**{field: value}), {})
    else:
        image = CameraImage(now, now, PIXELS)
        arm.supervisor.hear(None, {"front": image._replace(**{field: value})})
    check_fault(arm, f"{source}: its time stamp is", within=DT)


@pytest.mark.parametrize("value", [*NOT_FINITE, -100.0, 9.9])
def test_a_clock_of_the_robot_that_goes_back_is_a_fault(value: float) -> None:
    arm = SupervisedArm().moving()
    setpoint = arm.supervisor.tick(Command(np.zeros(8), 99, arm.now), now=value)
    assert arm.supervisor.state is State.STOPPING
    assert "the robot's clock went from" in arm.supervisor.reason
    assert setpoint is not None and np.isfinite(setpoint.q).all()
    arm.until_silent()
    with pytest.raises(RobotError, match="reset: refused"):
        arm.supervisor.reset(now=value)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_nothing_is_armed_or_reset_at_a_time_that_is_not_finite(value: float) -> None:
    arm = in_state(State.READY)
    with pytest.raises(RobotError, match="arm: refused"):
        arm.supervisor.arm(now=value)
    arm = in_state(State.FAULT)
    arm.tick()
    with pytest.raises(RobotError, match="reset: refused"):
        arm.supervisor.reset(now=value)


@pytest.mark.parametrize("source", ["joints", "front"])
def test_data_from_the_future_is_a_fault(source: str) -> None:
    """A driver that takes the time from another clock than the robot's."""
    arm = SupervisedArm().moving()
    arm.muted = {source}
    later = arm.now + 0.3
    if source == "joints":
        arm.supervisor.hear(Reading(later, later, arm.q, arm.dq, 0.04), {})
    else:
        arm.supervisor.hear(None, {"front": CameraImage(later, later, PIXELS)})
    arm.tick(MOVE)
    assert arm.supervisor.state is State.STOPPING
    assert f"{source}: received at" in arm.supervisor.reason


@pytest.mark.parametrize("jump", [-0.4, 0.4])
def test_a_small_jump_of_a_sensor_s_clock_in_motion(jump: float) -> None:
    """Forward is no harm; back, the data counts as silent until the clock has caught up."""
    arm = SupervisedArm().moving()
    arm.muted = {"joints"}
    for _ in range(30):
        stamp = arm.now + DT + jump
        arm.supervisor.hear(Reading(stamp, arm.now + DT, arm.q, arm.dq, 0.04), {})
        arm.tick(MOVE)
        if arm.supervisor.state is not State.ARMED:
            break
    assert (arm.supervisor.state is State.ARMED) == (jump > 0)
    assert jump > 0 or "joints: silent" in arm.supervisor.reason


def test_data_that_comes_later_and_later_is_a_fault() -> None:
    """A queue that fills up: every message arrives, each a little later after it was measured."""
    arm = SupervisedArm(clock_jump=0.5).moving()
    arm.muted = {"front"}
    begin = arm.now
    while arm.supervisor.state is State.ARMED:
        arm.tick(MOVE)
        stamp = begin + 0.5 * (arm.now - begin)
        image = CameraImage(stamp, arm.now, PIXELS)
        arm.supervisor.hear(None, {"front": image})
        assert arm.now - begin < 1.2
    assert "front: its clock has fallen 0.5" in arm.supervisor.reason


def test_a_clock_that_drifts_by_its_crystal_is_no_fault() -> None:
    arm = SupervisedArm().moving()
    arm.muted = {"joints"}
    for _ in range(100):
        arm.q, arm.dq = arm.supervisor.safety.q, STILL
        for _ in range(8):
            arm.now += 1.0  # hours, as far as the sensor goes
            arm.supervisor.hear(Reading(0.9995 * arm.now, arm.now, arm.q, arm.dq, 0.04), {})
        assert not arm.supervisor._odd
        arm.tick(STAY)
    assert "clock" not in arm.supervisor.reason


@pytest.mark.parametrize(
    "change",
    [{"q": None}, {"q": ["a"] * 7}, {"dq": "fast"}, {"gripper": None}, {"q": [[0.0] * 7] * 2}],
)
def test_a_reading_of_other_things_than_numbers_is_a_fault(change: dict[str, Any]) -> None:
    arm = SupervisedArm().moving()
    reading = Reading(arm.now + 0.001, arm.now + 0.001, arm.q, arm.dq, 0.04)
    arm.supervisor.hear(reading._replace(**change), {})
    arm.tick(STAY)
    assert arm.supervisor.state is State.STOPPING
    assert arm.supervisor.reason.startswith("joints: ")
    assert isinstance(arm.supervisor.reading, Reading)
    assert np.isfinite(arm.supervisor.reading.q).all()  # the last sound one


@pytest.mark.parametrize(
    "change", [{"q": HOME * np.nan}, {"dq": STILL + np.inf}, {"q": HOME[:5]}, {"gripper": np.nan}]
)
def test_a_reading_that_is_not_finite_or_of_another_arm_is_a_fault(change: dict[str, Any]) -> None:
    arm = SupervisedArm().moving()
    reading = Reading(arm.now + 0.001, arm.now + 0.001, arm.q, arm.dq, 0.04)
    arm.supervisor.hear(reading._replace(**change), {})
    arm.muted = {"joints"}
    setpoint = arm.tick(STAY)
    assert arm.supervisor.state is State.STOPPING
    assert setpoint is not None and np.isfinite(setpoint.q).all()
    arm.until_silent()
    with pytest.raises(RobotError, match="reset: refused; joints: silent"):
        arm.supervisor.reset(now=arm.now)


def test_three_late_ticks_are_a_fault_and_two_are_not() -> None:
    arm = SupervisedArm().moving()
    for _ in range(3):
        for dt in (0.04, 0.04, DT):
            arm.tick(MOVE, dt=dt)
    assert arm.supervisor.state is State.ARMED
    assert arm.supervisor.health(now=arm.now).overruns == 6
    for _ in range(3):
        arm.tick(MOVE, dt=0.04)
    assert arm.supervisor.state is State.STOPPING
    assert "the machine is too busy" in arm.supervisor.reason
