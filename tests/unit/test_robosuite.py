"""robosuite's tasks, where robosuite is installed; what needs no robosuite is tested everywhere."""

from __future__ import annotations

import random
from importlib.util import find_spec

import numpy as np
import pytest
from gymnasium.utils.seeding import np_random
from scipy.spatial.transform import Rotation

from latentplan import config, registry
from latentplan.errors import ConfigError, MissingDependency, UnstablePhysics
from latentplan.sim.rendering import mujoco_renderer
from latentplan.sim.robosuite import experts, state, tasks
from latentplan.sim.robosuite.controllers import CONTROLLERS
from latentplan.sim.robosuite.env import MODEL_SEED, RobosuiteConfig
from latentplan.sim.robosuite.images import ImageRenderer, outside
from latentplan.types import ActionSpec, Convention

NAMES = sorted(name for name in registry.BUILT_IN["env"] if name.startswith("robosuite/"))
installed = pytest.mark.skipif(
    find_spec("robosuite") is None, reason='needs robosuite: pip install "latentplan[robosuite]"'
)


def make(task="Lift", **settings):
    made = registry.get("env", f"robosuite/{task}")
    return made(made.Config(**({"cameras": ()} | settings)))


def draw(env, count, seed=0):
    rng = np.random.default_rng(seed)
    low, high = env.action_space.low, env.action_space.high
    return rng.uniform(low, high, (count, len(low))).astype(np.float32)


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# Without robosuite


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("robot=Pandora", "Robosuite.robot: no robot named 'Pandora'; did you mean 'Panda'"),
        ("controller=osc", "Robosuite.controller: no controller named 'osc'"),
        ("cameras=[agentview,agentview]", "name each once"),
        ("observe=[rbg]", "did you mean 'rgb'"),
        ("rate=0", "Robosuite.rate"),
        ("image=8", "Robosuite.image"),
        ("hold=0", "Robosuite.hold"),
    ],
)
def test_a_wrong_setting_is_named(line, says):
    with pytest.raises(ConfigError) as e:
        config.load({"env": RobosuiteConfig}, overrides=[line])
    assert says in str(e.value)


@pytest.mark.skipif(find_spec("robosuite") is not None, reason="robosuite is installed")
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_installed_is_answered_with_the_line_to_type(name):
    with pytest.raises(MissingDependency) as e:
        registry.get("env", name)()
    assert f'env {name!r} needs robosuite: pip install "latentplan[robosuite]"' in str(e.value)


def test_chance_outside_goes_on_as_if_nothing_had_been_drawn():
    random.seed(1)
    np.random.seed(1)
    want = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    with state.seeded(7):
        one = random.random(), np.random.rand()
    with state.seeded(7):
        assert (random.random(), np.random.rand()) == one
    assert (random.random(), np.random.rand()) == want


SCENE = """
<mujoco><visual><headlight active="1"/></visual><worldbody>
<light pos="0 0 3"/>
<camera name="front" pos="0 -1 .3" xyaxes="1 0 0 0 .2 1" fovy="50"/>
<geom type="plane" size="2 2 .1" rgba="0 .6 0 1" group="1"/>
{boxes}
<geom type="sphere" size=".3" pos="0 0 .3" group="0" name="collides"/>
</worldbody></mujoco>
"""


def scene():
    rng = np.random.default_rng(0)
    boxes = "".join(
        f'<geom type="box" size="{a:.3f} .05 .08" pos="{x:.3f} {y:.3f} {z:.3f}" rgba="{a * 9:.2f} '
        f'.2 .5 1" group="1"/>'
        for a, x, y, z in rng.uniform((0.03, -1.5, -1.5, 0), (0.1, 1.5, 1.5, 1), (60, 4))
    )
    model = mujoco_renderer.mujoco.MjModel.from_xml_string(SCENE.format(boxes=boxes))
    data = mujoco_renderer.mujoco.MjData(model)
    mujoco_renderer.mujoco.mj_forward(model, data)
    return model, data


