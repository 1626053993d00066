"""What is said of the end effector's box before its path is computed must be so."""

import numpy as np
import pytest

from latentplan.real_robot.loop.workspace import Workspace
from latentplan.robots.chain import Chain
from latentplan.robots.description import load


@pytest.mark.parametrize("arm", ["panda", "ur5e"])
def test_what_surely_holds_does_hold(arm):
    described = load(arm)
    chain, rng = Chain(described), np.random.default_rng(0)
    low, high = described.column("low"), described.column("high")
    said = beyond = 0
    for _ in range(1500):
        q = rng.uniform(low, high)
        ee = chain.ee(q[None])[0]
        size = rng.uniform(0.0, 0.1, 3)  # some faces are near
        room = Workspace(chain, ee - size, ee + rng.uniform(0.0, 0.1, 3))
        assert room.holds(q[None])
        start = q + rng.normal(size=len(q)) * 10 ** rng.uniform(-4, -1)
        end = start + rng.normal(size=len(q)) * 10 ** rng.uniform(-4, -1)
        least, most = np.minimum(start, end), np.maximum(start, end)
        corners = np.where(rng.random((200, len(q))) < 0.5, least, most)
        within = rng.uniform(least, most, (100, len(q)))
        holds = room.holds(np.concatenate([q[None], corners, within]))
        found = room.surely_holds(least.tolist(), most.tolist())
        assert holds or not found
        said += found
        beyond += not holds
    assert said > 200 and beyond > 200  # both were put to the test


def test_nothing_is_sure_before_it_looked_or_from_outside():
    arm = load("panda")
    chain = Chain(arm)
    q = np.array([joint.home for joint in arm.joints])
    ee = chain.ee(q[None])[0]
    room = Workspace(chain, ee - 1, ee + 1)
    assert not room.surely_holds(q.tolist(), q.tolist())
    assert room.holds(q[None]) and room.surely_holds(q.tolist(), q.tolist())
    outside = Workspace(chain, ee + 0.01, ee + 1)
    assert not outside.holds(q[None]) and not outside.surely_holds(q.tolist(), q.tolist())
