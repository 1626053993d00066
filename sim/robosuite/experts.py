"""Scripted experts: the next move of the hand, from an observation with privileged keys.

They have no state, so that they continue from any state, and grasp again after a slip. A pose is
(7,): x, y, z in metres, quaternion w, x, y, z.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from latentplan.errors import ConfigError
from latentplan.types import ActionSpec, Array, Observation

ROBOT = "Panda"  # the arm whose gripper they are made for
OSC_POSE = ("ee_delta", "rotvec", "base")
DOWN = np.array([0.0, 0.0, -1.0])
UP = np.array([0.0, 0.0, 1.0])
NEAR = 0.008  # m, largest horizontal error before the hand descends to an object
STRAIGHT = 0.15  # rad, largest error of the hand's turn before it descends
HOVER = 0.06  # m over an object from which the hand descends
ABOVE = 0.01  # m of a grasp over an object's middle, so that fingers stay clear of the table
GAIN = 3.0  # gain on the position error; robosuite's controllers cover only part of a command


class Move(NamedTuple):
    """The next motion of the hand."""

    place: Array  # (3,) m, target of the grip site
    closed: bool
    turn: Array = np.zeros(3)  # remaining rotation vector in the world, rad


def act(move: Move, observation: Observation, *, action: ActionSpec, base: Array) -> Array:
    """Return the action (A,) towards a move; `base` (3, 3) are the axes of the arm's base.

    Raises ConfigError if the action's convention is not that of osc_pose.
    """
    means = action.convention
    if means is None or (means.control, means.rotation, means.frame) != OSC_POSE:
        raise ConfigError("robosuite: the experts act with controller=osc_pose alone")
    error = base.T @ (move.place - observation["ee"][:3]) / means.position_unit
    turn = base.T @ move.turn / means.rotation_unit
    grip = 1.0 if move.closed else -1.0
    numbers: Array = np.clip([*(GAIN * error), *(GAIN * turn), grip], -1, 1).astype(np.float32)
    return numbers


def lift(observation: Observation, *, key: str = "cube", height: float = 0.15) -> Move:
    """Return the move that grasps an object and lifts it."""
    if observation["grasped"][0]:
        return Move(observation["ee"][:3] + height * UP, True, upright(observation))
    return grasp(observation, observation[key])


def stack(observation: Observation) -> Move:
    """Return the move that puts `cube_a` on `cube_b`."""
    return place(observation, "cube_a", observation["cube_b"][:3] + 0.045 * UP, clear=0.05)


def place(
    observation: Observation,
    key: str,
    end: Array,
    *,
    clear: float,
    turn: Array | None = None,
    beside: float = 0.006,
) -> Move:
    """Return the move that brings the object `key` to `end` (3,) from above and releases it.

    It travels `clear` m above the end; `turn` (3,), rad, is the object's remaining turn.
    """
    thing, hand = observation[key][:3], observation["ee"][:3]
    gap = end - thing
    turn = upright(observation) if turn is None else turn
    sideways = float(np.linalg.norm(gap[:2]))
    arrived = sideways < 2 * beside and abs(gap[2]) < 0.012
    if not observation["grasped"][0]:
        if arrived:  # leave it there
            return Move(hand + 0.1 * UP, False)
        return grasp(observation, observation[key])
    if arrived:
        return Move(hand, False)
    over = gap[2] + clear  # remaining rise before the path is free
    if sideways > beside or np.linalg.norm(turn) > STRAIGHT:
        ahead = np.append(gap[:2] if over < 0.015 else np.zeros(2), max(over, 0.0))
        return Move(hand + ahead, True, turn)
    return Move(hand + gap - 0.01 * UP, True, turn)


def grasp(observation: Observation, pose: Array) -> Move:
    """Return the move that brings the hand over an object, down to it, and closes it."""
    hand = observation["ee"][:3]
    target = pose[:3] + ABOVE * UP
    turn = upright(observation) + along(observation, pose)
    gap = target - hand
    sideways = float(np.linalg.norm(gap[:2]))
    if sideways > 2 * NEAR and -gap[2] < HOVER - 0.02:  # too low to travel
        return Move(np.append(hand[:2], target[2] + HOVER), False, turn)
    if sideways > NEAR or abs(turn[2]) > STRAIGHT:
        return Move(target + HOVER * UP if -gap[2] > 0.02 else target, False, turn)
    if -gap[2] > 0.006:
        return Move(target, False, turn)
    return Move(target, True, turn)


def upright(observation: Observation) -> Array:
    """Return the rotation vector (3,) that makes the hand point straight down."""
    pointing = _rotation(observation["ee"]).apply(UP)
    axis: Array = np.cross(pointing, DOWN)
    return axis


def along(observation: Observation, pose: Array, *, quarter: float = np.pi / 2) -> Array:
    """Return the turn (3,) about the vertical that aligns the hand with an object's sides."""
    error = heading(pose) - heading(observation["ee"])
    turned: Array = UP * ((error + quarter / 2) % quarter - quarter / 2)
    return turned


