"""RLBench's adapter against a recorded interface; CoppeliaSim itself is not run here."""

import inspect
import sys
import warnings

import numpy as np
import pytest
import rlbench_simulation as simulation
import rlbench_writer as writer
from gymnasium.utils.env_checker import check_env

from latentplan.data.sources.rlbench import Rlbench
from latentplan.errors import (
    ConfigError,
    LatentplanError,
    MissingDependency,
    ShapeError,
    UnstablePhysics,
)
from latentplan.exploration.expert import Expert
from latentplan.exploration.recorder import CollectConfig, Recipe, Recorder
from latentplan.protocols import Env
from latentplan.sim.rlbench.env import RLBench
from latentplan.types import Label

ACTIONS = ("next_joint", "next_pose", "keyframe", "joint_velocity")
SMALL = {"image": 16, "cameras": ("front", "wrist")}


@pytest.fixture
def make(monkeypatch):
    """Return envs made from settings; each is closed when the next is made, and at the end."""
    with simulation.installed(monkeypatch):
        made = []

        def make(**values):
            while made:
                made.pop().close()
            made.append(RLBench(RLBench.Config(**{**SMALL, **values})))
            return made[0]

        yield make
        while made:
            made.pop().close()


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_the_simulation_has_the_recorded_interface():
    for owner, module in (
        (simulation.Environment, "rlbench.environment.Environment"),
        (simulation.TaskEnvironment, "rlbench.task_environment.TaskEnvironment"),
        (simulation.ObservationConfig, "rlbench.observation_config.ObservationConfig"),
    ):
        for name, parameters in simulation.INTERFACE.items():
            method = name.removeprefix(f"{module}.")
            if method != name and not (owner is simulation.ObservationConfig and "init" in method):
                assert list(inspect.signature(getattr(owner, method)).parameters) == parameters
    assert list(inspect.signature(simulation.name_to_task_class).parameters) == ["task_file"]
    with pytest.raises(TypeError):
        simulation.CameraConfig(image=16)


def test_without_rlbench_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rlbench", None)
    with pytest.raises(MissingDependency, match="CoppeliaSim 4.1 .* pip install") as caught:
        RLBench()
    assert "\n" not in str(caught.value)
    monkeypatch.delitem(sys.modules, "rlbench")
    (tmp_path / "rlbench").mkdir()
    text = "raise ImportError('libcoppeliaSim.so.1: cannot open shared object file')"
    (tmp_path / "rlbench" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependency, match="pip install .* cannot open shared object file"):
        RLBench()


def test_a_simulator_that_does_not_start_says_why(make, monkeypatch):
    monkeypatch.setattr(simulation.Environment, "broken", simulation.PyRepError)
    with pytest.raises(MissingDependency, match="COPPELIASIM_ROOT was not a correct path"):
        make()
    monkeypatch.setattr(simulation.Environment, "broken", None)
    make()  # the one that failed does not count as running


def test_it_is_an_env(make):
    env = make(images=("rgb", "depth", "mask"), clouds=True)
    assert isinstance(env, Env)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(spec|render|Box|float64).*")
        check_env(env, skip_render_check=True)
    observation, _ = env.reset(seed=1)
    assert list(observation) == list(env.data_spec.observation)
    for key, array in env.data_spec.observation.items():
        assert observation[key].shape == array.shape, key
        assert observation[key].dtype == np.dtype(array.dtype), key
    assert np.array_equal(env.render(), observation["front_rgb"])


@pytest.mark.parametrize("action", ACTIONS)
def test_its_spec_is_that_of_imported_demos(make, tmp_path, action):
    settings = {"action": action, "images": ("rgb", "depth"), "clouds": True, "stride": 2}
    env = make(cameras=tuple(writer.EYES), **settings)
    writer.write_demo(tmp_path / "episode0", length=3, size=16)
    imported = Rlbench(tmp_path, Rlbench.Config(**settings)).spec
    assert env.data_spec.to_json() == imported.to_json()


def test_observations_are_what_the_simulator_has(make):
    env = make(images=("rgb", "depth", "mask"), clouds=True, stride=3)
    seen = env.reset(seed=4)[0]
    ball = env._task.ball
    drawn = writer.view("front", ball, 16, np.random.default_rng(0))
    assert np.array_equal(seen["front_rgb"], drawn["rgb"])
    assert np.array_equal(seen["front_depth"], drawn["depth"].astype(np.float32))
    assert np.array_equal(seen["front_mask"], drawn["mask"])
    assert np.array_equal(seen["task_low_dim_state"], ball)
    points = seen["wrist_point_cloud"][seen["wrist_mask"][::3, ::3] == writer.TABLE_HANDLE]
    assert len(points) and np.abs(points[:, 2] - writer.TABLE).max() < 2e-6
    assert "overhead_rgb" not in seen


