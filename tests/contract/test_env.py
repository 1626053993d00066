"""What every registered env keeps: gymnasium's rules, seeds, exact snapshots, a real oracle."""

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from latentplan import registry
from latentplan.errors import ConfigError, MissingDependency, ShapeError
from latentplan.protocols import Env, HasEpisodeLength
from latentplan.sim.deformable.engines.engine import ENGINES

NAMES = sorted(registry.BUILT_IN["env"])
ENVS = [(name, engine) for name in NAMES for engine in ENGINES.get(name, [""])]  # "": its only one


@pytest.fixture(params=ENVS, ids=lambda chosen: "-".join(filter(None, chosen)))
def env(request):
    name, engine = request.param
    made = registry.get("env", name)
    try:
        env = made(made.Config(engine=engine) if engine else made.Config())
    except MissingDependency as e:  # a simulator that the user brings
        pytest.skip(str(e))
    yield env
    env.close()


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def actions(env, count, seed=0):
    rng = np.random.default_rng(seed)
    low, high = env.data_spec.action.low, env.data_spec.action.high
    return rng.uniform(low, high, (count, env.data_spec.action.size)).astype(np.float32)


def goal_of(env, seed):
    try:
        return env.goal(seed=seed)
    except ConfigError as e:  # a task that nobody was taught
        pytest.skip(str(e))


def needs_an_oracle(env, observation, goal):
    try:
        env.oracle(observation, goal)
    except ConfigError as e:  # there are goals, but nobody knows the way
        pytest.skip(str(e))


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


def test_the_oracle_reaches_goals_and_random_does_not(env):
    space = env.action_space
    space.seed(0)
    reached = {"oracle": 0, "random": 0}
    for seed in range(3):
        goal = goal_of(env, 100 + seed)
        assert env.distance(goal, goal) < 1e-6  # metres; a pose that is fitted is not exact
        for name in reached:
            observation, _ = env.reset(seed=seed, options={"goal": goal})
            needs_an_oracle(env, observation, goal)
            for _ in range(env.episode_length if isinstance(env, HasEpisodeLength) else 20):
                action = env.oracle(observation, goal) if name == "oracle" else space.sample()
                assert space.contains(action)
                step = env.step(action)
                observation = step.observation
                assert step.reward == -step.info["distance"] == -env.distance(observation, goal)
                if step.info["success"]:
                    reached[name] += 1
                    break
    assert reached["oracle"] >= 2 and reached["random"] == 0


def test_a_goal_is_the_same_again_and_leaves_the_episode_alone(env):
    env.reset(seed=1)
    env.step(actions(env, 1)[0])
    state = env.snapshot()
    ahead = env.step(actions(env, 1)[0]).observation
    env.restore(state)
    goal = goal_of(env, 7)
    assert equal(env.step(actions(env, 1)[0]).observation, ahead)
    env.reset(seed=2)
    assert equal(env.goal(seed=7), goal)


def test_envs_that_take_turns_see_what_each_sees_alone(env):
    other = type(env)()
    alone = []
    for e, seed in ((env, 3), (other, 4)):
        e.reset(seed=seed)
        alone.append([e.step(a).observation for a in actions(e, 2)])
    env.reset(seed=3), other.reset(seed=4)
    for i, action in enumerate(actions(env, 2)):
        assert equal(env.step(action).observation, alone[0][i])
        assert equal(other.step(action).observation, alone[1][i])
    other.close()


@pytest.mark.parametrize("bad", [(np.nan, 0), (0.0, -1), (1.5, 0)], ids=["nan", "short", "high"])
def test_a_bad_action_is_refused(env, bad):
    value, longer = bad
    env.reset(seed=0)
    with pytest.raises(ShapeError, match="action"):
        env.step(np.full(env.data_spec.action.size + longer, value, np.float32))


def test_pictures_stay_right_when_envs_come_and_go(env):
    want, _ = env.reset(seed=4)
    for _ in range(6):
        other = type(env)(env.config)
        assert equal(other.reset(seed=4)[0], want)
        env.reset(seed=1)
        del other  # frees its pictures' resources while `env` lives on
        assert equal(env.reset(seed=4)[0], want)
