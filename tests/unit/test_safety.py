"""The filter between planner and motors: limits for any input, faults, exact braking."""

from __future__ import annotations

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentplan.errors import ConfigError, MissingDependency, RobotError, UnknownName
from latentplan.real_robot.loop.safety import CONTROLS, SafetyFilter
from latentplan.real_robot.robot import Command, Setpoint
from latentplan.robots.description import Arm, Joint, load
from latentplan.robots.kinematics import Kinematics

Config = SafetyFilter.Config
PANDA = load("panda")
HOME = PANDA.column("home")
WIDE = {"low": (-2.0, -2.0, -2.0), "high": (2.0, 2.0, 2.0)}  # a box around all that is reached


def benchmark() -> Any:
    """Return benchmarks/safety.py: its fuzzer runs here with few streams."""
    file = Path(__file__).parents[2] / "benchmarks" / "safety.py"
    spec = spec_from_file_location("benchmark_safety", file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fuzz = benchmark()


def ready(**values: Any) -> SafetyFilter:
    """Return a filter of the Panda that stands at home."""
    safety = SafetyFilter(PANDA, Config(**values))
    safety.reset(HOME, gripper=0.0, now=0.0)
    return safety


def run(safety: SafetyFilter, actions: list[Any]) -> list[Setpoint]:
    """Return the setpoints of one action a tick, by an arm that follows exactly."""
    sent = []
    for k, action in enumerate(actions):
        now = k * safety.config.dt
        sent.append(safety.step(Command(action, k, now), measured=safety.q, now=now))
    return sent


@pytest.mark.parametrize("index", range(len(fuzz.SETTINGS)))
def test_no_random_stream_breaks_a_limit(index: int) -> None:
    fuzzer = fuzz.Fuzzer(*fuzz.SETTINGS[index], seed=1000 + index)
    fuzzer.streams(12)
    assert fuzzer.broken() == []
    assert fuzzer.steps == 12 * fuzz.TICKS
    assert fuzzer.filter.interventions["late"] > 0
    if fuzz.SETTINGS[index][1].ramp < 0.1:  # else the arm hardly gets to full speed
        assert fuzzer.worst["velocity_ratio"] > 0.99
    assert fuzzer.worst["acceleration_ratio"] > 0.99  # the streams do get to the limits


def test_the_fuzzer_sees_a_broken_limit() -> None:
    fuzzer = fuzz.Fuzzer("panda", Config(), seed=5)
    fuzzer.filter.limits.velocity[:] *= 0.5  # what the fuzzer holds against, not what Ruckig knows
    fuzzer.streams(12)
    assert "velocity_ratio" in fuzzer.broken()


numbers = st.floats(width=64, allow_nan=True, allow_infinity=True)
sane = st.floats(-3, 3)
actions = st.one_of(
    st.lists(sane, min_size=8, max_size=8),
    st.lists(numbers, min_size=8, max_size=8),
    st.lists(numbers, max_size=10),
    st.none(),
    st.text(max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(
    stream=st.lists(
        st.tuples(actions, st.integers(-3, 3), st.floats(-0.5, 0.5), st.integers(1, 12)),
        min_size=1,
        max_size=12,
    ),
    control=st.sampled_from(CONTROLS),
)
def test_whatever_comes_in_what_goes_out_is_safe(stream: list[Any], control: str) -> None:
    safety = ready(control=control)
    limits, k = safety.limits, 0
    box = np.array(safety.config.low) - 1e-9, np.array(safety.config.high) + 1e-9
    for action, sequence, stamp, ticks in stream:
        for _ in range(ticks):
            k += 1
            before, now = safety.q, k * safety.config.dt
            command = Command(action, k + sequence, now + stamp)
            setpoint = safety.step(command, measured=safety.q, now=now)
            assert np.isfinite([setpoint.q, setpoint.dq, setpoint.ddq]).all()
            assert (setpoint.q >= safety.low - 1e-9).all()
            assert (setpoint.q <= safety.high + 1e-9).all()
            assert (np.abs(setpoint.q - before) <= limits.velocity * 0.02 * (1 + 1e-9)).all()
            assert (np.abs(setpoint.dq) <= limits.velocity * (1 + 1e-9)).all()
            assert (np.abs(setpoint.ddq) <= limits.acceleration * (1 + 1e-9)).all()
            ee = safety._chain.ee(setpoint.q[None])[0]
            assert (ee >= box[0]).all() and (ee <= box[1]).all()
            assert 0 <= setpoint.gripper <= PANDA.gripper.width


def test_braking_before_a_joint_limit_is_exact() -> None:
    """At full speed into a limit: as fast as can be, as late as can be, and not beyond."""
    a, v, jerk, limit = 5.0, 1.0, 100.0, 2.0
    joints = tuple(
        Joint(name=f"j{i}", low=-limit, high=limit, velocity=v, acceleration=a, jerk=jerk)
        for i in range(3)
    )
    arm = Arm(name="bar", joints=joints)
    safety = SafetyFilter(arm, Config(velocity=1, acceleration=1, ramp=0, margin=0, **WIDE))
    safety.reset(np.zeros(3), gripper=0.0, now=0.0)
    sent = run(safety, [[v, 0, 0, 0]] * 200)
    q, dq, ddq = (np.array([getattr(s, name)[0] for s in sent]) for name in ("q", "dq", "ddq"))
    left, ramp = limit - q, a / jerk  # rad; s to full acceleration
    distance = v * (v / a + ramp) / 2  # of a stop from full speed

    first = int(np.argmax(left < distance))  # the first tick at which it has to brake
    np.testing.assert_allclose(dq[15:first], v, atol=1e-9)  # at full speed until then
    assert dq[first] < v and left[first - 1] - distance < v * 0.02
    begun = (distance - left[first]) / v  # s into the stop; little speed is lost by then
    assert ddq[first] == pytest.approx(-jerk * begun, rel=0.02)

    slowing = np.isclose(ddq, -a, atol=1e-9)  # fully: what is left follows from the speed
    least = a**2 / 2 / jerk  # rad/s, the speed at which the deceleration is taken back
    expected = (dq[slowing] ** 2 - least**2) / 2 / a + a**3 / 6 / jerk**2
    np.testing.assert_allclose(left[slowing], expected, atol=1e-9)
    assert slowing.sum() >= 5

    assert left.min() >= -1e-9
    np.testing.assert_allclose(left[first + 15 :], 0, atol=1e-9)  # 0.25 s later it is there
    assert all("position" in setpoint.interventions for setpoint in sent[first + 1 :])
    assert not any("position" in setpoint.interventions for setpoint in sent[:first])


def test_a_stop_takes_as_long_as_physics_says() -> None:
    safety = ready(velocity=0.5, **WIDE)
    action = np.zeros(8)
    action[0] = 1.0
    run(safety, [action] * 40)
    v, a, jerk = 1.0, safety.limits.acceleration[0], safety.limits.jerk[0]
    begin = safety.q[0]
    sent = []
    while not safety.at_rest:
        sent.append(safety.brake())
    duration = v / a + a / jerk
    assert len(sent) == np.ceil(duration / 0.02)
    assert sent[-1].q[0] - begin == pytest.approx(v * duration / 2, abs=1e-9)
    np.testing.assert_allclose(sent[-1].dq, 0, atol=1e-12)
    assert safety.stopping_time >= duration


def test_the_box_holds_by_the_other_kinematics_as_well() -> None:
    safety = ready(velocity=1, acceleration=1, low=(-0.3, -0.2, 0.3), high=(0.1, 0.2, 0.6))
    kinematics = Kinematics(PANDA)
    rng = np.random.default_rng(3)
    met = 0
    for direction in rng.normal(size=(20, 7)):
        safety.reset(HOME, gripper=0.0, now=0.0)
        sent = run(safety, [np.append(3 * direction, 0)] * 60)
        ee = kinematics.forward(np.array([setpoint.q for setpoint in sent]))[:, :3]
        assert (ee >= np.array(safety.config.low) - 1e-9).all()
        assert (ee <= np.array(safety.config.high) + 1e-9).all()
        met += any("workspace" in setpoint.interventions for setpoint in sent)
    assert met > 10  # most of them do run into it


def test_away_from_the_wall_is_allowed_again() -> None:
    safety = ready(low=(-0.3, -0.2, 0.4), high=(0.1, 0.2, 0.6))
    down = np.array([0, 0.4, 0, 0, 0, 0, 0, 0.0])
    sent = run(safety, [down] * 60)
    assert "workspace" in sent[-1].interventions
    low = safety.q[1]
    sent = [
        safety.step(Command(-down, 60 + k, (60 + k) * 0.02), measured=safety.q, now=(60 + k) * 0.02)
        for k in range(40)
    ]
    assert safety.q[1] < low - 0.1 and not sent[-1].interventions


def test_velocity_is_scaled_down_and_keeps_its_direction() -> None:
    safety = ready(**WIDE)
    wanted = np.array([4.0, -2.0, 1.0, 0, 0, 0, 0])
    setpoint = run(safety, [np.append(wanted * 1e5, 0)] * 25)[-1]
    assert setpoint.interventions == ("velocity",)
    np.testing.assert_allclose(setpoint.dq, wanted / 4 * safety.limits.velocity[0], atol=1e-9)


@pytest.mark.parametrize("speed", [1e-7, 3e-5, 9e-4, 1e-3, 0.01])
def test_slow_motion_has_the_speed_that_was_asked_for(speed: float) -> None:
    safety = ready()
    action = np.zeros(8)
    action[0] = speed
    sent = run(safety, [action] * 50)
    expected = speed if speed > 1e-5 else 0.0
    assert sent[-1].dq[0] == pytest.approx(expected, abs=1e-9)
    assert not any(setpoint.interventions for setpoint in sent)


@pytest.mark.parametrize(("control", "end"), [("joint_position", 0.2), ("joint_delta", 0.2)])
def test_positions_are_reached_and_held(control: str, end: float) -> None:
    safety = ready(control=control)
    action = np.append(HOME if control == "joint_position" else np.zeros(7), 0.5)
    action[0] = end
    command = Command(action, 1, 0.0)
    for k in range(15):  # the same command, held
        safety.step(command, measured=safety.q, now=k * 0.02)
    while k < 60:
        k += 1
        command = Command(action if control == "joint_position" else np.zeros(8), k, k * 0.02)
        if control == "joint_delta":
            break
        safety.step(command, measured=safety.q, now=k * 0.02)
    if control == "joint_position":
        assert safety.q[0] == pytest.approx(HOME[0] + end, abs=1e-9)
        np.testing.assert_allclose(safety.q[1:], HOME[1:], atol=1e-9)
        assert safety.gripper == pytest.approx(0.04)
    else:  # from where the reference was when the command came
        assert 0.05 < safety.q[0] <= end


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.full(8, np.nan), "every number must be finite"),
        (np.append(np.zeros(7), np.inf), "every number must be finite"),
        ([None] * 8, "every number must be finite"),
        (np.zeros(7), r"found shape \(7,\), need \(J \+ 1=8,\)"),
        (np.zeros((1, 8)), r"found shape \(1, 8\)"),
        ("stop", "need 8 numbers"),
        ([10**400] * 8, "need 8 numbers"),
        (None, r"found shape \(\)"),
    ],
)
def test_a_broken_action_is_a_fault_and_the_arm_stops(action: Any, message: str) -> None:
    safety = ready()
    moving = np.append(np.full(7, 0.3), 0.0)
    sent = run(safety, [moving] * 20 + [action])
    assert re.search(message, sent[-1].fault), sent[-1].fault
    assert "\n" not in sent[-1].fault
    assert np.abs(sent[-1].dq).max() < np.abs(sent[-2].dq).max()  # slower at once
    ticks = 0
    while not safety.at_rest:
        safety.brake()
        ticks += 1
    assert ticks * 0.02 <= safety.stopping_time


