"""A simulated arm behind the filter and the supervisor, as its users see it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentplan.errors import ConfigError, RobotError
from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.loop.local import LocalRobot
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.real_robot.robot import CameraImage, Reading
from latentplan.robots.chain import Chain
from latentplan.robots.description import load
from latentplan.robots.kinematics import Kinematics
from latentplan.sim.rendering.cameras import Camera

PANDA = load("panda")
HOME = PANDA.column("home")
FRONT = Camera("front", (1.1, 0.0, 0.7), target=(-0.2, 0.0, 0.3))


def robot(driver: SimulatedDriver | None = None, **values: Any) -> LocalRobot:
    driver = driver or SimulatedDriver(PANDA)
    safety = SafetyFilter(PANDA, SafetyFilter.Config(**values))
    return LocalRobot(driver, Supervisor(safety, cameras=driver.cameras))


class Faulty(SimulatedDriver):
    """Sensors that go wrong when they are told to."""

    mute_joints = freeze_images = False

    def reading(self) -> Reading | None:
        self.kept = getattr(self, "kept", None) if self.mute_joints else super().reading()
        return self.kept

    def images(self) -> Mapping[str, CameraImage]:
        if not self.freeze_images:
            self.seen = dict(super().images())
        return self.seen


@pytest.mark.parametrize("name", ["panda", "ur5e"])
def test_it_goes_where_a_controller_sends_it(name: str) -> None:
    """Joint velocities towards what inverse kinematics found: the arm's own sensors close it."""
    arm = load(name)
    safety = SafetyFilter(arm, SafetyFilter.Config(velocity=0.5))
    target = Kinematics(arm).forward(arm.column("home"))
    target[:3] += [0.05, 0.1, -0.1]
    goal = Kinematics(arm).inverse(target)
    with LocalRobot(SimulatedDriver(arm), Supervisor(safety)) as r:
        for _ in range(60):
            error = goal - r.observe()["q"]
            if np.abs(error).max() < 2e-3:
                break
            sent = r.send(np.append(2 * error, 0.5))
            assert (np.abs(sent[:-1]) <= np.array(r.spec.velocity) + 1e-6).all()
        q = r.observe()["q"].astype(np.float64)
        assert r.health().interventions.keys() <= {"velocity"}
    reached = Chain(arm).ee(q[None])[0]
    np.testing.assert_allclose(reached, target[:3], atol=5e-3)


def test_what_was_sent_is_what_the_arm_did() -> None:
    with robot() as r:
        begin = r.observe()["q"]
        total = np.zeros(7)
        for _ in range(10):
            sent = r.send(np.append([9.0, 0, 0, 0, 0, -0.2, 0], 1))
            total += sent[:-1] * r.spec.period
        r.stop("look")
        assert not np.allclose(sent[0], 9.0)
        moved = r.observe()["q"] - begin
        assert moved[0] > 0.5
        np.testing.assert_allclose(moved[:1], total[:1], atol=0.06)  # and the stop
        assert r.observe()["gripper"][0] == pytest.approx(0.08, abs=2e-3)


def test_what_stands_in_the_way_trips_and_is_not_pushed_for_long() -> None:
    wall = (-0.4, 0.15, 0.0, 0.1, 0.2, 0.9)
    driver = SimulatedDriver(PANDA, boxes=[wall])
    with robot(driver, velocity=0.2) as r:
        with pytest.raises(RobotError, match="something blocks the arm") as e:
            for _ in range(40):
                r.send(np.append([0.4, 0, 0, 0, 0, 0, 0], 0))
        assert "robot panda: fault; joints.joint" in str(e.value)
        assert r.health().state == "fault"
        held = r.observe()["q"]
        with pytest.raises(RobotError, match="fault"):
            r.send(np.zeros(8))
        np.testing.assert_allclose(r.observe()["q"], held, atol=1e-6)
        r.reset()  # from where it is measured, in contact
        for _ in range(5):
            r.send(np.append([-0.3, 0, 0, 0, 0, 0, 0], 0))
        assert r.observe()["q"][0] < held[0] - 0.05


def test_a_camera_that_freezes_stops_the_arm() -> None:
    driver = Faulty(PANDA, cameras=[FRONT])
    with robot(driver) as r:
        r.send(np.append([0.4, 0, 0, 0, 0, 0, 0], 0))
        driver.freeze_images, begin = True, driver.now()
        with pytest.raises(RobotError, match="front: silent for"):
            for _ in range(10):
                r.send(np.append([0.4, 0, 0, 0, 0, 0, 0], 0))
        assert driver.now() - begin < 0.2 + 0.6
        assert np.abs(r.observe()["dq"]).max() < 2e-3  # it rests
        with pytest.raises(RobotError, match="reset: refused; front"):
            r.reset()
        driver.freeze_images = False
        driver.wait(driver.now() + 0.1)
        r.reset()
        assert r.health().state == "armed"