def test_masks_alone_still_have_their_cameras(make):
    seen = make(images=("mask",)).reset(seed=0)[0]
    assert "front_rgb" not in seen and seen["front_camera_intrinsics"][0, 0] < 0


def test_a_seed_decides_the_start_and_the_processes_randomness_is_left_alone(make):
    env = make(variation=-1)
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    first, info = env.reset(seed=7)
    env.step(env.action_space.sample())
    other, _ = env.reset(seed=8)
    again, info_again = env.reset(seed=7)
    assert equal(first, again) and info == info_again and not equal(first, other)
    assert np.array_equal(before, np.random.get_state()[1])
    assert len({env.reset(seed=s)[1]["variation"] for s in range(12)}) > 3


def test_a_reset_says_task_text_and_variation(make):
    info = make(variation=1).reset(seed=0)[1]
    assert info == {"task": "reach_target", "text": "reach the green target", "variation": 1}


@pytest.mark.parametrize(
    "action, kind, size",
    [
        ("next_joint", "JointPosition", 8),
        ("joint_velocity", "JointVelocity", 8),
        ("next_pose", "EndEffectorPoseViaIK", 8),
        ("keyframe", "EndEffectorPoseViaPlanning", 8),
    ],
)
def test_actions_go_to_rlbenchs_action_modes(make, action, kind, size):
    env = make(action=action, collisions=True)
    mode = env._sim.action_mode
    assert type(mode).__name__ == "MoveArmThenGripper"
    assert type(mode.arm_action_mode).__name__ == kind
    assert type(mode.gripper_action_mode).__name__ == "Discrete"
    assert env.data_spec.action.size == size
    if kind == "EndEffectorPoseViaPlanning":
        assert mode.arm_action_mode.collision_checking is True
    if kind != "JointVelocity":
        assert mode.arm_action_mode.absolute_mode is True


def test_steps_move_the_arm_and_then_the_gripper(make):
    env = make(action="next_joint")
    env.reset(seed=0)
    target = simulation.HOME + 0.1
    observation, reward, terminated, truncated, info = env.step(np.append(target, 0.0))
    assert np.array_equal(observation["joint_positions"], target)
    assert observation["gripper_open"] == 0 and reward == 0
    assert not terminated and not truncated and info == {"success": False}
    env = make(action="joint_velocity")
    env.reset(seed=0)
    seen = env.step(np.append(np.full(7, 0.5), 1.0)).observation
    assert np.allclose(seen["joint_positions"], simulation.HOME + 0.025)


def test_a_quaternion_becomes_unit_length(make):
    env = make(action="keyframe")
    env.reset(seed=0)
    pose = np.array([0.3, 0.1, 1.3, 0.0, 0.4, 0.0, 0.3, 1.0])
    step = env.step(pose)
    assert "refused" not in step.info
    assert np.allclose(step.observation["gripper_pose"][:3], pose[:3])
    with pytest.raises(ShapeError, match="quaternion has length 0"):
        env.step(np.array([0.3, 0.1, 1.3, 0, 0, 0, 0, 1.0]))


def test_an_action_that_is_refused_moves_nothing(make):
    env = make(action="keyframe")
    before = env.reset(seed=0)[0]
    step = env.step(np.array([0.3, 0.1, 0.65, 0, 1, 0, 0, 0.0]))
    assert step.info == {"refused": "A path could not be found.", "success": False}
    assert equal(step.observation, before) and step.reward == 0 and not step.terminated


@pytest.mark.parametrize("bad", [np.zeros(7), np.full(8, np.nan), np.full(8, 9.0)])
def test_a_bad_action_is_refused(make, bad):
    env = make()
    env.reset(seed=0)
    with pytest.raises(ShapeError, match="RLBench.action"):
        env.step(bad)


