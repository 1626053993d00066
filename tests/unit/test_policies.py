from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import ToyEnv

from latentplan.errors import ConfigError
from latentplan.exploration.box import Box
from latentplan.exploration.expert import Expert
from latentplan.exploration.oracle import Mixture, NoisyOracle, Oracle
from latentplan.types import ActionSpec, Convention, Goal, Observation, Spec

TWO = Spec({}, ActionSpec((-1.0, 0.0), (1.0, 4.0)), env="arm")


def drawn(colour: float, episodes: int = 300, length: int = 40) -> np.ndarray:
    """Return (episodes, length, 2) actions."""
    policy, rng = Box(TWO, Box.Config(colour=colour)), np.random.default_rng(0)
    every = []
    for _ in range(episodes):
        policy.reset(seed=rng)
        every.append([policy.act({}) for _ in range(length)])
    return np.array(every)


@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_noise_of_any_colour_is_uniform_in_the_box(colour: float) -> None:
    first, second = np.moveaxis(drawn(colour), -1, 0)
    for values, low, high in ((first, -1, 1), (second, 0, 4)):
        fifths = np.histogram(values, 5, (low, high))[0] / values.size
        assert np.abs(fifths - 0.2).max() < 0.04
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1


def test_colour_makes_actions_hang_together() -> None:
    def next_to_each_other(colour: float) -> float:
        x = drawn(colour)[..., 0]
        return float(np.corrcoef(x[:, :-1].ravel(), x[:, 1:].ravel())[0, 1])

    white, pink, red = (next_to_each_other(colour) for colour in (0.0, 1.0, 2.0))
    assert abs(white) < 0.03
    assert 0.5 < pink < 0.85
    assert red > 0.97


def test_noise_goes_on_when_an_episode_is_long() -> None:
    actions = drawn(1.0, episodes=1, length=700)[0]
    assert len(np.unique(actions[:, 0])) > 690


@given(low=st.floats(-1e3, 1e3), width=st.floats(0, 1e3), seed=st.integers(0, 99))
def test_a_box_is_never_left(low: float, width: float, seed: int) -> None:
    policy = Box(Spec({}, ActionSpec((low,), (low + width,))))
    policy.reset(seed=seed)
    action = policy.act({})
    assert np.float32(low) <= action[0] <= np.float32(low + width)


def final(policy: Oracle | NoisyOracle, seed: int) -> tuple[float, float]:
    """Return the distance to the goal at the start and at the end of an episode."""
    env = ToyEnv(ToyEnv.Config(discs=2))
    policy.attach(env)
    policy.reset(seed=seed)
    goal = policy.goal_chosen.observation
    observation: Observation = env.reset(seed=seed)[0]
    start = env.distance(observation, goal)
    for _ in range(20):
        observation = env.step(policy.act(observation)).observation
    return start, env.distance(observation, goal)


def mean_final(policy: Oracle | NoisyOracle) -> tuple[float, float]:
    start, end = zip(*(final(policy, seed) for seed in range(20)), strict=True)
    return float(np.mean(start)), float(np.mean(end))


def test_the_oracle_reaches_its_goals_and_noise_costs() -> None:
    spec = ToyEnv(ToyEnv.Config(discs=2)).data_spec
    start, oracle = mean_final(Oracle(spec))
    _, exact = mean_final(NoisyOracle(spec, NoisyOracle.Config(noise=0, aim=0)))
    _, some = mean_final(NoisyOracle(spec, NoisyOracle.Config(noise=0.2, aim=0.03)))
    _, much = mean_final(NoisyOracle(spec, NoisyOracle.Config(noise=3, aim=1)))
    assert oracle == exact < 0.02 * start
    assert exact < some < 0.4 * start
    assert much > 0.8 * start


