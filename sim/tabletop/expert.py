"""The scripted expert: the next action, from the current gripper and scene.

It has no state, so that it continues from any state that noise, a planner or a snapshot leads to.
"""

from __future__ import annotations

import numpy as np

from latentplan.sim.tabletop.tasks import BLOCKS, DRAWER, SLIDER, SWITCH, Task
from latentplan.sim.tabletop.world import BLOCK
from latentplan.types import Array

CLEAR = 0.10  # m, height of the tool centre point that is clear of everything on the desk
NEAR = 0.015  # m, largest horizontal error of a descent
BESIDE, AHEAD = 0.02, 0.045  # m from the line of a push, and along it, that keep contact
SLOW = 0.5  # share of the largest action during a push, so that the object does not slide on
GRASP = 0.009  # m from a block's middle at which the fingers close
HELD = BLOCK + 0.008  # m, largest distance of fingers that hold a block
MISSED = BLOCK - 0.008  # m, largest distance of fingers that hold nothing
OPENED, CLOSED = 1.0, -1.0


def act(
    task: Task, robot: Array, scene: Array, *, goal: Array, units: tuple[float, float]
) -> Array:
    """Return the action (7,) float32 towards the scene_obs `goal`.

    `robot` is robot_obs (15,), `scene` scene_obs (24,); `units` are m and rad of an action of 1.
    """
    tip = np.asarray(robot[:3], np.float64)
    missing = task.missing(scene, goal)
    if missing == 0:  # the task is done: stay
        motion, yaw, grip = np.zeros(3), float(robot[5]), CLOSED if task.lifts else robot[14]
    elif task.lifts:
        motion, yaw, grip = _lift(task, robot, scene, missing=missing)
    else:
        motion, yaw, grip = _push(task, tip, scene, missing=missing, step=units[0])
    turn = np.array([0.0, 0.0, yaw]) - robot[3:6]
    action: Array = np.concatenate([motion / units[0], turn / units[1], [grip]])
    return action.clip(-1, 1).astype(np.float32)


def _push(
    task: Task, tip: Array, scene: Array, *, missing: float, step: float
) -> tuple[Array, float, float]:
    """Return motion, yaw and grip of a push: descend beside the object, then push it."""
    contact, way = _contact(task, scene)
    away = tip - contact
    along = float(away @ way)
    across = away - along * way
    if np.abs(across).max() < BESIDE and -BESIDE < along < AHEAD:
        return way * min(SLOW * step, missing + NEAR) - across, 0.0, CLOSED
    return _come_down(tip, contact), 0.0, CLOSED


def _contact(task: Task, scene: Array) -> tuple[Array, Array]:
    """Return the contact point (3,), m, of the closed fingers, and the direction (3,) of a push."""
    if task.place == DRAWER:
        y = -0.262 - float(scene[DRAWER])  # the handle's bar
        if task.way > 0:  # between bar and front
            return np.array([0.0, y + 0.024, -0.055]), np.array([0.0, -1.0, 0.0])
        return np.array([0.0, y - 0.035, -0.045]), np.array([0.0, 1.0, 0.0])
    if task.place == SLIDER:
        x = 0.005 - float(scene[SLIDER])  # the knob
        return np.array([x + task.way * 0.045, 0.168, 0.045]), np.array([-task.way, 0.0, 0.0])
    if task.place == SWITCH:
        y = float(scene[SWITCH])  # the lever
        return np.array([0.26, y - task.way * 0.042, 0.035]), np.array([0.0, task.way, 0.0])
    x, y = scene[task.place : task.place + 2]
    behind = np.array([x - task.way * 0.06, y, BLOCK / 2])
    return behind, np.array([task.way, 0.0, 0.0])


def _come_down(tip: Array, point: Array) -> Array:
    """Return the motion to a point from above: up, over, down."""
    away = point[:2] - tip[:2]
    if np.linalg.norm(away) < NEAR:
        return point - tip
    if tip[2] < CLEAR - 0.02:
        return np.array([0.0, 0.0, CLEAR - tip[2]])
    return np.array([*away, CLEAR - tip[2]])


def _lift(task: Task, robot: Array, scene: Array, *, missing: float) -> tuple[Array, float, float]:
    """Return motion, yaw and grip of a lift: grasp the block, then move up."""
    tip, width = np.asarray(robot[:3], np.float64), float(robot[6])
    first = BLOCKS + 6 * task.block
    block, yaw = scene[first : first + 3].astype(np.float64), float(scene[first + 5])
    yaw = (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4  # the nearest of its four sides
    below = block - [0, 0, 0.003]
    turned = abs(yaw - robot[5]) < 0.06
    closing = robot[14] < 0 and width > MISSED
    if np.abs(below - tip).max() < (0.02 if closing else GRASP) and turned:
        up = min(missing + 0.01, 0.01) if closing and width < HELD else 0.0
        return np.array([0.0, 0.0, up]), float(robot[5]), CLOSED
    if np.linalg.norm(below[:2] - tip[:2]) < NEAR and not turned:
        return np.array([*(below - tip)[:2], max(0.0, CLEAR - tip[2])]), yaw, OPENED
    return _come_down(tip, below), yaw, OPENED
