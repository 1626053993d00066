"""The rope itself: what a pick does, what a distance is, where things stay."""

import numpy as np
import pytest

from latentplan.errors import ConfigError, ShapeError, UnstablePhysics
from latentplan.sim.deformable.rope import Rope
from latentplan.sim.rendering import mujoco_renderer


@pytest.fixture(scope="module")
def env():
    env = Rope()
    yield env
    env.close()


def action(env, point, drag):
    config = env.config
    return np.clip(np.r_[np.array(point) / config.view, np.array(drag) / config.drag], -1, 1)


def centres(observation):
    points = observation["keypoints"]
    return (points[1:] + points[:-1]) / 2


def test_a_picked_link_goes_where_it_is_dragged(env):
    rng = np.random.default_rng(0)
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        link, drag = int(rng.integers(20)), rng.uniform(-0.08, 0.08, 2)
        start = centres(observation)[link]
        step = env.step(action(env, start, drag))
        assert step.info["picked"] == link
        target = np.clip(start + drag, -0.25, 0.25)
        assert np.linalg.norm(centres(step.observation)[link] - target) < 0.012


def test_a_pick_beside_the_rope_grasps_nothing(env):
    observation, _ = env.reset(seed=0)
    corner = np.array([0.29, 0.29])
    corner *= np.where(centres(observation).mean(0) > 0, -1, 1)  # the far one
    step = env.step(action(env, corner, (0.1, 0.1)))
    assert step.info["picked"] == -1
    assert env.distance(step.observation, observation) < 2e-3


def test_the_mask_of_the_image_lies_on_the_rope(env):
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        rgb, pick, view = observation["rgb"], env.data_spec.pick, env.config.view
        rows, columns = np.nonzero((rgb >= pick.low).all(-1))
        assert len(rows) > 40
        size = rgb.shape[0]
        points = np.stack([(columns + 0.5) / size * 2 - 1, 1 - (rows + 0.5) / size * 2], 1) * view
        keypoints = observation["keypoints"]
        gap = np.linalg.norm(points[:, None] - keypoints[None], axis=2)
        pixel = 2 * view / size
        assert gap.min(1).max() < 0.01 + env.config.radius + pixel  # every pixel near the rope
        assert gap.min(0).max() < 0.02 + pixel  # every point of the rope near a pixel


def test_distance_takes_the_better_order(env):
    line = np.stack([np.linspace(0, 0.4, 21), np.zeros(21)], 1).astype(np.float32)
    goal = {"keypoints": line}
    assert env.distance({"keypoints": line[::-1]}, goal) == 0
    assert env.distance({"keypoints": line + np.float32([0, 0.1])}, goal) == pytest.approx(0.1)
    with pytest.raises(ShapeError, match="keypoints"):
        env.distance({"keypoints": line}, {"keypoints": line[:5]})


def test_reward_is_minus_the_distance_to_the_goal(env):
    goal, _ = env.reset(seed=1)
    env.reset(seed=2, options={"goal": goal})
    step = env.step(np.zeros(4, np.float32))
    assert step.reward == pytest.approx(-env.distance(step.observation, goal))
    _, info = env.reset(seed=2)  # draws a goal of its own
    step = env.step(np.zeros(4, np.float32))
    assert step.reward == pytest.approx(-env.distance(step.observation, info["goal"]))
    assert step.info["distance"] == -step.reward


def test_the_rope_stays_in_view(env):
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    for _ in range(60):
        point = centres(observation)[rng.integers(20)]
        observation = env.step(action(env, point, rng.uniform(-0.1, 0.1, 2))).observation
        assert np.abs(observation["keypoints"]).max() < env.config.view


def test_diverged_physics_is_an_error_and_reset_recovers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = Rope()
    env.reset(seed=0)
    env._engine._data.qvel[:] = 1e12
    with pytest.raises(UnstablePhysics):
        env.step(np.zeros(4, np.float32))
    assert not list(tmp_path.iterdir())  # no log of MuJoCo's
    want = Rope().reset(seed=1)[0]["keypoints"]
    assert np.array_equal(env.reset(seed=1)[0]["keypoints"], want)


@pytest.mark.parametrize("field", ["links=1", "workspace=0.5", "timestep=nan", "image=2000"])
def test_a_setting_out_of_range_is_named(field):
    name, value = field.split("=")
    with pytest.raises(ConfigError, match=f"Rope.{name}"):
        Rope.Config(**{name: float(value)})


def test_other_ropes_work():
    env = Rope(Rope.Config(links=30, image=128, length=0.3))
    observation, _ = env.reset(seed=0)
    assert observation["rgb"].shape == (128, 128, 3)
    assert observation["keypoints"].shape == (31, 2)
    length = np.linalg.norm(np.diff(observation["keypoints"], axis=0), axis=1).sum()
    assert length == pytest.approx(0.3, rel=0.02)


def test_self_test_names_the_gl():
    assert mujoco_renderer.self_test() in {"egl", "osmesa"}