def test_what_is_out_of_sight_is_left_out_and_no_pixel_changes():
    model, data = scene()
    images = ImageRenderer(model, cameras={"front": "front"}, size=96)
    hidden = outside(images.camera(data, "front"), data.geom_xpos, model)
    assert 10 < hidden.sum() < 60
    seen, depth = images.image(data, "front"), images.depth(data, "front")
    assert np.array_equal(model.geom_group, images._groups)  # as it was
    everything = images._renderers  # asked for directly, they leave nothing out
    assert np.array_equal(everything[4].image(data), seen)
    assert np.array_equal(everything[0].depth(data), depth)
    images.close()


def test_the_camera_is_the_models_and_collision_geoms_are_not_drawn():
    model, data = scene()
    images = ImageRenderer(model, cameras={"front": "front"}, size=96)
    camera, depth = images.camera(data, "front"), images.depth(data, "front")
    points = camera.unproject(depth)
    floor = np.abs(points[..., 2]) < 2e-3
    assert floor.mean() > 0.5  # the sphere of the collision group hides none of it
    centre = np.linalg.norm(points - (0, 0, 0.3), axis=-1)
    assert (np.abs(centre - 0.3) > 1e-3).mean() > 0.99
    images.close()


def observation(hand=(0, 0, 1.0), cube=(0, 0, 0.82), turn=0.0, grasped=False):
    down = [0, 2**-0.5, 2**-0.5, 0]
    pose = [*cube, np.cos(turn / 2), 0, 0, np.sin(turn / 2)]
    return {
        "ee": np.array([*hand, *down], np.float32),
        "cube": np.array(pose, np.float32),
        "grasped": np.array([grasped], np.float32),
    }


def test_the_expert_goes_over_the_cube_down_closes_and_lifts():
    far = experts.lift(observation(hand=(0.1, 0, 1.0)))
    assert not far.closed and far.place[2] > 0.86
    over = experts.lift(observation(hand=(0, 0, 0.88)))
    assert not over.closed and over.place[2] < 0.84
    assert experts.lift(observation(hand=(0, 0, 0.832))).closed
    held = experts.lift(observation(hand=(0, 0, 0.832), grasped=True))
    assert held.closed and held.place[2] > 0.9


@pytest.mark.parametrize("turn", [0.3, -0.6, 1.4, 3.0])
def test_the_hand_turns_to_the_nearest_side_of_the_cube(turn):
    found = experts.along(observation(turn=turn), observation(turn=turn)["cube"])
    assert np.allclose(found[:2], 0) and abs(found[2]) <= np.pi / 4 + 1e-6
    left = (turn - np.pi / 2 - found[2]) % (np.pi / 2)  # the hand's x axis is the world's y
    assert min(left, np.pi / 2 - left) < 1e-5


def test_an_experts_action_is_in_the_units_and_the_frame_of_the_convention():
    means = Convention("ee_delta", "rotvec", "base", 0.05, 0.5, "close_is_+1")
    action = ActionSpec((-1.0,) * 7, (1.0,) * 7, convention=means)
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # the base's x is the world's y
    move = experts.Move(np.array([0, 0.01, 1.0]), True, np.array([0, 0, 0.1]))
    got = experts.act(move, observation(), action=action, base=quarter)
    want = [0.01 / 0.05 * experts.GAIN, 0, 0, 0, 0, 0.1 / 0.5 * experts.GAIN, 1]
    assert np.allclose(got, want, atol=1e-6)
    joints = ActionSpec((-1.0,) * 8, (1.0,) * 8, convention=Convention("joint_delta"))
    with pytest.raises(ConfigError, match="controller=osc_pose"):
        experts.act(move, observation(), action=joints, base=quarter)


# With robosuite


