"""Pick-and-drag by a simulated arm: the executed path of the gripper while it carries."""

from __future__ import annotations

import numpy as np

from latentplan.robots.description import load
from latentplan.robots.pick_and_place import PickAndPlace
from latentplan.robots.simulated_arm import SimulatedArm
from latentplan.types import Array


class ArmPaths:
    """The paths of a gripper on an arm, in place of `engine.arc`.

    The arm approaches, grasps, lifts, moves, lowers, releases and returns home; the whole motion is
    planned within its limits and checked for collisions. The part between grasp and release is
    simulated with the arm's dynamics; the object rests during the others, and the arm is out of
    view in every image. The object exerts no force on the arm: it weighs 1 % of it.
    """

    def __init__(self, name: str, *, timestep: float) -> None:
        """Load the arm `name` (or a file, see `robots.description.load`)."""
        arm = load(name)
        self._timestep = timestep
        self._planner = PickAndPlace(arm)
        self._arm = SimulatedArm(arm)

    def path(self, start: Array, end: Array, *, lift: float) -> Array:
        """Return the gripper's path (S, 3) from `start` (3,) to `end` (2,), one point per timestep.

        Raises Unreachable if the arm cannot execute it; nothing moves then.
        """
        goal = np.append(end[:2], start[2])
        motion = self._planner.plan(start, goal, lift=lift, dt=self._timestep)
        held = motion.carrying
        first = held.start - 1  # the end of the grasp, at which the arm rests
        carried = motion.part(slice(first, held.stop))
        self._arm.reset(carried)
        positions = self._arm.execute(carried).ee[:, :3]
        # The object is held at its grip, which may be lower than the finger tips can reach.
        path: Array = start + positions[1:] - positions[0]
        return path
