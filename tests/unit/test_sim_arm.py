"""Tasks whose gripper is on a simulated arm."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from latentplan.errors import ConfigError, MissingDependency, UnknownName
from latentplan.robots.description import load
from latentplan.robots.kinematics import Unreachable
from latentplan.sim.deformable.arm_paths import ArmPaths
from latentplan.sim.deformable.cloth import Cloth
from latentplan.sim.deformable.rope import Rope

PANDA = Path(str(files("latentplan"))) / "configs" / "robot" / "panda.yaml"


@pytest.fixture
def far(tmp_path: Path) -> str:
    """Return an arm that stands too far away from half of the table."""
    file = tmp_path / "far.yaml"
    text = PANDA.read_text()
    assert "position: [-0.5," in text
    file.write_text(text.replace("position: [-0.5,", "position: [-0.8,"))
    return str(file)


@pytest.mark.parametrize("arm", ["panda", "ur5e"])
def test_an_arm_brings_the_rope_to_its_goal(arm: str) -> None:
    env = Rope(Rope.Config(actuator="arm", arm=arm))
    observation, info = env.reset(seed=3)
    start = env.distance(observation, info["goal"])
    for _ in range(30):
        step = env.step(env.oracle(observation, info["goal"]))
        observation = step.observation
        assert step.info["picked"] >= 0
        if step.info["success"]:
            break
    assert step.info["success"]
    assert step.info["refused"] == 0
    assert step.info["distance"] < start / 2
    env.close()


def test_what_the_arm_cannot_reach_is_a_counted_no_op(far: str) -> None:
    env = Rope(Rope.Config(actuator="arm", arm=far))
    observation, _ = env.reset(seed=1)
    before = observation["keypoints"]
    farthest = before[before[:, 0].argmax()]
    assert farthest[0] > 0.05
    action = np.append(farthest / env.config.view, [0.5, 0.5])
    for count in (1, 2):
        step = env.step(action)
        assert step.info["picked"] == -1
        assert step.info["refused"] == count
    np.testing.assert_allclose(step.observation["keypoints"], before, atol=1e-4)
    _, info = env.reset(seed=1)
    step = env.step(np.array([1.0, 1.0, 0.0, 0.0]))  # nothing lies there: air, not a refusal
    assert step.info["picked"] == -1 and step.info["refused"] == 0
    env.close()


def test_collecting_says_how_many_actions_were_refused(
    far: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from latentplan.cli import main
    from latentplan.data.store import ZarrStore

    collect = ["collect", "rope", "--workers", "0", "--out"]
    arm = ["env.actuator=arm", f"env.arm={far}", "collect.length=6"]
    assert main([*collect, str(tmp_path / "arm.zarr"), "--episodes", "2", *arm]) == 0
    with ZarrStore.open(tmp_path / "arm.zarr") as store:
        refused = sum(store.episode(i).info["refused"] for i in range(2))
    assert 0 < refused < 12
    assert f"; {refused:.0f} actions refused" in capsys.readouterr().out
    plain = ["--episodes", "1", "collect.length=2"]
    assert main([*collect, str(tmp_path / "rope.zarr"), *plain]) == 0
    assert "refused" not in capsys.readouterr().out


def test_an_arm_folds_a_cloth() -> None:
    env = Cloth(Cloth.Config(task="fold", fold="diagonal", actuator="arm"))
    observation, info = env.reset(seed=0)
    for _ in range(3):
        step = env.step(env.oracle(observation, info["goal"]))
        observation = step.observation
        if step.info["success"]:
            break
    assert step.info["success"]
    assert step.info["refused"] == 0  # drags that were only tried out do not count either
    env.close()


def test_what_an_expert_tries_out_is_not_counted_as_refused(far: str) -> None:
    env = Cloth(Cloth.Config(task="fold", actuator="arm", arm=far))
    observation, info = env.reset(seed=1)
    assert observation["keypoints"][:, 0].max() > 0.1
    before = observation["keypoints"].copy()
    env.oracle(observation, info["goal"])
    step = env.step(np.array([-1.0, -1.0, 0.0, 0.0, 0.0]))  # air
    assert step.info["picked"] == -1 and step.info["refused"] == 0
    np.testing.assert_allclose(step.observation["keypoints"], before, atol=2e-3)
    env.close()


def test_the_same_again_and_after_a_restore() -> None:
    env = Rope(Rope.Config(actuator="arm", arm="ur5e"))
    observation, info = env.reset(seed=5)
    action = env.oracle(observation, info["goal"])
    state = env.snapshot()
    first = env.step(action).observation["keypoints"]
    env.restore(state)
    np.testing.assert_array_equal(env.step(action).observation["keypoints"], first)
    other = Rope(Rope.Config(actuator="arm", arm="ur5e"))
    other.reset(seed=5)
    np.testing.assert_array_equal(other.step(action).observation["keypoints"], first)
    env.close()
    other.close()


def test_a_path_starts_at_the_grip_and_ends_on_the_goal() -> None:
    paths = ArmPaths("panda", timestep=0.008)
    start, end = np.array([0.1, 0.1, 0.009]), np.array([0.0, 0.15])
    path = paths.path(start, end, lift=0.04)
    np.testing.assert_allclose(path[0], start, atol=1e-3)
    np.testing.assert_allclose(path[-1], [*end, 0.009], atol=2e-3)
    assert path[:, 2].max() == pytest.approx(0.049, abs=3e-3)
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).max() < 0.6 * 0.008  # 0.5 m/s, servos
    with pytest.raises(Unreachable):
        paths.path(start, np.array([1.0, 0.0]), lift=0.04)


def test_bad_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no Rope.actuator named 'hand'"):
        Rope.Config(actuator="hand")
    with pytest.raises(ConfigError, match=r"Rope\.actuator: arm needs control=pick"):
        Rope.Config(actuator="arm", control="velocity")
    with pytest.raises(UnknownName, match="no robot named 'kuka'"):
        Rope(Rope.Config(actuator="arm", arm="kuka"))
    monkeypatch.setitem(sys.modules, "mink", None)
    with pytest.raises(MissingDependency, match=r'pip install "latentplan\[arm\]"'):
        Rope(Rope.Config(actuator="arm"))


def test_the_arm_looms_in_a_image_of_its_own() -> None:
    """What the collision checks know is what is drawn: capsules, where the joints put them."""
    from latentplan.robots import mjcf
    from latentplan.sim.rendering import mujoco_renderer
    from latentplan.sim.rendering.cameras import Camera
    from latentplan.sim.rendering.mujoco_renderer import mujoco

    arm = load("panda")
    spec = mujoco.MjSpec()
    spec.visual.quality.shadowsize = 0
    mjcf.add(spec, arm)
    model = spec.compile()
    data = mujoco.MjData(model)
    data.qpos[:7] = arm.column("home")
    mujoco.mj_forward(model, data)
    top = Camera("top", (-0.3, 0.0, 3.0), target=(-0.3, 0.0, 0.0), up=(0.0, 1.0, 0.0), fovy=40.0)
    renderer = mujoco_renderer.Renderer(model, top)
    seen = renderer.image(data).astype(int).sum(-1) > 30
    renderer.close()
    across, along = seen.any(0), seen.any(1)
    assert 15 < across.sum() < 40  # from behind the base to the hand, 0.55 m
    assert 3 < along.sum() < 15  # no wider than its links
