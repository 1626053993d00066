"""Motions that pick and place: within the limits, where they should be, or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from latentplan.errors import ConfigError, ShapeError
from latentplan.robots import description
from latentplan.robots.kinematics import Unreachable, downward
from latentplan.robots.pick_and_place import PHASES, PickAndPlace
from latentplan.robots.simulated_arm import SimulatedArm
from latentplan.robots.trajectory import Limits

ARMS = ["panda", "ur5e"]
PICK, PLACE = np.array([0.1, 0.15, 0.02]), np.array([0.05, 0.06, 0.02])


@pytest.fixture(scope="module")
def planners() -> dict[str, PickAndPlace]:
    return {name: PickAndPlace(description.load(name)) for name in ARMS}


@pytest.mark.slow_with("ur5e")
@pytest.mark.parametrize("name", ARMS)
def test_a_hundred_motions_keep_to_every_limit(planners, name) -> None:
    planner, rng = planners[name], np.random.default_rng(2)
    arm, limits = planner.arm, Limits.of(planner.arm)
    low, high = arm.column("low"), arm.column("high")
    done = 0
    for _ in range(50):  # of each arm
        pick = np.append(rng.uniform(-0.2, 0.2, 2), rng.uniform(0, 0.05))
        place = np.append(pick[:2] + rng.uniform(-0.1, 0.1, 2), rng.uniform(0, 0.05))
        try:
            motion = planner.plan(pick, place, lift=rng.uniform(0, 0.12), dt=0.004)
        except Unreachable:
            continue
        done += 1
        assert (motion.q >= low).all() and (motion.q <= high).all()
        value = motion.q
        for bound in (limits.velocity, limits.acceleration, limits.jerk):
            value = np.diff(value, axis=0) / motion.dt
            assert (np.abs(value) <= bound).all()
        assert np.linalg.norm(np.diff(motion.ee[:, :3], axis=0), axis=1).max() < 3 * motion.dt
        for phase, point in (("approach", pick), ("retreat", place)):  # nothing is swept away
            height = motion.ee[motion.phase == PHASES.index(phase), 2]
            assert height.min() > point[2] + planner.config.hover - 3e-3
    assert done >= 45


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("yaw", [None, 0.4])
def test_the_end_effector_goes_where_it_is_told(planners, name, yaw) -> None:
    motion = planners[name].plan(PICK, PLACE, lift=0.07, yaw=yaw)
    ee, held = motion.ee[motion.carrying, :3], motion.phase[motion.carrying]
    np.testing.assert_allclose(ee[0], PICK, atol=2e-3)
    np.testing.assert_allclose(ee[-1], PLACE, atol=1e-3)
    assert ee[:, 2].max() == pytest.approx(0.09, abs=1e-3)
    lift = ee[held == PHASES.index("lift")]
    assert np.abs(lift[:, :2] - PICK[:2]).max() < 2e-3  # straight up
    move = ee[held == PHASES.index("move")]
    assert np.abs(move[:, 2] - 0.09).max() < 2e-3  # level
    home = planners[name].kinematics.home
    np.testing.assert_allclose(motion.q[[0, -1]], [home, home], atol=1e-3)
    assert sorted(set(motion.phase.tolist())) == list(range(len(PHASES)))
    assert (np.diff(motion.phase) >= 0).all()


def test_the_fingers_close_before_the_lift_and_open_after_the_lowering(planners) -> None:
    planner = planners["panda"]
    motion = planner.plan(PICK, PLACE, lift=0.05)
    width, grip = planner.arm.gripper.width, planner.config.grip
    held = motion.carrying
    assert (motion.gripper[held] == grip).all()
    assert motion.gripper[0] == motion.gripper[-1] == width
    closing = (motion.gripper > grip) & (motion.gripper < width)
    still = np.linalg.norm(np.diff(motion.ee[:, :3], axis=0, prepend=motion.ee[:1, :3]), axis=1)
    assert still[closing].max() < 1e-4  # the fingers move while the hand waits
    speed = np.abs(np.diff(motion.gripper)).max() / motion.dt
    assert speed <= planner.arm.gripper.speed + 1e-9


@pytest.mark.parametrize("name", ARMS)
def test_the_simulated_arm_follows(planners, name) -> None:
    motion = planners[name].plan(PICK, PLACE, lift=0.05)
    arm = SimulatedArm(planners[name].arm)
    made = arm.execute(motion)
    error = np.linalg.norm(made.ee[:, :3] - motion.ee[:, :3], axis=1)
    assert error.max() < 0.01
    assert error[motion.carrying.stop - 1] < 1e-3
    assert 0 < error.max()  # servos, not a copy
    assert np.abs(made.gripper - motion.gripper).max() < 2e-3
    np.testing.assert_array_equal(arm.ee, made.ee[-1])


def test_the_same_again(planners) -> None:
    planner = PickAndPlace(description.load("panda"))
    first = planner.plan(PICK, PLACE, lift=0.05)
    planner.plan(PLACE, PICK, lift=0.1)
    second = planner.plan(PICK, PLACE, lift=0.05)
    other = planners["panda"].plan(PICK, PLACE, lift=0.05)
    for motion in (second, other):
        np.testing.assert_array_equal(motion.q, first.q)
    arm = SimulatedArm(planner.arm)
    made = arm.execute(first)
    arm.reset()
    np.testing.assert_array_equal(arm.execute(first).q, made.q)


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("far", ["pick", "place"])
def test_out_of_reach_is_refused_in_one_line(planners, name, far) -> None:
    points = {"pick": PICK, "place": PLACE, far: np.array([0.8, 0.3, 0.02])}
    with pytest.raises(Unreachable, match=rf"^{name}\.target: \(.*m is out of reach") as e:
        planners[name].plan(points["pick"], points["place"], lift=0.05)
    assert "\n" not in str(e.value)


def test_a_way_through_the_arm_itself_is_refused(planners) -> None:
    planner = planners["ur5e"]
    x, y, _ = planner.arm.position
    with pytest.raises(Unreachable):
        planner.plan(np.array([x, y, 0.02]), PLACE, lift=0.05)


def test_a_home_below_the_way_is_refused() -> None:
    arm = description.load("panda")
    low = PickAndPlace(arm).kinematics.inverse(downward(np.array([0.1, -0.1, 0.03])))
    joints = tuple(replace(j, home=float(q)) for j, q in zip(arm.joints, low, strict=True))
    with pytest.raises(Unreachable, match=r"is reached only through 0\.0.* m above the table"):
        PickAndPlace(replace(arm, joints=joints)).plan(PICK, PLACE, lift=0.05)


def test_a_grasp_lower_than_the_fingers_allow_is_as_low_as_they_can(planners) -> None:
    planner = planners["panda"]
    motion = planner.plan(np.append(PICK[:2], 0.0), PLACE, lift=0.02)
    assert motion.ee[motion.carrying.start, 2] == pytest.approx(0.0106, abs=1e-3)


def test_no_lift_and_no_way_is_still_a_motion(planners) -> None:
    motion = planners["ur5e"].plan(PICK, PICK, lift=0.0)
    assert set(motion.phase.tolist()) >= {PHASES.index("grasp"), PHASES.index("release")}
    grasped = motion.ee[motion.carrying.start - 1, :3]
    np.testing.assert_allclose(grasped, PICK, atol=2e-3)
    assert len(motion.ee[motion.carrying]) == 0


def test_bad_input_is_refused(planners) -> None:
    planner = planners["ur5e"]
    with pytest.raises(ShapeError, match=r"PickAndPlace\.pick: found shape \(2,\)"):
        planner.plan(PICK[:2], PLACE, lift=0.05)
    with pytest.raises(ShapeError, match="NaN or infinite"):
        planner.plan(PICK, np.full(3, np.nan), lift=0.05)
    with pytest.raises(ConfigError, match=r"PickAndPlace\.lift: -1 is not within"):
        planner.plan(PICK, PLACE, lift=-1)
    with pytest.raises(ConfigError, match=r"PickAndPlace\.grip: 0\.2 is not within"):
        PickAndPlace(planner.arm, PickAndPlace.Config(grip=0.2))
    motion = planner.plan(PICK, PLACE, lift=0.05)
    arm = SimulatedArm(planner.arm)
    arm.data.qpos[1] += 0.5
    with pytest.raises(ShapeError, match="starts 0.500 rad from the arm's position"):
        arm.execute(motion)
