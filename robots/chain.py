"""Forward kinematics of a described arm in closed form: numpy alone, many positions a call.

`Kinematics` adds contacts and inverse kinematics, and needs MuJoCo; a control loop uses this module
at every tick, also on machines without MuJoCo.
"""

from __future__ import annotations

import numpy as np

from latentplan.robots.description import Arm
from latentplan.shapes import check
from latentplan.types import Array


class Chain:
    """The kinematic chain of an arm, from the origins of its joints."""

    def __init__(self, arm: Arm) -> None:
        """Take the arm's joints; the arm does not change afterwards."""
        self._hand = arm.tip() @ [0.0, 0.0, arm.flange + arm.gripper.length, 1.0]
        # The transform of each joint's origin, x y z 1 -> x y z 1 for points written as rows.
        rows = [joint.origin().T for joint in arm.joints]
        rows[0] = rows[0] @ _base(arm)
        # The last joint first: from the hand's frame to the world's.
        self._rows = list(enumerate(rows))[::-1]
        # The hand is no farther from a joint's axis than the length of all links after the joint.
        links = [float(np.linalg.norm(joint.origin()[:3, 3])) for joint in arm.joints[1:]]
        links.append(float(np.linalg.norm(self._hand[:3])))
        self.reach = np.cumsum(links[::-1])[::-1].copy()  # (J,) m: how far 1 rad can move the hand
        self._buffers: dict[int, tuple[tuple[Array, Array], tuple[Array, Array], Array]] = {}

    def ee(self, q: Array) -> Array:
        """Return the positions (N, 3) of the end effector, m in the world, at q (N, J) rad."""
        (points, xy), (others, others_xy), turns = self._buffer(len(q))
        np.cos(q.T, out=turns.real)
        np.sin(q.T, out=turns.imag)
        points[:] = self._hand
        for i, row in self._rows:
            np.multiply(xy, turns[i], xy)
            np.dot(points, row, others)
            points, xy, others, others_xy = others, others_xy, points, xy
        return points[:, :3].copy()

    def rows(self) -> tuple[Array, Array]:
        """Return the transform of each joint's origin (J, 4, 4) and the hand (4,), for row vectors.

        The end effector is at hand Z(q_J) row_J ... Z(q_1) row_1, Z(q) being a turn about z.
        """
        return np.array([row for _, row in self._rows[::-1]]), self._hand.copy()

    def _buffer(self, count: int) -> tuple[tuple[Array, Array], tuple[Array, Array], Array]:
        """Return two arrays (count, 4) with their x + iy, and one for the joints' turns.

        They are kept, because their allocation would take half the time.
        """
        if count not in self._buffers:
            pair = [np.empty((count, 4)) for _ in range(2)]
            points, others = [(each, each.view(np.complex128)[:, 0]) for each in pair]
            turns = np.empty((len(self._rows), count), np.complex128)
            self._buffers[count] = points, others, turns
        return self._buffers[count]


def flange(arm: Arm, q: Array) -> Array:
    """Return the poses (N, 4, 4) flange -> world at joint positions q (N, J), rad.

    The flange is that of the arm's maker: `arm.flange` along z of the tip, before the yaw of the
    gripper. Raises ShapeError if q is of another arm.
    """
    check("flange.q", q, "N J", J=len(arm.joints))
    poses = np.broadcast_to(_base(arm).T, (len(q), 4, 4))
    for joint, angle in zip(arm.joints, np.asarray(q, np.float64).T, strict=True):
        turn = np.zeros((len(q), 4, 4))
        turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
        turn[:, 1, 0] = np.sin(angle)
        turn[:, 0, 1] = -turn[:, 1, 0]
        turn[:, 2, 2] = turn[:, 3, 3] = 1
        poses = poses @ joint.origin() @ turn
    along = np.eye(4)
    along[2, 3] = arm.flange
    return poses @ arm.tip() @ along


def in_base(arm: Arm, points: Array) -> Array:
    """Return points (..., 3) of the world in the frame of the arm's base, m."""
    base = _base(arm)
    return (np.asarray(points) - base[3, :3]) @ base[:3, :3].T


def _base(arm: Arm) -> Array:
    """Return the transform (4, 4) base -> world, for points as rows."""
    c, s = np.cos(arm.yaw), np.sin(arm.yaw)
    return np.array([[c, s, 0, 0], [-s, c, 0, 0], [0, 0, 1, 0], [*arm.position, 1]])