def test_old_commands() -> None:
    safety = ready(age=0.3)
    action, back = np.append(np.full(7, 0.2), 0), np.append(np.full(7, -0.2), 0)
    safety.step(Command(action, 5, 0.0), measured=safety.q, now=0.0)
    for sequence, stamp in ((4, 0.02), (5, 0.02), (6, -0.1)):
        late = safety.step(Command(back, sequence, stamp), measured=safety.q, now=0.02)
        assert (late.dq > 0).all() and not late.fault
        assert ("late" in late.interventions) == (sequence != 5)
    assert not safety.step(None, measured=safety.q, now=0.3).fault
    assert "0.301 s old, 0.3 s is allowed" in safety.step(None, measured=safety.q, now=0.301).fault
    safety = ready()
    fault = safety.step(Command(action, 1, 5.0), measured=safety.q, now=0.0).fault
    assert "the clocks disagree" in fault
    assert "allowed" in ready().step(Command(action, 1, np.nan), measured=HOME, now=0.0).fault


def test_a_planner_that_never_answers_is_a_fault() -> None:
    safety = ready()
    assert not safety.step(None, measured=HOME, now=0.2).fault
    assert safety.step(None, measured=HOME, now=0.4).fault


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (HOME + [0, 0.2, 0, 0, 0, 0, 0], "joint2: measured at -0.585 rad"),
        (HOME + [0, 0, np.nan, 0, 0, 0, 0], "joint3: measured at nan"),
        (HOME[:6], r"measured shape (6,)"),
    ],
)
def test_joints_that_do_not_follow_are_a_fault(measured: Any, message: str) -> None:
    assert message in ready().step(None, measured=measured, now=0.0).fault


