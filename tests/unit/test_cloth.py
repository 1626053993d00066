"""The cloth itself: what a pick takes, how it folds, what counts as done, where it stays."""

import numpy as np
import pytest

from latentplan.errors import ConfigError, UnstablePhysics
from latentplan.exploration.oracle import NoisyOracle
from latentplan.sim.deformable import folds
from latentplan.sim.deformable.cloth import Cloth
from latentplan.sim.rendering.mujoco_renderer import mujoco


@pytest.fixture(scope="module")
def env():
    env = Cloth(Cloth.Config(task="fold"))
    yield env
    env.close()


def threads(env, points):
    """Return how long the threads along the grid are, over their length at rest."""
    grid = points.reshape(env.config.rows, env.config.columns, 3)
    along = [np.linalg.norm(np.diff(grid, axis=k), axis=-1).ravel() for k in (0, 1)]
    return np.concatenate(along) / env.config.spacing


def carry(env, observation, *, point, way, lift=0.0):
    c = env.config
    xy = observation["keypoints"][point, :2]
    action = np.concatenate([xy / c.view, np.array(way) / c.drag, [lift]])
    return env.step(np.clip(action, -1, 1).astype(np.float32))


def test_a_flat_cloth_stays_where_it_lies(env):
    observation, _ = env.reset(seed=0)
    assert env.coverage(observation) == pytest.approx(1, abs=0.03)
    step = env.step(np.array([1, 1, 1, 1, 0], np.float32))  # beside the cloth
    assert step.info["picked"] == -1
    assert env.distance(step.observation, observation) < 1e-3


def test_a_corner_goes_where_it_is_carried_and_threads_hold(env):
    observation, _ = env.reset(seed=1)
    points = observation["keypoints"]
    way = 0.7 * (points[80, :2] - points[0, :2])
    step = carry(env, observation, point=0, way=way)
    assert step.info["picked"] == 0
    end = step.observation["keypoints"]
    assert np.linalg.norm(end[0, :2] - points[0, :2] - way) < 0.03
    assert np.linalg.norm(end[80] - points[80]) < 0.02  # the other end did not slide along
    assert threads(env, end).max() < 1.15
    assert end[0, 2] > env.config.radius * 1.5  # on top of the rest


def test_drags_of_an_expert_that_tries_none_flatten_it_all_the_same():
    env = Cloth()
    policy = NoisyOracle(env.data_spec, NoisyOracle.Config(verify=False))
    policy.attach(env)
    start, most = [], []
    for seed in range(3):
        policy.reset(seed=seed)
        observation, _ = env.reset(seed=seed)
        covered = [env.coverage(observation)]
        for _ in range(15):
            observation = env.step(policy.act(observation)).observation
            covered.append(env.coverage(observation))
        start.append(covered[0])
        most.append(max(covered))
    env.close()
    assert np.mean(most) > np.mean(start) + 0.2


def test_the_uppermost_layer_is_taken(env):
    env.reset(seed=0)
    goal = env.goal(seed=0)["keypoints"]
    left = np.flatnonzero(goal[:, 2] < 1.4 * env.config.radius)
    for point in left[:: max(1, len(left) // 6)]:
        over = np.linalg.norm(goal[:, :2] - goal[point, :2], axis=1) < 0.5 * env.config.spacing
        if over.sum() > 1:
            taken = env._choose(goal, goal[point, :2])
            assert goal[taken, 2] > goal[point, 2] + env.config.radius / 2


@pytest.mark.parametrize("how", folds.FOLDS)
def test_a_folded_goal_has_the_area_and_the_threads_of_a_fold(how):
    env = Cloth(Cloth.Config(task="fold", fold=how))
    goal = env.goal(seed=0)
    share = {"half": 0.5, "diagonal": 0.5, "corners": 0.56}[how]
    assert env.coverage(goal) == pytest.approx(share, abs=0.07)
    assert goal["keypoints"][:, 2].max() > 1.6 * env.config.radius  # a second layer
    assert threads(env, goal["keypoints"]).max() < 1.15
    start, _ = env.reset(seed=0, options={"goal": goal})
    assert not env.success(start, goal)
    env.close()


def test_flatten_starts_crumpled_and_ends_flat():
    env = Cloth()
    for seed in range(3):
        start, info = env.reset(seed=seed)
        assert env.coverage(start) <= env.CRUMPLED + 0.02
        assert not env.success(start, info["goal"])
        assert env.success(info["goal"], info["goal"])
        assert env.coverage(info["goal"]) == pytest.approx(1, abs=0.03)
    env.close()


def test_distance_is_invariant_to_the_symmetries_of_the_cloth():
    flat = folds.flat(9, 9, spacing=0.03)
    turned = folds.placed(flat, angle=np.pi / 2, centre=np.zeros(2))
    shifted = folds.placed(flat, angle=0.3, centre=np.array([0.1, 0]))
    place, fold = Cloth(Cloth.Config(task="place")), Cloth(Cloth.Config(task="fold"))
    goal = {"keypoints": flat}
    assert place.distance({"keypoints": turned}, goal) < 1e-9
    assert place.distance({"keypoints": shifted}, goal) > 0.09
    assert fold.distance({"keypoints": shifted}, goal) < 1e-9


def test_the_mask_of_the_image_lies_on_the_cloth():
    env = Cloth()
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        rgb, pick = observation["rgb"], env.data_spec.pick
        seen = ((rgb >= pick.low) & (rgb <= pick.high)).all(-1)
        truth = env._engine.image(kind="segmentation") == 1
        assert seen.sum() > 50
        assert (seen != truth).mean() < 0.005
    env.close()


def test_the_cloth_stays_in_view(env):
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    for _ in range(30):
        point = int(rng.integers(81))
        way, lift = rng.uniform(-0.25, 0.25, 2), rng.uniform(-1, 1)
        observation = carry(env, observation, point=point, way=way, lift=lift).observation
        assert np.abs(observation["keypoints"][:, :2]).max() < env.config.view


def test_a_torn_cloth_is_an_error_and_reset_recovers():
    env = Cloth(Cloth.Config(task="fold"))
    want = env.reset(seed=1)[0]["keypoints"]
    env._engine._data.qvel[:] = 1e12
    with pytest.raises(UnstablePhysics, match="diverged"):
        env.step(np.array([1, 1, 0, 0, 0], np.float32))
    env.reset(seed=0)
    env._engine._data.qpos[0] += 0.3
    mujoco.mj_forward(env._engine._model, env._engine._data)
    with pytest.raises(UnstablePhysics, match="torn"):
        env._engine.check()
    assert np.array_equal(env.reset(seed=1)[0]["keypoints"], want)
    env.close()


def test_other_grids_work():
    env = Cloth(Cloth.Config(task="fold", rows=7, columns=5, size=0.2))
    observation, _ = env.reset(seed=0)
    assert observation["keypoints"].shape == (35, 3)
    assert env.coverage(observation) == pytest.approx(1, abs=0.04)
    env.close()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"task": "iron"}, "Cloth.task"),
        ({"fold": "twice"}, "Cloth.fold"),
        ({"task": "fold", "fold": "corners", "rows": 7}, "Cloth.fold"),
        ({"size": 0.5}, "Cloth.size"),
        ({"rows": 2}, "Cloth.rows"),
        ({"control": "force"}, "Cloth.control"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, field):
    with pytest.raises(ConfigError, match=field):
        Cloth.Config(**settings)
