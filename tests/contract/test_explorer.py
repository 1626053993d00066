"""What every registered explorer keeps: bounds, seeds, and it can be collected with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toy import ToyEnv

from latentplan import registry
from latentplan.protocols import Explorer

EXPLORERS = sorted(registry.BUILT_IN["explorer"])


@pytest.fixture(params=EXPLORERS)
def explorer(request: pytest.FixtureRequest) -> Explorer:
    made: Explorer = registry.get("explorer", request.param)(ToyEnv().data_spec)
    return made


def episode(explorer: Explorer, seed: int, length: int = 12) -> tuple[Any, np.ndarray]:
    env, rng = ToyEnv(), np.random.default_rng(seed)
    goal = explorer.begin(env, rng)
    observation, _ = env.reset(seed=seed)
    actions = []
    for _ in range(length):
        actions.append(explorer.act(observation, rng))
        observation = env.step(actions[-1]).observation
    return goal, np.stack(actions)


def test_actions_are_float32_and_inside_the_bounds(explorer: Explorer) -> None:
    for seed in range(5):
        _, actions = episode(explorer, seed)
        assert actions.dtype == np.float32 and actions.shape == (12, 4)
        assert (np.abs(actions) <= 1).all()


def test_an_episode_depends_on_the_seed_alone(explorer: Explorer) -> None:
    goal, first = episode(explorer, 1)
    _, other = episode(explorer, 2)
    again_goal, again = episode(explorer, 1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (goal is None) == (again_goal is None)
    if goal is not None:
        assert set(goal) == set(ToyEnv().data_spec.observation)
        for key in goal:
            np.testing.assert_array_equal(goal[key], again_goal[key])
