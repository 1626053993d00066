"""The adapter of calvin_env: its own parts everywhere, the env where there is a checkout."""

import gc
import sys

import numpy as np
import pytest
import yaml

from latentplan.data.selection import resized
from latentplan.errors import ConfigError, LatentplanError, MissingDependency, ShapeError
from latentplan.sim.calvin import checkout
from latentplan.sim.calvin.env import Calvin

ROBOT = {"euler_obs": True, "base_position": "${scene.robot_base_position}"}
SCENE = {
    "data_path": "${data_path}",
    "euler_obs": "${robot.euler_obs}",
    "robot_base_position": [0, 0, 0],
    "robot_base_orientation": [0, 0, 0],
    "robot_initial_joint_positions": [0.0] * 7,
}


def lay(root, files):
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a package that imports what calvin_env imports."""
    for name in [n for n in sys.modules if n.split(".")[0] in ("calvin_env", "gym")]:
        monkeypatch.delitem(sys.modules, name)
    lay(
        tmp_path,
        {
            "calvin_env/__init__.py": "",
            "calvin_env/envs/__init__.py": "",
            "calvin_env/robot/__init__.py": "",
            "calvin_env/robot/robot.py": """
import pybullet as p
class Robot:
    def __init__(self, cid): self.cid = cid
    def load(self): self.bodies = p.createMultiBody(0), p.getNumBodies()
""",
            "calvin_env/envs/play_table_env.py": """
import warnings
import gym, gym.utils, gym.utils.seeding
import pybullet as p
import pybullet_utils.bullet_client as bc
warnings.warn("\\nThe version_base parameter is not specified.")
def get_git_commit_hash(path): raise RuntimeError("no repository")
class PlayTableSimEnv(gym.Env):
    def __init__(self):
        self.p = bc.BulletClient(connection_mode=p.DIRECT)
        self.cid = self.p._client
        self.commit = get_git_commit_hash(__file__)
    def close(self): print("disconnecting")
    def __del__(self): self.close()