@pytest.mark.parametrize("action", ACTIONS)
def test_the_oracle_replays_a_demo_of_the_goal(make, action):
    env = make(action=action)
    goal = env.goal(seed=5)
    assert equal(env.goal(seed=5), goal) and env.distance(goal, goal) == 0
    copied = {k: v.copy() for k, v in goal.items()}
    observation, info = env.reset(seed=99, options={"goal": copied})
    assert np.array_equal(observation["task_low_dim_state"], goal["task_low_dim_state"])
    assert env.distance(observation, goal) > 0.2
    for _ in range(40):
        given = env.oracle(observation, copied)
        assert env.action_space.contains(given)
        step = env.step(given)
        observation = step.observation
        if step.terminated:
            break
    assert step.info["success"] and step.reward == 1
    assert env.distance(observation, goal) < simulation.REACHED
    with pytest.raises(LatentplanError, match="has none for this goal"):
        env.oracle(observation, observation)
    env.reset(seed=5)
    with pytest.raises(LatentplanError, match="has none for this goal"):
        env.oracle(observation, goal)  # the episode began elsewhere


def test_the_expert_does_the_episode_that_was_drawn(make):
    env = make(action="next_joint")
    policy = Expert(env.data_spec)
    rng = np.random.default_rng(0)
    policy.attach(env)
    policy.reset(seed=0)
    start, _ = env.reset(seed=3)
    first = policy.act(start)
    assert np.array_equal(env._task.ball, start["task_low_dim_state"])  # as before the demo
    observation, taken = start, first
    for _ in range(40):
        observation, reward, terminated, _, info = env.step(taken)
        if terminated:
            break
        taken = policy.act(observation)
    assert info["success"]
    assert np.array_equal(observation["task_low_dim_state"], start["task_low_dim_state"])
    env.reset(seed=4)
    env.step(first)
    with pytest.raises(LatentplanError, match="right after a reset"):
        env.expert(observation, rng)


def test_demonstrations_are_collected_with_their_words(make):
    made = make(action="keyframe")
    recipe = Recipe(
        env=lambda config: made,
        policy=Expert,
        env_config=None,
        policy_config=None,
        config=CollectConfig(length=10),
        seed=0,
    )
    simulation.TaskEnvironment.fails.append(RuntimeError("Could not collect demos."))
    episode, unstable, _ = Recorder(recipe).record(0)
    assert unstable == 1  # the first placement had no demo
    assert episode.terminated and episode.rewards[-1] == 1
    assert episode.labels == (Label("reach the red target", "reach_target"),)
    assert episode.info["variation"] == 0


def test_a_goal_ends_the_episode(make):
    env = make()
    env.reset(seed=0)
    env.goal(seed=1)
    with pytest.raises(LatentplanError, match="no episode; call reset first"):
        env.step(np.append(simulation.HOME, 1.0))


def test_failures_of_the_simulator_are_unstable_physics(make):
    env = make()
    env.reset(seed=0)
    for failure in (RuntimeError("The call failed"), simulation.PyRepError("gone")):
        env.reset(seed=0)
        simulation.TaskEnvironment.fails.append(failure)
        with pytest.raises(UnstablePhysics, match=str(failure)):
            env.step(np.append(simulation.HOME, 1.0))
    simulation.TaskEnvironment.fails.append(simulation.TaskEnvironmentError("Could not place it"))
    with pytest.raises(UnstablePhysics, match="Could not place it"):
        env.reset(seed=0)
    simulation.TaskEnvironment.fails += [RuntimeError("Could not collect demos.")] * 2
    env.goal(seed=0)  # the third placement has a demo
    simulation.TaskEnvironment.fails += [RuntimeError("Could not collect demos.")] * 10
    with pytest.raises(UnstablePhysics, match="no demo of reach_target .* 10 times in a row"):
        env.goal(seed=0)


def test_there_is_no_exact_snapshot_and_one_simulator_a_process(make):
    env = make()
    for call in (env.snapshot, lambda: env.restore(None)):
        with pytest.raises(LatentplanError, match="no exact snapshot"):
            call()
    with pytest.raises(LatentplanError, match="runs once in a process"):
        RLBench()
    assert env._sim.running
    make()
    assert not env._sim.running


@pytest.mark.parametrize(
    "values, match",
    [
        ({"task": "reach_targets"}, "RLBench.task: RLBench has no 'reach_targets'"),
        ({"variation": 20}, "RLBench.variation: 20"),
        ({"variation": -2}, "RLBench.variation"),
        ({"action": "pose"}, "RLBench.action"),
        ({"renderer": "egl"}, "RLBench.renderer"),
        ({"image": 4}, "RLBench.image"),
        ({"task_state": 2}, "set task_state"),
    ],
)
def test_settings_are_checked(make, values, match):
    with pytest.raises(ConfigError, match=match):
        make(**values).reset(seed=0)


def test_task_states_are_padded(make):
    seen = make(task_state=5).reset(seed=0)[0]
    assert seen["task_low_dim_state"].shape == (5,) and (seen["task_low_dim_state"][3:] == 0).all()