def test_reset_refuses_what_is_outside_and_changes_nothing() -> None:
    safety = ready()
    out = HOME.copy()
    out[3] = 0.0
    with pytest.raises(RobotError, match=r"joints\.joint4: 0\.000 rad is not within"):
        safety.reset(out, gripper=0.0, now=0.0)
    low = np.array([0, 1.2, 0, -1.2, 0, 2.4, 0])
    with pytest.raises(RobotError, match="workspace: the end effector is at"):
        safety.reset(low, gripper=0.0, now=0.0)
    with pytest.raises(RobotError, match="need 7 joints, and finite numbers"):
        safety.reset(HOME * np.nan, gripper=0.0, now=0.0)
    np.testing.assert_array_equal(safety.q, HOME)


def test_an_arm_in_the_margin_may_come_back_and_go_no_further() -> None:
    safety = ready(**WIDE)
    q = HOME.copy()
    q[0] = safety.high[0] + 0.02
    safety.reset(q, gripper=0.0, now=0.0)
    out = np.append([0.5, 0, 0, 0, 0, 0, 0], 0)
    sent = run(safety, [out] * 10)
    assert max(s.q[0] for s in sent) <= q[0] + 1e-9
    safety.reset(q, gripper=0.0, now=0.0)
    run(safety, [-out] * 25)
    assert safety.q[0] < safety.high[0]


def test_the_same_stream_gives_the_same_setpoints() -> None:
    rng = np.random.default_rng(0)
    stream = list(rng.normal(size=(50, 8)))
    first, second = run(ready(), stream), run(ready(), stream)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.q, b.q)


def test_bad_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="did you mean 'joint_velocity'"):
        Config(control="joint_velocty")
    with pytest.raises(ConfigError, match=r"SafetyFilter\.high\.z"):
        Config(high=(0.4, 0.4, 0.0))
    with pytest.raises(ConfigError, match=r"SafetyFilter\.velocity: 1\.5 is not within"):
        Config(velocity=1.5)
    narrow = Arm(joints=tuple(Joint(name=f"j{i}", low=0, high=0.05) for i in range(3)))
    with pytest.raises(ConfigError, match="leaves j0 no room"):
        SafetyFilter(narrow)
    monkeypatch.setitem(sys.modules, "ruckig", None)
    with pytest.raises(MissingDependency, match=r'pip install "latentplan\[arm\]"'):
        SafetyFilter(PANDA)