def test_an_expert_that_verifies_nothing_draws_one_of_its_candidates() -> None:
    class Guided(ToyEnv):
        def candidates(self, observation: Observation, goal: Observation) -> Iterator[np.ndarray]:
            yield from np.linspace([-0.6] * 4, [0.6] * 4, 3, dtype=np.float32)

        def oracle(self, observation: Observation, goal: Observation) -> np.ndarray:
            raise AssertionError("nothing is tried")

    env = Guided()
    policy = NoisyOracle(env.data_spec, NoisyOracle.Config(noise=0, aim=0, verify=False))
    policy.attach(env)
    policy.reset(seed=0)
    drawn = np.array([policy.act({})[0] for _ in range(2000)])
    shares = [np.mean(np.isclose(drawn, each)) for each in (-0.6, 0, 0.6)]
    assert np.allclose(shares, [0.25, 0.75 * 0.25, 0.75**2], atol=0.03)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mixture_has_its_share_of_the_expert(share: float) -> None:
    env, rng = ToyEnv(), np.random.default_rng(0)
    policy = Mixture(env.data_spec, Mixture.Config(share=share))
    policy.attach(env)
    expert = []
    for _ in range(400):
        policy.reset(seed=rng)
        expert.append(policy.goal_chosen is not None)
    assert abs(np.mean(expert) - share) < 0.08
    assert share not in (0, 1) or np.mean(expert) == share


def test_a_mixture_without_picks_takes_the_box() -> None:
    class Reach(ToyEnv):
        def oracle(self, observation: Observation, goal: Observation) -> np.ndarray:
            return np.array([0.5, 2.0], np.float32)

    policy = Mixture(TWO, Mixture.Config(expert=NoisyOracle.Config(noise=0)))
    policy.attach(Reach())
    rng = np.random.default_rng(3)
    seen = {True: [], False: []}
    for _ in range(40):
        policy.reset(seed=rng)
        seen[policy.goal_chosen is not None].append(tuple(policy.act({}).tolist()))
    assert set(seen[True]) == {(0.5, 2.0)}
    assert len(set(seen[False])) == len(seen[False]) > 5


def test_settings_are_checked() -> None:
    for wrong, message in (
        (lambda: Box.Config(colour=-1), "Box.colour"),
        (lambda: NoisyOracle.Config(noise=-0.1), "NoisyOracle.noise"),
        (lambda: NoisyOracle.Config(aim=float("nan")), "NoisyOracle.aim"),
        (lambda: Mixture.Config(share=1.5), "Mixture.share"),
    ):
        with pytest.raises(ConfigError, match=message):
            wrong()


class NotSkilled:
    """An env without an expert of its own."""

    data_spec = ToyEnv().data_spec


def test_an_expert_needs_no_goal_and_an_env_without_one_is_refused() -> None:
    env = ToyEnv(ToyEnv.Config(discs=2))
    policy = Expert(env.data_spec)
    with pytest.raises(ConfigError, match="found no env; attach"):
        policy.act(env.reset(seed=3)[0])
    policy.attach(env)
    observation: Observation = env.reset(seed=3)[0]
    for _ in range(20):
        observation = env.step(policy.act(observation)).observation
    assert np.abs(observation["keypoints"]).max() < 1e-3  # the toy's expert goes to the middle
    with pytest.raises(ConfigError, match="env 'toy' has no expert that needs no goal"):
        policy.attach(NotSkilled())  # type: ignore[arg-type]


def test_an_experts_noise_spares_the_gripper() -> None:
    class Grasping:
        data_spec = TWO

        def expert(self, observation: Observation, rng: np.random.Generator) -> np.ndarray:
            return np.array([0.0, 1.0], np.float32)

    convention = Convention("ee_delta", gripper="open_is_1")
    spec = Spec({}, ActionSpec((-1.0, 0.0), (1.0, 1.0), convention=convention))
    policy = Expert(spec, Expert.Config(noise=0.3))
    policy.attach(Grasping())  # type: ignore[arg-type]
    policy.reset(seed=0)
    actions = np.array([policy.act({}) for _ in range(2000)])
    assert (actions[:, 1] == 1).all()
    assert 0.27 < actions[:, 0].std() < 0.33


def test_an_oracle_without_env_or_goal_is_an_error() -> None:
    oracle = Oracle(TWO)
    with pytest.raises(ConfigError, match="oracle: found no env; attach"):
        oracle.reset(seed=0)
    with pytest.raises(ConfigError, match="oracle: found a goal without an observation"):
        oracle.reset(Goal(text="open"))
    with pytest.raises(ConfigError, match="oracle: found no goal; reset"):
        oracle.act({})