@installed
def test_steps_are_robosuites_own():
    import robosuite

    env = make(rate=10)
    with state.seeded(MODEL_SEED):
        theirs = robosuite.make(
            "Lift",
            robots="Panda",
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            renderer="mujoco",
            hard_reset=False,
            ignore_done=True,
            control_freq=10,
        )
    env.reset(seed=5)
    with state.seeded(int(np_random(5)[0].integers(2**32))):
        theirs.reset()
    for action in draw(env, 10):
        env.step(action)
        theirs.step(action.astype(np.float64))
        assert np.array_equal(env._data.qpos, theirs.sim.data.qpos)
    env.close()


@installed
@pytest.mark.parametrize("controller", sorted(CONTROLLERS))
def test_snapshots_are_exact_while_the_gripper_closes(controller):
    env = make(controller=controller)
    env.reset(seed=1)
    actions = draw(env, 8)
    actions[:, -1] = 1
    for action in actions[:3]:
        before = env.step(action).observation
    kept = env.snapshot()
    ahead = [env.step(action).observation for action in actions]
    env.reset(seed=2)
    env.step(actions[0])
    assert equal(env.restore(kept), before)
    assert all(equal(env.step(a).observation, o) for a, o in zip(actions, ahead, strict=True))
    env.close()


@installed
@pytest.mark.parametrize("controller", ["osc_pose", "osc_position", "joint_position"])
def test_a_controller_is_sent_what_the_convention_says(controller):
    env = make(controller=controller)
    env.reset(seed=0)
    means, part = env.data_spec.action.convention, env._robot.part_controllers["right"]
    action = draw(env, 1)[0][:-1].astype(float)
    part.update(force=True)
    part.set_goal(action)
    if controller == "joint_position":
        assert np.allclose(part.goal_qpos - part.joint_pos, means.position_unit * action)
    else:
        assert means.frame == "base"
        here = part.goal_origin_to_eef_pose()
        moved = part.goal_pos - part.world_to_origin_frame(part.ref_pos)
        assert np.allclose(moved, means.position_unit * action[:3])
        turned = Rotation.from_matrix(part.goal_ori @ here[:3, :3].T).as_rotvec()
        assert np.allclose(turned, means.rotation_unit * action[3:] if means.rotation else 0)
    env.close()


@installed
@pytest.mark.parametrize("controller", ["osc_pose", "osc_position", "ik_pose"])
def test_the_hand_goes_where_it_is_sent_and_closes_at_plus_one(controller):
    env = make(controller=controller)
    assert env.data_spec.action.convention.gripper == "close_is_+1"
    for axis in range(3):
        before, _ = env.reset(seed=0)
        action = np.zeros(env.data_spec.action.size, np.float32)
        action[axis] = env.action_space.high[axis]
        for _ in range(8):
            after = env.step(action).observation
        moved = after["ee"][:3] - before["ee"][:3]
        assert moved[axis] > 0.02
        assert np.abs(np.delete(moved, axis)).max() < 0.5 * moved[axis]
    for sign, compare in ((1, np.less), (-1, np.greater)):
        before, _ = env.reset(seed=0)
        action = np.zeros(env.data_spec.action.size, np.float32)
        action[-1] = sign
        for _ in range(15):
            after = env.step(action).observation
        width = [o["gripper"][0] - o["gripper"][1] for o in (after, before)]
        assert compare(*width)
    env.close()


@installed
def test_a_joints_velocity_is_what_is_asked():
    env = make(controller="joint_velocity")
    env.reset(seed=0)
    for _ in range(20):
        after = env.step(np.array([0.5, 0, 0, 0, 0, 0, 0, -1], np.float32)).observation
    unit = env.data_spec.action.convention.position_unit
    assert after["q_velocity"][0] == pytest.approx(0.5 * unit, abs=0.1 * unit)
    env.close()


