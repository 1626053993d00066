"""Closed-form forward kinematics beside MuJoCo's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from latentplan.robots.chain import Chain
from latentplan.robots.description import load
from latentplan.robots.kinematics import Kinematics


@pytest.mark.parametrize("name", ["panda", "ur5e"])
def test_both_kinematics_agree_wherever_the_arm_stands(name: str) -> None:
    arm = replace(load(name), position=(0.1, -0.2, 0.3), yaw=0.7)
    rng = np.random.default_rng(0)
    q = rng.uniform(arm.column("low"), arm.column("high"), (200, len(arm.joints)))
    chain = Chain(arm)
    found = chain.ee(q)
    np.testing.assert_allclose(found, Kinematics(arm).forward(q)[:, :3], atol=1e-12)
    kept = found.copy()
    chain.ee(np.zeros_like(q))
    np.testing.assert_array_equal(found, kept)  # what was given out stays
    np.testing.assert_allclose(chain.ee(q[7:8]), found[7:8], atol=1e-14)


@pytest.mark.parametrize("name", ["panda", "ur5e"])
def test_a_joint_moves_the_hand_no_farther_than_its_reach(name: str) -> None:
    arm = load(name)
    chain, rng = Chain(arm), np.random.default_rng(1)
    q = rng.uniform(arm.column("low"), arm.column("high"), (2000, len(arm.joints)))
    for joint, reach in enumerate(chain.reach):
        turned = q.copy()
        turned[:, joint] += 1e-3
        moved = np.linalg.norm(chain.ee(turned) - chain.ee(q), axis=1) / 1e-3
        assert moved.max() <= reach
        if joint < len(chain.reach) - 1:  # the last one turns the hand about itself
            assert moved.max() > 0.2 * reach
