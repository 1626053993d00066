"""What every registered env keeps: gymnasium's rules, seeds, exact snapshots, a real oracle."""

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from latentplan import registry
from latentplan.errors import ShapeError
from latentplan.protocols import Env

ENVS = sorted(registry.BUILT_IN["env"])


@pytest.fixture(params=ENVS)
def env(request):
    env = registry.get("env", request.param)()
    yield env
    env.close()


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def actions(env, count, seed=0):
    rng = np.random.default_rng(seed)
    low, high = env.data_spec.action.low, env.data_spec.action.high
    return rng.uniform(low, high, (count, env.data_spec.action.size)).astype(np.float32)


def test_it_is_a_gymnasium_env(env):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(spec|render|Box).*")
        check_env(env, skip_render_check=True)
    assert isinstance(env, Env)


def test_observations_fit_the_spec(env):
    observation, _ = env.reset(seed=3)
    for _ in range(2):
        for key, array in env.data_spec.observation.items():
            assert observation[key].shape == array.shape
            assert observation[key].dtype == np.dtype(array.dtype)
        observation = env.step(actions(env, 1)[0]).observation


def test_a_seed_gives_the_same_episode_whatever_ran_before(env):
    def episode():
        observations = [env.reset(seed=11)[0]]
        observations += [env.step(a).observation for a in actions(env, 4)]
        return observations

    first = episode()
    env.reset(seed=5)
    for action in actions(env, 3, seed=1):
        env.step(action)
    assert all(equal(a, b) for a, b in zip(first, episode(), strict=True))
    assert not equal(first[0], env.reset(seed=12)[0])


def test_a_snapshot_restores_bit_for_bit(env):
    env.reset(seed=2)
    env.step(actions(env, 1)[0])
    state = env.snapshot()
    ahead = [env.step(a).observation for a in actions(env, 4)]
    env.restore(state)
    assert all(
        equal(env.step(a).observation, o) for a, o in zip(actions(env, 4), ahead, strict=True)
    )
    env.reset(seed=9)
    env.restore(state)
    assert equal(env.step(actions(env, 1)[0]).observation, ahead[0])


def test_the_oracle_gets_near_the_goal_and_random_does_not(env):
    rng = np.random.default_rng(0)
    space = env.action_space
    space.seed(0)
    final = {"oracle": [], "random": []}
    start = []
    for _ in range(5):
        goal_seed, start_seed = rng.integers(2**31, size=2)
        goal, _ = env.reset(seed=int(goal_seed))
        for name in final:
            observation, _ = env.reset(seed=int(start_seed))
            start.append(env.distance(observation, goal))
            for _ in range(20):
                action = env.oracle(observation, goal) if name == "oracle" else space.sample()
                assert env.action_space.contains(action)
                observation = env.step(action).observation
            final[name].append(env.distance(observation, goal))
        assert env.distance(goal, goal) == 0
    assert np.mean(final["oracle"]) < 0.2 * np.mean(start)
    assert np.mean(final["random"]) > 0.5 * np.mean(start)


@pytest.mark.parametrize("bad", [np.full(4, np.nan), np.zeros(3), np.full(4, 1.5)])
def test_a_bad_action_is_refused(env, bad):
    env.reset(seed=0)
    with pytest.raises(ShapeError, match="action"):
        env.step(bad.astype(np.float32))


def test_pictures_stay_right_when_envs_come_and_go(env):
    want, _ = env.reset(seed=4)
    for _ in range(6):
        other = type(env)()
        assert equal(other.reset(seed=4)[0], want)
        env.reset(seed=1)
        del other  # frees its pictures' resources while `env` lives on
        assert equal(env.reset(seed=4)[0], want)
