"""An arm that stands still while its planner thinks for longer than a command holds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from latentplan.errors import ConfigError
from latentplan.real_robot.local import LocalRobot
from latentplan.real_robot.robot import Robot

T = TypeVar("T")


def meanwhile(robot: Robot, think: Callable[[], T], *, opening: float = 1.0) -> T:
    """Return what `think` gives; at every period until then the arm is told to stand still.

    `opening` is the gripper's, 0 closed to 1 open. A node whose planner is silent would stop its
    arm; the clock of a robot in this process waits by itself. `think` must not use the robot.
    Raises what `think` raises, and RobotError where the arm stops; it then ends before that.
    """
    if isinstance(robot, LocalRobot):
        return think()
    with ThreadPoolExecutor(1) as pool:
        thought = pool.submit(think)
        while not thought.done():
            stand(robot, opening=opening)
        return thought.result()


def stand(robot: Robot, *, opening: float = 1.0) -> None:
    """Stand still for one period; the joints' control must be joint_velocity or joint_delta."""
    convention = robot.spec.data.action.convention
    if convention is None or convention.control not in ("joint_velocity", "joint_delta"):
        found = "none" if convention is None else convention.control
        raise ConfigError(f"safety.control: found {found}, need joint_velocity to stand still")
    robot.observe()
    robot.send(np.append(np.zeros(len(robot.spec.joints)), opening))
