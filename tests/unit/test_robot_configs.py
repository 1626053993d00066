"""No number of a robot's settings may be NaN or infinite: a comparison with it is no limit."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from latentplan.errors import ConfigError
from latentplan.real_robot.backends.lerobot import LerobotDriver
from latentplan.real_robot.backends.ros1 import Ros1Driver
from latentplan.real_robot.backends.ros2 import Ros2Driver
from latentplan.real_robot.backends.rosbridge import RosbridgeDriver
from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.link.remote import RemoteRobot
from latentplan.real_robot.loop.local import LocalRobot
from latentplan.real_robot.loop.node import Node
from latentplan.real_robot.loop.node_process import Parameters
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.real_robot.motion.picking import Picking
from latentplan.real_robot.motion.reach import Reach
from latentplan.real_robot.motion.replay import Replay
from latentplan.real_robot.motion.tracking import Tracking
from latentplan.robots.description import Gripper, Joint, load

CONFIGS = [
    SafetyFilter.Config(),
    Supervisor.Config(),
    SimulatedDriver.Config(),
    Ros1Driver.Config(),
    Ros2Driver.Config(),
    RosbridgeDriver.Config(),
    LerobotDriver.Config(zero=(0.0,) * 6, low=(-1.0,) * 6, high=(1.0,) * 6, unit="rad"),
    Parameters(),
    Picking.Config(),
    Tracking.Config(),
    Replay.Config(),
    Reach.Config(),
    Joint(name="joint1"),
    Gripper(),
]
NUMBERS = [
    pytest.param(config, field.name, id=f"{type(config).__qualname__}.{field.name}")
    for config in CONFIGS
    for field in fields(config)
    if isinstance(getattr(config, field.name), float)
    or (
        isinstance(getattr(config, field.name), tuple)
        and getattr(config, field.name)
        and isinstance(getattr(config, field.name)[0], float)
    )
]
NOT_FINITE = (np.nan, np.inf, -np.inf)


@pytest.mark.parametrize(("config", "name"), NUMBERS)
def test_a_setting_that_is_not_finite_is_refused(config: Any, name: str) -> None:
    before = getattr(config, name)
    for value in NOT_FINITE:
        wrong = (value, *before[1:]) if isinstance(before, tuple) else value
        with pytest.raises(ConfigError):
            replace(config, **{name: wrong})


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_period_or_a_patience_that_is_not_finite_is_refused(value: float) -> None:
    arm = load("panda")
    driver, supervisor = SimulatedDriver(arm), Supervisor(SafetyFilter(arm))
    with pytest.raises(ConfigError, match=r"LocalRobot\.period"):
        LocalRobot(driver, supervisor, period=value)
    with pytest.raises(ConfigError, match=r"LocalRobot\.patience"):
        LocalRobot(driver, supervisor, patience=value)
    with pytest.raises(ConfigError, match=r"Node\.period"):
        Node(driver, supervisor, period=value)
    with pytest.raises(ConfigError, match=r"robot\.patience"):
        RemoteRobot(("127.0.0.1", 9), patience=value)
