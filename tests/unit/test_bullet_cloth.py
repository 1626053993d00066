"""The cloth in PyBullet: the images of MuJoCo's, a sheet that folds and does not tear."""

import subprocess
import sys

import numpy as np
import pytest

from latentplan.errors import UnstablePhysics
from latentplan.sim.deformable import folds
from latentplan.sim.deformable.cloth import Cloth
from latentplan.sim.deformable.engines import engine
from latentplan.sim.randomisation import Randomisation
from latentplan.sim.rendering.appearance import Appearance

pytest.importorskip("pybullet")


@pytest.fixture(scope="module")
def cloths():
    made = [Cloth(Cloth.Config(engine=engine)) for engine in ("mujoco", "pybullet")]
    yield made
    for env in made:
        env.close()


def flat(env):
    c = env.config
    return folds.flat(c.rows, c.columns, spacing=c.spacing) + [0, 0, c.radius]


def carry(env, grip, way, *, lift=0.1):
    sheet = env._engine
    start = sheet.grips()[grip]
    sheet.grasp(grip)
    sheet.follow(engine.arc(start, start[:2] + way, lift=lift, steps=32))
    sheet.release()
    sheet.wait(100)
    sheet.rest()


@pytest.mark.parametrize("camera", ["top", "angled"])
def test_images_are_those_of_mujoco(cloths, camera):
    pose = folds.placed(flat(cloths[0]), angle=0.4, centre=np.array([0.03, -0.05]))
    for env in cloths:
        env._engine.lay(pose)
    kinds = {k: [env._engine.image(camera, k) for env in cloths] for k in ("rgb", "segmentation")}
    seen = kinds["segmentation"]
    assert (seen[0] == 1).sum() > 100
    assert (seen[0] != seen[1]).sum() < 0.05 * seen[0].sum()
    assert np.abs(kinds["rgb"][0].astype(int) - kinds["rgb"][1]).mean() < 3
    depth = [env._engine.image(camera, "depth")[seen[0] & seen[1] == 1] for env in cloths]
    assert np.median(np.abs(depth[0] - depth[1])) < 2e-3


def test_the_appearance_colours_the_sheet(cloths):
    sheet = cloths[1]._engine
    sheet.lay(flat(cloths[1]))
    sheet.set_appearance(Appearance(object=(0.1, 0.2, 0.9)))
    inside = sheet.image("top", "segmentation") == 1
    red, _, blue = np.median(sheet.image()[inside], axis=0)
    sheet.set_appearance(Appearance())
    assert blue > 180 and red < 60
    assert np.median(sheet.image()[inside], axis=0)[0] > 200


def test_a_corner_carried_across_folds_the_sheet(cloths):
    env = cloths[1]
    env._engine.lay(flat(env))
    before = env.coverage({"keypoints": env._engine.points()})
    carry(env, 80, np.array([-0.2, -0.2]))
    points = env._engine.points()
    assert before > 0.95
    assert 0.4 < env.coverage({"keypoints": points}) < 0.75
    assert np.linalg.norm(points[80, :2] - [-0.08, -0.08]) < 0.04  # it stays where it was put
    assert np.linalg.norm(points[0, :2] - [-0.12, -0.12]) < 0.04  # the other corner hardly moves
    assert points[:, 2].max() > 1.7 * env.config.radius  # the fold lies on the sheet


def test_neighbours_stay_together(cloths):
    env, rng = cloths[1], np.random.default_rng(0)
    env._engine.lay(flat(env))
    for _ in range(8):
        grip = int(rng.integers(81))
        start = env._engine.grips()[grip, :2]
        way = np.clip(start + rng.uniform(-0.2, 0.2, 2), -0.25, 0.25) - start
        carry(env, grip, way)
        env._engine.check()
        grid = env._engine.points().reshape(9, 9, 3)
        for axis in (0, 1):
            assert np.linalg.norm(np.diff(grid, axis=axis), axis=-1).max() < 1.2 * 0.03
        assert np.abs(grid[..., :2]).max() < env.config.view
        assert grid[..., 2].min() > 0


def test_a_torn_sheet_is_unstable_physics(cloths):
    sheet = cloths[1]._engine
    sheet.lay(flat(cloths[1]))
    poses = sheet._poses()
    poses[40, :3] += [0, 0, 0.5]
    sheet._put(poses, np.zeros((81, 6)))
    with pytest.raises(UnstablePhysics, match="torn"):
        sheet.check()


def test_a_state_comes_back_to_the_last_bit(cloths):
    env = cloths[1]
    env.reset(seed=3)
    state = env._engine.snapshot()
    ends = []
    for _ in range(2):
        env._engine.restore(state)
        assert np.array_equal(env._engine.snapshot(), state)
        carry(env, 20, np.array([0.05, 0.1]))
        carry(env, 60, np.array([-0.05, -0.1]))
        ends.append(env._engine.snapshot())
        env._engine.lay(flat(env))  # whatever was in between
    assert np.array_equal(*ends)


def test_other_grids_work():
    env = Cloth(Cloth.Config(engine="pybullet", rows=6, columns=11, image=96))
    observation, _ = env.reset(seed=0)
    assert observation["keypoints"].shape == (66, 3)
    assert observation["rgb"].shape == (96, 96, 3)
    env.close()


EPISODE = """
import hashlib, numpy as np
from latentplan.sim.deformable.cloth import Cloth
env = Cloth(Cloth.Config(engine="pybullet", task="fold"))
seen, rng = hashlib.sha256(), np.random.default_rng(0)
observation = env.reset(seed=3)[0]
for _ in range(4):
    pick = observation["keypoints"][rng.integers(81), :2] / env.config.view
    action = np.clip(np.append(pick, rng.uniform(-1, 1, 3)), -1, 1).astype(np.float32)
    observation = env.step(action).observation
    seen.update(observation["rgb"].tobytes() + observation["keypoints"].tobytes())
print(seen.hexdigest())
"""


def test_two_processes_see_the_same_pixels():
    found = [
        subprocess.run([sys.executable, "-c", EPISODE], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert found[0].stdout == found[1].stdout != ""


RANGES = Randomisation(
    size=(0.18, 0.26),
    friction=(0.2, 0.9),
    mass=(0.05, 0.2),
    light=(0.8, 1.0),
    object_colour=(0.6, 0.9),
)


def test_what_is_drawn_reaches_the_sheet_and_comes_back():
    env = Cloth(Cloth.Config(engine="pybullet", task="fold", randomise=RANGES))
    seen = []
    for seed in (5, 6, 5):
        observation, info = env.reset(seed=seed)
        drawn = info["randomised"]
        sheet, c = env._engine, env.config
        assert (c.size, c.friction, c.mass) == (drawn["size"], drawn["friction"], drawn["mass"])
        span = np.linalg.norm(np.diff(sheet.points()[[0, 8, 80]], axis=0), axis=1)
        assert np.allclose(span, drawn["size"], rtol=0.05)
        mass = 81 * sheet._p.getDynamicsInfo(sheet._bodies[0], -1, sheet._client)[0]
        assert mass == pytest.approx(drawn["mass"])
        action = [*observation["keypoints"][0, :2] / c.view, 0.3, 0.3, 0]
        after = env.step(np.array(action, np.float32)).observation
        seen.append(np.concatenate([o["rgb"] for o in (observation, after)]))
    assert not np.array_equal(seen[0], seen[1])
    assert np.array_equal(seen[0], seen[2])
    env.close()
