"""A policy plans alike whatever the caller's torch settings are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import ToyEnv
from toy_model import ToyModel, toy_spec
from toy_problem import build

import latentplan
from latentplan.planning.mpc import MPC

HERE = {"state": np.array([0.5, -0.5, 0.2, 0.0], np.float32)}
THERE = {"state": np.array([-0.5, 0.8, 0.0, 0.6], np.float32)}


@pytest.mark.parametrize("name", ["gradient", "hybrid", "cem"])
def test_inside_inference_mode_the_plan_is_the_same(name):
    def plan(mode):
        mpc = MPC(ToyModel(toy_spec()), build(name, horizon=2, candidates=32))
        with torch.inference_mode(mode):
            mpc.goal(THERE)
            mpc.act(HERE)
            mpc.evaluate(HERE, np.zeros((1, 2)))
        return mpc.plan

    outside, inside = plan(False), plan(True)
    assert torch.equal(outside.actions, inside.actions)
    assert torch.equal(outside.cost, inside.cost)


def test_the_default_dtype_does_not_matter(untrained_run):
    def act():
        env = ToyEnv()
        policy = latentplan.load(untrained_run)
        policy.goal(env.reset(seed=1)[0])
        return policy.act(env.reset(seed=0)[0])

    wanted = act()
    torch.set_default_dtype(torch.float64)
    try:
        found = act()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(wanted, found)