@installed
def test_two_envs_of_one_seed_are_equal_whatever_numpy_drew():
    np.random.seed(123)
    one = make()
    np.random.rand(5)
    other = make()
    assert equal(one.reset(seed=3)[0], other.reset(seed=3)[0])
    assert np.array_equal(one._model.geom_size, other._model.geom_size)
    one.close(), other.close()


@installed
@pytest.mark.parametrize("task", ["Lift", "Stack", "Door"])
def test_the_expert_does_the_task_and_the_episode_ends_soon_after(task):
    env = make(task)
    for seed in (1000, 1001):
        goal = env.goal(seed=seed)
        seen, info = env.reset(seed=seed, options={"goal": goal})
        assert info["text"] == env.text
        started = env.distance(seen, goal)
        rng, ended, steps = np.random.default_rng(seed), False, 0
        while not ended and steps < env.episode_length:
            seen, reward, ended, _, info = env.step(env.expert(seen, rng))
            steps += 1
        assert ended and info["success"] and reward == -info["distance"]
        assert info["distance"] < min(1e-6 + 0.2 * started, 0.02)  # the expert is the same
    env.close()


@installed
def test_tasks_without_an_expert_say_so():
    env = make("Wipe")
    seen, _ = env.reset(seed=0)
    assert not hasattr(env, "expert")
    for ask in (lambda: env.goal(seed=0), lambda: env.oracle(seen, seen)):
        with pytest.raises(ConfigError, match="has no expert"):
            ask()
    assert seen["marks"].shape == (100, 4) and seen["marks"][:, 3].all()
    wiped = {"marks": seen["marks"] * (1, 1, 1, 0)}
    assert env.distance(seen, wiped) == pytest.approx(0.5)  # 100 marks, 5 mm apart
    assert env.distance(wiped, seen) == 0
    env.close()


@installed
def test_experts_of_other_arms_are_refused():
    env = make(robot="UR5e")
    seen, _ = env.reset(seed=0)
    with pytest.raises(ConfigError, match="Lift.robot: found 'UR5e'"):
        env.expert(seen, np.random.default_rng(0))
    env.close()


@installed
@pytest.mark.parametrize("robot", ["UR5e", "Sawyer"])
def test_other_arms_move(robot):
    env = make(robot=robot)
    before, _ = env.reset(seed=0)
    for _ in range(10):
        after = env.step(np.array([0, 0, 1, 0, 0, 0, -1], np.float32)).observation
    assert after["ee"][2] - before["ee"][2] > 0.02
    env.close()


@installed
def test_diverging_physics_is_reported_and_a_reset_mends_it():
    env = make()
    env.reset(seed=0)
    env._data.qvel[:] = 1e12
    with pytest.raises(UnstablePhysics):
        env.step(draw(env, 1)[0])
    env.reset(seed=0)
    env.step(draw(env, 1)[0])
    env.close()


@installed
def test_images_stay_right_beside_other_envs_and_over_resets():
    env = make("Stack", cameras=("agentview", "eye_in_hand"), observe=("rgb", "depth"))
    rope = registry.get("env", "rope")()
    want, rope_want = env.reset(seed=0)[0], rope.reset(seed=0)[0]["rgb"].copy()
    assert want["rgb"].std() > 20
    for seed in range(5):
        env.reset(seed=seed + 1)
        if seed % 2:
            other = make("Lift", cameras=("agentview",))
            other.reset(seed=0)
            del other
        assert np.array_equal(rope.reset(seed=0)[0]["rgb"], rope_want)
        assert equal(env.reset(seed=0)[0], want)
    points = env.cameras()["agentview"].unproject(want["depth_agentview"])
    assert (np.abs(points[..., 2] - 0.8) < 2e-3).mean() > 0.3  # the table's height, m
    env.close(), rope.close()


def test_every_task_says_in_words_what_is_to_be_done():
    for name in NAMES:
        task = registry.get("env", name)
        assert task.name == name and task.text == task.text.lower() and task.__doc__
        assert issubclass(task, tasks.Robosuite)
