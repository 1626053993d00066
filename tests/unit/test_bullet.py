"""PyBullet beside MuJoCo: the same images of the same pose, and much the same motion."""

import builtins
import subprocess
import sys

import numpy as np
import pytest

from latentplan.errors import ConfigError, MissingDependency, UnstablePhysics
from latentplan.sim.deformable.rope import Rope
from latentplan.sim.randomisation import Randomisation
from latentplan.sim.rendering.appearance import Appearance
from latentplan.sim.rendering.cameras import Camera

pytest.importorskip("pybullet")


@pytest.fixture(scope="module")
def ropes():
    made = [Rope(Rope.Config(engine=engine)) for engine in ("mujoco", "pybullet")]
    yield made
    for env in made:
        env.close()


@pytest.mark.parametrize("camera", ["top", "front", "side", "angled"])
def test_images_are_those_of_mujoco(ropes, camera):
    for seed in range(3):
        for env in ropes:
            env.reset(seed=seed)
        mujoco, bullet = (env._engine for env in ropes)
        seen = mujoco.image(camera, "segmentation")
        assert 20 < seen.sum() < 1000
        assert (bullet.image(camera, "segmentation") != seen).sum() <= 2
        near = mujoco.image(camera, "depth") < 5  # the table ends
        difference = bullet.image(camera, "depth") - mujoco.image(camera, "depth")
        assert np.abs(difference[near]).max() < 1e-3
        colours = [e.image(camera).astype(int) for e in (mujoco, bullet)]
        assert np.abs(colours[0] - colours[1]).mean() < 1


def test_the_appearance_changes_colours_and_light_as_in_mujoco(ropes):
    look = Appearance(object=(0.9, 0.2, 0.1), table=(0.1, 0.1, 0.5), brightness=0.8, light=(0.7, 2))
    images = []
    for env in ropes:
        env.reset(seed=1)
        before = env._engine.image()
        env._engine.set_appearance(look)
        images.append(env._engine.image().astype(int))
        env._engine.set_appearance(Appearance())
        assert np.array_equal(env._engine.image(), before)
        assert np.abs(images[-1] - before).mean() > 20
    assert np.abs(images[0] - images[1]).mean() < 2


def test_a_pattern_on_the_table_is_as_strong_as_in_mujoco():
    seen = []
    for engine in ("mujoco", "pybullet"):
        env = Rope(Rope.Config(engine=engine, randomise=Randomisation(texture=(0.6, 0.6))))
        env.reset(seed=1)
        env._engine.set_appearance(Appearance(contrast=0.6, pattern=3))
        table = env._engine.image("top", "segmentation") == 0
        image = env._engine.image()
        seen.append(image[table].astype(float))
        env._engine.set_appearance(Appearance(contrast=0.6, pattern=4))
        assert not np.array_equal(env._engine.image(), image)
        env._engine.set_appearance(Appearance())
        assert np.ptp(env._engine.image()[table], axis=0).max() <= 1
        env.close()
    assert seen[0].std(0) == pytest.approx(seen[1].std(0), rel=0.25)
    assert seen[0].mean(0) == pytest.approx(seen[1].mean(0), rel=0.1)


def test_a_camera_goes_where_it_is_placed(ropes):
    for env in ropes:
        env.reset(seed=1)
    moved = Camera("top", (0.2, -0.3, 0.8), target=(0.05, 0, 0), fovy=30)
    seen = []
    for env in ropes:
        before = env._cameras["top"]
        env._engine.place_camera(moved)
        seen.append(env._engine.image("top", "segmentation"))
        env._engine.place_camera(before)
    assert seen[0].sum() > 20
    assert (seen[0] != seen[1]).sum() <= 2


def test_a_drag_does_nearly_what_it_does_in_mujoco(ropes):
    rng = np.random.default_rng(0)
    moved, apart = [], []
    for seed in range(20):
        start = [env.reset(seed=seed)[0]["keypoints"] for env in ropes]
        assert np.abs(start[0] - start[1]).max() < 1e-3
        link = rng.integers(20)
        pick = (start[0][link] + start[0][link + 1]) / 2 / 0.3
        action = np.r_[pick, rng.uniform(-1, 1, 2)].astype(np.float32)
        ends = [env.step(action).observation["keypoints"] for env in ropes]
        moved.append(np.linalg.norm(ends[0] - start[0], axis=1).mean())
        apart.append(np.linalg.norm(ends[0] - ends[1], axis=1).mean())
    assert np.mean(moved) > 0.03
    assert np.mean(apart) < 0.35 * np.mean(moved)


def test_links_keep_their_length(ropes):
    rng = np.random.default_rng(0)
    bullet = ropes[1]
    points = bullet.reset(seed=0)[0]["keypoints"]
    for _ in range(30):
        action = np.r_[points[rng.integers(21)] / 0.3, rng.uniform(-1, 1, 2)]
        points = bullet.step(np.clip(action, -1, 1).astype(np.float32)).observation["keypoints"]
        ends = bullet._engine.points()
        length = np.linalg.norm(np.diff(ends, axis=0), axis=1)
        assert length == pytest.approx(0.02, abs=0.004)
        assert np.abs(ends[:, :2]).max() < bullet.config.view
        assert -0.005 < ends[:, 2].min()


def test_what_the_gripper_holds_comes_back_with_a_snapshot():
    env = Rope(Rope.Config(engine="pybullet", control="velocity"))
    env.reset(seed=0)
    middle = env._engine.grips()[10]
    env._engine.place_gripper(middle)
    up = np.array([0, 0, 0.5, 1], np.float32)
    assert env.step(up).info["picked"] == 10
    state = env.snapshot()
    ahead = [env.step(up).observation for _ in range(4)]
    assert env._engine.grips()[10, 2] > 0.03
    env.reset(seed=1)
    env.restore(state)
    assert env._engine.held == 10
    again = [env.step(up).observation for _ in range(4)]
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(ahead, again, strict=True) for k in a)
    env.close()


def test_diverged_physics_is_an_error_and_lay_recovers():
    env = Rope(Rope.Config(engine="pybullet"))
    want = env.reset(seed=1)[0]
    engine = env._engine
    engine._set(np.full((20, 7), np.nan), np.zeros((20, 6)), touches=1)
    with pytest.raises(UnstablePhysics):
        env.step(np.zeros(4, np.float32))
    found = env.reset(seed=1)[0]
    assert all(np.array_equal(found[k], want[k]) for k in want)
    env.close()


EPISODE = """
import hashlib, numpy as np
from latentplan.sim.randomisation import Randomisation
from latentplan.sim.deformable.rope import Rope
env = Rope(Rope.Config(engine="pybullet"))
seen, rng = hashlib.sha256(), np.random.default_rng(0)
for observation in [env.reset(seed=3)[0]] + [
    env.step(rng.uniform(-1, 1, 4).astype(np.float32)).observation for _ in range(10)
]:
    seen.update(observation["rgb"].tobytes() + observation["keypoints"].tobytes())
print(seen.hexdigest())
"""


def test_two_processes_see_the_same_pixels():
    found = [
        subprocess.run([sys.executable, "-c", EPISODE], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert found[0].stdout == found[1].stdout != ""


def test_a_missing_package_is_told_with_its_pip_line(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pybullet":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r'pip install "latentplan\[bullet\]"'):
        Rope(Rope.Config(engine="pybullet"))


def test_a_stiff_rope_is_refused():
    with pytest.raises(ConfigError, match="Rope.stiffness.*pybullet"):
        Rope(Rope.Config(engine="pybullet", stiffness=0.1))
