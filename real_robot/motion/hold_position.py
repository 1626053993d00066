"""Hold an arm's position while a computation takes longer than a command is valid."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from latentplan.real_robot.loop.local import LocalRobot
from latentplan.real_robot.robot import Robot

T = TypeVar("T")


def hold_position_while(robot: Robot, compute: Callable[[], T], *, opening: float = 1.0) -> T:
    """Return the result of `compute`; command the arm to hold its position until then.

    `opening` is the gripper's, 0 closed to 1 open. A node whose planner is silent would stop its
    arm; the clock of a robot in this process waits by itself. `compute` must not use the robot.
    Raises any error of `compute`, and RobotError, once `compute` has ended, if the arm stops.
    """
    if isinstance(robot, LocalRobot):
        return compute()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(compute)
        while not result.done():
            hold_position(robot, opening=opening)
        return result.result()


def hold_position(robot: Robot, *, opening: float = 1.0) -> None:
    """Hold the position for one period."""
    convention = robot.spec.data.action.convention
    q = robot.observe()["q"]
    there = convention is not None and convention.control == "joint_position"
    robot.send(np.append(q if there else np.zeros_like(q), opening))
