"""control=velocity: a gripper that moves on, takes hold, carries and lets go."""

import numpy as np
import pytest

from latentplan.sim.deformable.cloth import Cloth
from latentplan.sim.deformable.rope import Rope


@pytest.fixture(params=[Rope, Cloth])
def env(request):
    settings = {"task": "fold"} if request.param is Cloth else {}
    env = request.param(request.param.Config(control="velocity", **settings))
    yield env
    env.close()


def toward(env, observation, place, grip):
    """Return the action that moves the gripper towards `place` (3,)."""
    way = place - observation["gripper"][:3]
    velocity = np.clip(way / (env.config.speed * env.data_spec.dt), -1, 1)
    return np.append(velocity, grip).astype(np.float32)


def go(env, observation, place, grip):
    for _ in range(60):
        step = env.step(toward(env, observation, np.array(place), grip))
        observation = step.observation
        if np.linalg.norm(observation["gripper"][:3] - place) < 2e-3:
            break
    return step


def test_the_spec_says_what_it_is(env):
    assert env.data_spec.pick is None
    assert 0.05 <= env.data_spec.dt <= 0.1  # 10 to 20 Hz
    observation, _ = env.reset(seed=0)
    assert observation["gripper"].tolist() == pytest.approx([0, 0, env.HOVER, 0])


def test_it_grasps_carries_and_lets_go(env):
    observation, _ = env.reset(seed=3)
    end = env._engine.grips()[0]
    step = go(env, observation, end, grip=-1)
    assert step.info["picked"] == -1
    step = env.step(np.array([0, 0, 0, 1], np.float32))
    assert step.info["picked"] >= 0
    held = step.info["picked"]
    place = np.clip(0.5 * end[:2], -0.2, 0.2)
    step = go(env, step.observation, [*place, 0.05], grip=1)
    assert step.info["picked"] == held
    assert np.linalg.norm(env._engine.grips()[held] - [*place, 0.05]) < 0.02
    step = go(env, step.observation, [0, 0, 0.15], grip=-1)
    assert step.info["picked"] == -1
    assert env._engine.grips()[held][2] < 0.045  # it fell


def test_a_gripper_that_closes_in_the_air_holds_nothing(env):
    observation, _ = env.reset(seed=0)
    high = [*env._engine.grips()[0][:2], 0.15]
    step = go(env, observation, high, grip=-1)
    assert env.step(np.array([0, 0, 0, 1], np.float32)).info["picked"] == -1
    step = go(env, step.observation, env._engine.grips()[0], grip=1)  # closed all the way
    assert step.info["picked"] == -1


def test_it_stays_in_the_workspace(env):
    observation, _ = env.reset(seed=0)
    for _ in range(30):
        observation = env.step(np.array([1, -1, 1, -1], np.float32)).observation
    side = env.config.workspace
    assert observation["gripper"][:3].tolist() == pytest.approx([side, -side, env.CEILING])


def test_a_snapshot_in_the_middle_of_carrying_is_exact(env):
    observation, _ = env.reset(seed=3)
    step = go(env, observation, env._engine.grips()[0], grip=-1)
    carry = np.array([0.5, -0.3, 0.4, 1], np.float32)
    env.step(carry)
    state = env.snapshot()
    ahead = [env.step(carry).observation for _ in range(4)]
    env.reset(seed=9)
    env.restore(state)
    for want in ahead:
        step = env.step(carry)
        assert step.info["picked"] >= 0
        assert all(np.array_equal(step.observation[k], want[k]) for k in want)
