"""What every registered policy keeps: bounds, seeds, and episodes are collected with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toy import ToyEnv
from toy_model import ToyModel

from latentplan import registry
from latentplan.protocols import EnvPolicy, GoalChoosingPolicy, Policy
from latentplan.types import Goal

POLICIES = sorted(registry.BUILT_IN["policy"])


def build(name: str) -> Policy:
    spec = ToyEnv().data_spec
    if name == "generative":
        return registry.get("policy", name)(Proposing(spec, ToyModel.Config(key="rgb")))
    if name == "mpc":
        return registry.get("policy", name)(ToyModel(spec, ToyModel.Config(key="rgb")))
    return registry.get("policy", name)(spec)


class Proposing(ToyModel):
    def proposal(self, task=""):
        return self

    def sample(self, context, count, *, horizon, generator):
        import torch

        return torch.rand(1, count, horizon, 4, generator=generator) * 2 - 1


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> Policy:
    return build(request.param)


def episode(policy: Policy, seed: Any, length: int = 6) -> tuple[Any, np.ndarray]:
    env = ToyEnv()
    chosen = None
    if isinstance(policy, EnvPolicy):
        policy.attach(env)
    if isinstance(policy, GoalChoosingPolicy):
        policy.reset(seed=seed)
        chosen = policy.goal_chosen
    else:
        policy.reset(Goal(observation=env.reset(seed=7)[0]), seed=seed)
    observation, _ = env.reset(seed=seed)
    actions = []
    for _ in range(length):
        actions.append(policy.act(observation))
        observation = env.step(actions[-1]).observation
    return chosen, np.stack(actions)


def test_it_is_a_policy(policy: Policy) -> None:
    assert isinstance(policy, Policy)


def test_actions_are_float32_and_inside_the_bounds(policy: Policy) -> None:
    for seed in range(3):
        _, actions = episode(policy, seed)
        assert actions.dtype == np.float32 and actions.shape == (6, 4)
        assert (np.abs(actions) <= 1).all()


@pytest.mark.parametrize("name", POLICIES)
def test_an_episode_depends_on_the_seed_alone(name: str) -> None:
    policy = build(name)
    goal, first = episode(policy, 1)
    _, other = episode(policy, 2)
    again_goal, again = episode(policy, 1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (goal is None) == (again_goal is None)
    if goal is not None:
        assert set(goal.observation) == set(ToyEnv().data_spec.observation)
        for key, value in goal.observation.items():
            np.testing.assert_array_equal(value, again_goal.observation[key])


@pytest.mark.parametrize("name", ["box", "random", "noisy_oracle", "mixture"])
def test_a_generator_as_seed_is_drawn_from(name: str) -> None:
    policy, env = build(name), ToyEnv()
    if isinstance(policy, EnvPolicy):
        policy.attach(env)
    observation, _ = env.reset(seed=0)
    drawn = []
    for seed in (np.random.default_rng(5), 5, np.random.SeedSequence(5)):
        policy.reset(seed=seed)
        drawn.append(policy.act(observation))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", ["oracle", "noisy_oracle", "mixture"])
def test_a_goal_that_is_given_is_not_replaced_by_one_it_chooses(name: str) -> None:
    policy, env = build(name), ToyEnv()
    policy.attach(env)
    goal = Goal(observation=env.reset(seed=3)[0])
    for seed in range(4):
        policy.reset(goal, seed=seed)
        assert policy.goal_chosen is None
