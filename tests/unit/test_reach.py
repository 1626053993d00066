"""Bringing the end effector to a point: kinematics as dynamics, and the loop through a robot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from latentplan.errors import ConfigError, PlanningError
from latentplan.planning.cem import CEM
from latentplan.protocols import Dynamics
from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.loop.local import LocalRobot
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.real_robot.motion.reach import ArmDynamics, PointDistance, Reach
from latentplan.robots.chain import Chain
from latentplan.robots.description import load
from latentplan.types import ActionSpec, ArraySpec, Batch, Spec


def robot(name: str = "panda", **values: Any) -> LocalRobot:
    arm = load(name)
    safety = SafetyFilter(arm, SafetyFilter.Config(**values))
    return LocalRobot(SimulatedDriver(arm), Supervisor(safety))


def reach(r: LocalRobot, **values: Any) -> Reach:
    settings = Reach.Config(**values)
    return Reach(r, r.driver.arm, planner=CEM(CEM.Config(**Reach.PLANNER)), config=settings)


def dynamics(name: str, dt: float | None = 0.1) -> ArmDynamics:
    joints = len(load(name).joints)
    action = ActionSpec((-1.0,) * joints + (0.0,), (1.0,) * (joints + 1))
    return ArmDynamics(load(name), Spec({"q": ArraySpec((joints,))}, action, dt=dt))


@pytest.mark.parametrize("name", ["panda", "ur5e"])
def test_points_are_reached_and_the_filter_has_nothing_to_do(name: str) -> None:
    with robot(name) as r:
        task = reach(r)
        for _ in range(3):
            goal = task.draw()
            reached = task.episode(goal, steps=60)
            assert reached.success and reached.start > 0.1
            ee = Chain(load(name)).ee(r.observe()["q"][None].astype(np.float64))[0]
            assert np.linalg.norm(ee - reached.point) < 0.02
        assert not r.health().interventions.keys() & {"velocity", "position", "workspace"}


def test_too_few_steps_are_no_success() -> None:
    with robot() as r:
        task = reach(r)
        reached = task.episode(task.draw(), steps=2)
        assert reached.actions == 2 and not reached.success


@pytest.mark.parametrize("name", ["panda", "ur5e"])
def test_the_dynamics_are_the_arm_s_kinematics(name: str) -> None:
    model = dynamics(name)
    assert isinstance(model, Dynamics)
    q = np.random.default_rng(0).uniform(-2, 2, (20, model.latent_dim))
    found = model.ee(torch.tensor(q, dtype=torch.float32).view(4, 5, -1))
    np.testing.assert_allclose(found.reshape(20, 3), Chain(load(name)).ee(q), atol=1e-6)
    start = torch.tensor(q[:2, None], dtype=torch.float32)
    velocity = torch.randn(2, 3, 4, model.latent_dim + 1)
    ahead = model.rollout(model.encode({"q": start})[:, 0], velocity)
    torch.testing.assert_close(ahead[:, :, -1], start + 0.1 * velocity[..., :-1].sum(2))
    actions = velocity[:, 0]
    truth = torch.cat([start, ahead[:, 0]], dim=1)
    assert model.loss(Batch({"q": truth}, actions)).total < 1e-12
    goal = ahead[0, 0, -1:]
    cost = PointDistance(goal, dynamics=model, effort=0.0)(ahead[:1, :, -1:], velocity[:1])
    assert cost.argmin() == 0 and cost[0, 0] < 1e-6


def test_points_depend_on_the_seed_and_keep_to_the_box() -> None:
    with robot() as r:
        first, second = reach(r).draw(), reach(r).draw()
        np.testing.assert_array_equal(first, second)
        with pytest.raises(PlanningError, match=r"Reach: no point of the box"):
            reach(r, low=(0.3, 0.3, 0.7), high=(0.32, 0.32, 0.72)).draw()
    with robot(control="joint_delta") as r, pytest.raises(ConfigError, match="joint_velocity"):
        reach(r)
    with pytest.raises(ConfigError, match=r"ArmDynamics\.spec\.dt"):
        dynamics("panda", dt=None)