def test_silent_joints_stop_the_arm() -> None:
    driver = Faulty(PANDA)
    with robot(driver) as r:
        r.send(np.append([0.4, 0, 0, 0, 0, 0, 0], 0))
        driver.mute_joints, begin = True, driver.now()
        with pytest.raises(RobotError, match="joints: silent for"):
            for _ in range(10):
                r.send(np.append([0.4, 0, 0, 0, 0, 0, 0], 0))
        assert driver.now() - begin < 0.1 + 0.6
        driver.mute_joints = False


def test_a_broken_action_stops_the_arm_before_it_raises() -> None:
    with robot() as r:
        r.send(np.append([0.4, 0, 0, 0, 0, 0, 0], 0))
        with pytest.raises(RobotError, match="every number must be finite"):
            r.send(np.full(8, np.nan))
        assert np.abs(r.observe()["dq"]).max() < 2e-3


def test_leaving_it_in_motion_stops_it() -> None:
    driver = SimulatedDriver(PANDA)
    with pytest.raises(KeyError), robot(driver) as r:
        for _ in range(5):
            r.send(np.append([0.4, 0, 0, 0, 0, 0, 0], 0))
        raise KeyError("a bug in the planner")
    assert np.abs(driver.reading().dq).max() < 5e-3
    assert r.health().state == "disconnected"


def test_an_arm_that_is_left_alone_holds_still() -> None:
    driver = SimulatedDriver(PANDA)
    with robot(driver) as r:
        for _ in range(5):
            r.send(np.append([0.4, 0, 0, 0, 0, 0, 0], 0))
        driver.wait(driver.now() + 0.5)  # no setpoint comes: the sender is dead
        assert np.abs(driver.reading().dq).max() < 1e-3


def test_the_same_actions_give_the_same_motion() -> None:
    runs = []
    for _ in range(2):
        with robot(SimulatedDriver(PANDA, cameras=[FRONT])) as r:
            for k in range(5):
                r.send(np.append(np.sin(k + np.arange(7)), 0))
            runs.append(r.observe())
    for key in runs[0]:
        np.testing.assert_array_equal(runs[0][key], runs[1][key])
    assert runs[0]["front"].shape == (64, 64, 3) and runs[0]["front"].std() > 5


def test_the_spec_says_what_is_sent_and_seen() -> None:
    with robot(SimulatedDriver(PANDA, cameras=[FRONT]), control="joint_delta") as r:
        spec, seen = r.spec, r.observe()
        for key, array in spec.data.observation.items():
            assert (seen[key].shape, str(seen[key].dtype)) == (array.shape, array.dtype)
        assert spec.joints == tuple(f"joint{i}" for i in range(1, 8))
        assert spec.data.action.size == 8
        assert spec.data.action.convention.control == "joint_delta"
        assert spec.data.dt == spec.period == pytest.approx(0.1)
        assert max(spec.data.action.high[:-1]) == pytest.approx(max(spec.velocity) * 0.1)


def test_what_is_wrong_before_it_starts() -> None:
    supervisor = Supervisor(SafetyFilter(PANDA))
    with pytest.raises(ConfigError, match=r"LocalRobot\.period: 0\.05 s is not a multiple"):
        LocalRobot(SimulatedDriver(PANDA), supervisor, period=0.05)
    with pytest.raises(RobotError, match="not connected"):
        robot().spec  # noqa: B018
    with pytest.raises(RobotError, match="never armed"):
        robot().send(np.zeros(8))
    driver = Faulty(PANDA)
    driver.mute_joints = True
    with pytest.raises(RobotError, match="arm: joints: no data so far"), robot(driver):
        pass
    with pytest.raises(RobotError, match="front: no data so far"):
        LocalRobot(
            SimulatedDriver(PANDA), Supervisor(SafetyFilter(PANDA), cameras=["front"])
        ).__enter__()
    with pytest.raises(ConfigError, match=r"SimulatedDriver\.rate"):
        SimulatedDriver.Config(rate=0)


def test_the_page_s_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "real_robot.md"
    code = page.read_text().split("```python\n")[1].split("```")[0]
    exec(compile(code, page.name, "exec"), {})
    assert "state='armed'" in capsys.readouterr().out