""",
            "conf/robot/panda.yaml": ROBOT | {"filename": "a.urdf"},
            "conf/robot/panda_longer_finger.yaml": {"defaults": ["panda"], "filename": "b.urdf"},
            "conf/scene/calvin_scene_B.yaml": SCENE,
            "conf/cameras/cameras/static.yaml": {"width": 200, "height": 200},
            "conf/cameras/cameras/gripper.yaml": {"width": 84, "height": 84},
        },
    )
    yield tmp_path
    for name in [n for n in sys.modules if n.split(".")[0] == "calvin_env"]:
        del sys.modules[name]


def test_a_package_like_calvin_env_is_fitted(package, capfd, recwarn):
    bullet = pytest.importorskip("pybullet")
    other = bullet.connect(bullet.DIRECT)  # somebody else's client, which gets none of ours
    bullet.createMultiBody(0, physicsClientId=other)
    path = list(sys.path)
    module = checkout.simulator(package)
    robot = sys.modules["calvin_env.robot.robot"]
    env = module.PlayTableSimEnv()
    assert env.commit == "unknown"
    hand = robot.Robot(env.cid)
    hand.load()
    assert hand.bodies == (0, 1) and bullet.getNumBodies(physicsClientId=other) == 1
    assert robot.p is bullet and sys.path == path and "gym" not in sys.modules
    client = env.cid
    env.close()
    assert not bullet.isConnected(client)
    later = bullet.connect(bullet.DIRECT)  # gets the number that is free again
    del env
    gc.collect()
    assert bullet.isConnected(later)
    bullet.disconnect(later), bullet.disconnect(other)
    assert capfd.readouterr().out == "" and not [w for w in recwarn if "version_base" in str(w)]
    assert checkout.simulator(package) is module
    with pytest.raises(ConfigError, match="imported already"):
        checkout.simulator(package / "elsewhere")


def test_settings_are_filled_in(package):
    found = checkout.settings(package, scene="B")
    assert found.robot["base_position"] == [0, 0, 0] and found.robot["filename"] == "b.urdf"
    assert found.scene["data_path"] == str(package / "data") and found.scene["euler_obs"] is True
    assert found.cameras["gripper"]["width"] == 84
    merged = {"robot": ROBOT, "scene": SCENE, "cameras": {"static": {"width": 9}, "tactile": {}}}
    lay(package, {"D/training/.hydra/merged_config.yaml": merged})
    found = checkout.settings(package, split=str(package / "D" / "training"))
    assert found.cameras == {"static": {"width": 9}}
    merged["scene"] = SCENE | {"objects": {"table": ["${other}"]}}
    lay(package, {"D/training/.hydra/merged_config.yaml": merged})
    with pytest.raises(ConfigError, match=r"scene\.objects\.table\[0\] refers"):
        checkout.settings(package, split=str(package / "D" / "training"))
    with pytest.raises(ConfigError, match=r"merged_config\.yaml: cannot be read"):
        checkout.settings(package, split=str(package))
    with pytest.raises(ConfigError, match="known: A, B, C, D"):
        checkout.settings(package, scene="E")


def test_without_a_checkout_it_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.delenv(checkout.ROOT, raising=False)
    monkeypatch.setattr(checkout, "find_spec", lambda name: None)
    for given in ("", str(tmp_path)):
        with pytest.raises(MissingDependency, match="git clone --recursive") as error:
            Calvin(Calvin.Config(root=given))
        assert "\n" not in str(error.value)
    lay(tmp_path, {"calvin_env/calvin_env/envs/play_table_env.py": ""})
    monkeypatch.setenv(checkout.ROOT, str(tmp_path))  # of mees/calvin
    assert checkout.find() == (tmp_path / "calvin_env").resolve()


def test_a_package_that_lacks_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "pybullet", None)
    with pytest.raises(MissingDependency, match=r"pip install \"latentplan\[calvin\]\""):
        checkout.simulator(package)
    assert "gym" not in sys.modules


@pytest.mark.parametrize(
    "wrong", [{"scene": "E"}, {"cameras": ("tactile",)}, {"image": 4}, {"image": 1000}]
)
def test_a_config_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match="Calvin"):
        Calvin.Config(**wrong)


@pytest.fixture(scope="module")
def env():
    try:
        env = Calvin(Calvin.Config(cameras=()))
    except MissingDependency as e:
        pytest.skip(str(e))
    yield env
    env.close()


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def rummage(env, rng, count=120):
    """Return actions that reach for the red block, take it and throw it about."""
    taken, observation = [], env.step(np.zeros(7)).observation
    for step in range(count):
        reach = observation["scene_obs"][6:9] - observation["robot_obs"][:3]
        grip = 1 if step < 60 or step % 20 < 5 else -1
        move = reach / 0.02 + rng.normal(0, 0.3, 3)
        taken.append(np.clip([*move, *rng.normal(0, 0.2, 3), grip], -1, 1))
        observation = env.step(taken[-1]).observation
    return taken


def test_episodes_and_snapshots_are_exact_in_the_midst_of_contacts(env):
    env.reset(seed=0)
    actions = rummage(env, np.random.default_rng(0))
    first, _ = env.reset(seed=0)
    before = [env.step(a).observation for a in actions]
    assert np.abs(before[-1]["scene_obs"][6:9] - first["scene_obs"][6:9]).max() > 0.005
    again, _ = env.reset(seed=0)
    assert equal(first, again)
    assert all(map(equal, before, [env.step(a).observation for a in actions]))
    env.reset(seed=0)
    for action in actions[:60]:
        env.step(action)
    state = env.snapshot()
    ahead, touched = [], 0
    for action in actions[60:]:
        ahead.append(env.step(action).observation)
        touched += len(env.task_info()["robot_info"]["contacts"])
    assert touched > 20
    env.reset(seed=7)
    rummage(env, np.random.default_rng(9), 40)
    env.restore(state)
    assert all(map(equal, ahead, [env.step(a).observation for a in actions[60:]]))


def test_it_steps_as_calvin_envs_own_env_does(env):
    root = checkout.find()
    settings = checkout.settings(root)
    theirs = checkout.simulator(root).PlayTableSimEnv(
        robot_cfg=settings.robot,
        scene_cfg=settings.scene,
        cameras={},
        seed=0,
        bullet_time_step=240.0,
        use_vr=False,
        show_gui=False,
        use_scene_info=True,
        use_egl=False,
    )
    theirs.p.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
    start, _ = env.reset(seed=3)
    start = {k: start[k] for k in ("robot_obs", "scene_obs")}
    theirs.reset(**start)
    ours = Calvin(env.config)
    ours.reset(options=start)
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 7))
    actions[:, 6] = np.sign(actions[:, 6])
    for step, action in enumerate(actions):
        want = theirs.step(action)[0]
        seen = ours.step(action).observation
        if step < 10:  # nothing was hit yet
            assert np.array_equal(seen["robot_obs"], want["robot_obs"])
        # Blocks rest on the table from the start: contacts come in another order.
        assert np.abs(seen["robot_obs"][7:14] - want["robot_obs"][7:14]).max() < 1e-3
        assert np.abs(seen["scene_obs"][:9] - want["scene_obs"][:9]).max() < 1e-3
    ours.close()
    theirs.close()


def test_states_are_freed_and_stay_in_their_env(env):
    env.reset(seed=0)
    kept = [env.snapshot() for _ in range(3)]
    numbers = {s.number for s in kept}
    del kept
    gc.collect()
    assert env.snapshot().number in numbers
    other = Calvin(env.config)
    state = other.snapshot()
    with pytest.raises(LatentplanError, match="another env"):
        env.restore(state)
    other.close()
    other.close()
    with pytest.raises(LatentplanError, match="closed"):
        other.reset()


def test_a_reset_takes_a_frame_of_a_data_set(env):
    env.reset(seed=5)
    for _ in range(20):
        seen = env.step(np.array([0.3, 0.2, -1, 0, 0, 0.5, -1])).observation
    frame = {key: seen[key] for key in ("robot_obs", "scene_obs")}
    start, info = env.reset(options=frame)
    assert info == {} and start["robot_obs"] == pytest.approx(seen["robot_obs"], abs=1e-2)
    assert start["robot_obs"][14] == -1 and start["scene_obs"][:6] == pytest.approx(
        seen["scene_obs"][:6], abs=1e-2
    )
    lit = seen["scene_obs"].astype(np.float32)
    lit[4:6] = 1, 1
    assert env.reset(options={"scene_obs": lit})[0]["scene_obs"][4:6].tolist() == [1, 1]
    lit[4] = 0.5
    for wrong in ({"scene_obs": lit}, {"robot_obs": lit}, {"robot_obs": np.full(15, np.nan)}):
        with pytest.raises(ShapeError, match=r"Calvin\.reset"):
            env.reset(options=wrong)
    with pytest.raises(ConfigError, match="no option 'robot'"):
        env.reset(options={"robot": seen["robot_obs"]})


def test_the_gripper_is_open_or_closed_and_what_is_beyond_is_clipped_if_wanted(env):
    env.reset(seed=0)
    for number, grip in ((0.2, 1), (-1e-3, -1), (0.0, 1)):
        assert env.step(np.array([0] * 6 + [number])).observation["robot_obs"][14] == grip
    with pytest.raises(ShapeError, match="or set clip"):
        env.step(np.full(7, 1.5))
    clipping = Calvin(Calvin.Config(cameras=(), clip=True))
    ends = []
    for scale in (1, 40):
        clipping.reset(seed=0)
        for _ in range(5):
            seen = clipping.step(np.array([scale, -scale, scale, 0, 0, 0, scale])).observation
        ends.append(seen)
    assert equal(*ends)
    clipping.close()


def test_images_are_drawn_when_asked_for(env):
    env.reset(seed=0)
    assert env.render().shape == (200, 200, 3)
    seeing = Calvin(Calvin.Config(depth=True))
    seen, _ = seeing.reset(seed=0)
    assert np.array_equal(seen["rgb_static"], env.render())
    assert seen["rgb_gripper"].shape == (84, 84, 3) and seen["rgb_gripper"].std() > 20
    assert 3 < seen["depth_static"].min() < seen["depth_static"].max() < 7  # metres
    seeing.close()
    small = Calvin(Calvin.Config(cameras=("static",), image=50))
    imported = resized(seen["rgb_static"][None], 50)[0]
    assert np.array_equal(small.reset(seed=0)[0]["rgb_static"], imported)
    small.close()
