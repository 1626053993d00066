"""`gymnasium.make` knows the tasks, alone and in Gymnasium's own vector envs."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import latentplan  # noqa: F401  (announces the ids)
from latentplan.errors import ConfigError
from latentplan.sim.gymnasium_ids import IDS, LENGTHS

NAMES = sorted(IDS)


@pytest.mark.parametrize("order", ["latentplan, gymnasium", "gymnasium, latentplan"])
def test_the_order_of_imports_does_not_matter(order):
    program = f"import {order}; print([n for n in gymnasium.registry if n[:10] == 'latentplan'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == str(list(IDS)), done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_is_truncated_at_its_length(name):
    env, length = gymnasium.make(name), LENGTHS[IDS[name]]
    assert getattr(env.unwrapped, "episode_length", length) == length
    env.reset(seed=0)
    env.action_space.seed(0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(length)]
    assert ends == [(False, False)] * (length - 1) + [(False, True)]
    env.close()


def test_settings_reach_the_task():
    env = gymnasium.make("latentplan/Rope-v0", task="straighten", image=32)
    observation, info = env.reset(seed=0)
    assert observation["rgb"].shape == (32, 32, 3)
    assert env.unwrapped.config.task == "straighten"
    assert "goal" in info
    env.close()
    with pytest.raises(ConfigError, match="Rope has no key 'tusk'; did you mean 'task'?"):
        gymnasium.make("latentplan/Rope-v0", tusk="straighten")
    with pytest.raises(ConfigError, match="did you mean 'straighten'"):
        gymnasium.make("latentplan/Rope-v0", task="straighter")


@pytest.mark.parametrize("name", NAMES)
def test_the_render_modes_of_gymnasium(name):
    for mode in ("rgb_array", None):
        env = gymnasium.make(name, render_mode=mode)
        assert env.render_mode == env.unwrapped.render_mode == mode
        env.reset(seed=0)
        env.close()
    with pytest.raises(ConfigError, match="render_mode: found 'human', allowed are 'rgb_array'"):
        gymnasium.make(name, render_mode="human")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_envs_step_as_single_ones_do(name, mode):
    extra = {"context": "spawn"} if mode == "async" else {}  # OpenGL does not survive a fork
    envs = gymnasium.make_vec(name, num_envs=2, vectorization_mode=mode, vector_kwargs=extra)
    try:
        envs.action_space.seed(0)
        observation, _ = envs.reset(seed=[5, 6])
        actions = envs.action_space.sample()
        observation = {k: v.copy() for k, v in observation.items()}  # a step writes into it
        after, reward, *_ = envs.step(actions)
    finally:
        envs.close()
    one = gymnasium.make(name)
    for row, seed in enumerate((5, 6)):
        alone, _ = one.reset(seed=seed)
        assert all(np.array_equal(alone[k], observation[k][row]) for k in alone)
        alone, r, *_ = one.step(actions[row])
        assert all(np.array_equal(alone[k], after[k][row]) for k in alone)
        assert r == pytest.approx(reward[row])
    one.close()