def heading(pose: Array) -> float:
    """Return the angle of a pose's x axis about the vertical, rad."""
    x = _rotation(pose).apply(np.array([1.0, 0.0, 0.0]))
    return float(np.arctan2(x[1], x[0]))


def _rotation(pose: Array) -> Rotation:
    return Rotation.from_quat(pose[[4, 5, 6, 3]].astype(np.float64))


OUT, REACH = 0.10, 0.11  # m from the latch's axis: to the handle's plane, and along the handle
BEFORE = 0.09  # m before the handle, at which the hand turns towards the door
FREE = 1.25  # rad, turn of the latch at which it is past the frame
LEAD = 0.35  # rad, lead of the hand's target over the latch
PULL = 0.12  # rad, lead over the hinge


def open_door(observation: Observation) -> Move:
    """Return the move that grasps the door's handle, turns it down and pulls.

    The hand points at the door and holds the handle from above and below; it turns with the latch
    and swings with the door.
    """
    hinge, latch = (float(angle) for angle in observation["joints"])
    hand = observation["ee"][:3]
    frame = _rotation(observation["door"]).as_matrix()
    inward = frame[:, 1]

    def grip(angle: float, swing: float = 0.0) -> tuple[Array, Array]:
        """Return place and axes of a hand that holds a handle turned by `angle`."""
        along = np.cos(angle) * frame[:, 0] - np.sin(angle) * UP
        across = np.sin(angle) * frame[:, 0] + np.cos(angle) * UP
        point = observation["latch"][:3] + REACH * along - OUT * inward
        axes = np.stack([-across, np.cross(inward, -across), inward], 1)
        about = Rotation.from_rotvec(swing * UP).as_matrix()
        pivot = observation["hinge"][:3]
        return pivot + about @ (point - pivot), about @ axes

    def move(aim: tuple[Array, Array], *, closed: bool) -> Move:
        return Move(aim[0], closed, _turn(observation["ee"], aim[1]))

    place, axes = grip(latch)
    gap = place - hand
    depth = float(gap @ inward)
    beside = float(np.linalg.norm(gap - depth * inward))
    # A spring returns the handle, so a hand near a turned handle holds it.
    if observation["grasped"][0] or (latch > 0.1 and np.linalg.norm(gap) < 0.05):
        if latch < FREE and hinge < 0.03:
            return move(grip(latch + LEAD), closed=True)
        return move(grip(latch, PULL), closed=True)
    if np.linalg.norm(_turn(observation["ee"], axes)) > STRAIGHT or beside > 0.02:
        before = min(BEFORE, max(0.0, depth)) if beside < 0.01 else BEFORE
        return move((place - before * inward, axes), closed=False)
    return move((place, axes), closed=depth < 0.012)


def _turn(pose: Array, axes: Array) -> Array:
    turn: Array = (Rotation.from_matrix(axes) * _rotation(pose).inv()).as_rotvec()
    return turn
