"""The tabletop: its actions, what its tasks ask for, its expert, its images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from latentplan.errors import ConfigError, ShapeError
from latentplan.exploration.expert import Expert
from latentplan.exploration.recorder import CollectConfig, Recipe, Recorder

pytest.importorskip("pybullet")

from latentplan.sim.tabletop import tasks  # noqa: E402
from latentplan.sim.tabletop.env import HOME, Tabletop  # noqa: E402
from latentplan.sim.tabletop.tasks import BLOCKS, BULB, DRAWER, SWITCH, TASKS  # noqa: E402
from latentplan.sim.tabletop.world import BLOCK, RANGES, Scene, World, lights  # noqa: E402
from latentplan.types import Array, Observation  # noqa: E402

NAMES = list(TASKS)
BLIND = Tabletop.Config(cameras=())


@pytest.fixture(scope="module")
def blind() -> Iterator[Tabletop]:
    env = Tabletop(BLIND)
    yield env
    env.close()


@pytest.fixture(scope="module")
def seeing() -> Iterator[Tabletop]:
    env = Tabletop(Tabletop.Config(depth=True))
    yield env
    env.close()


def begin(env: Tabletop, task: str, seed: int = 0) -> Observation:
    return env.reset(seed=seed, options={"task": task})[0]


def run(env: Tabletop, observation: Observation, *, noise: float = 0.0, seed: int = 0) -> int:
    """Let the expert act until success and return after how many actions; 0 never."""
    policy = Expert(env.data_spec, Expert.Config(noise=noise))
    policy.attach(env)
    policy.reset(seed=seed)
    for count in range(1, env.episode_length + 1):
        step = env.step(policy.act(observation))
        observation = step.observation
        if step.info["success"]:
            return count
    return 0


def action(*moves: float, grip: float = 1.0) -> Array:
    return np.array([*moves, *(0.0,) * (6 - len(moves)), grip], np.float32)


@pytest.mark.parametrize("task", NAMES)
def test_the_expert_does_a_task_from_any_start(blind: Tabletop, task: str) -> None:
    for seed in range(3):
        assert 5 < run(blind, begin(blind, task, seed)) <= blind.episode_length


@pytest.mark.parametrize("task", ["open_drawer", "turn_off_light", "push_red_block_left"])
def test_the_expert_copes_with_noise_on_its_actions(blind: Tabletop, task: str) -> None:
    done = [run(blind, begin(blind, task, s), noise=0.3, seed=s) > 0 for s in range(4)]
    assert sum(done) >= 3


def test_the_expert_acts_at_other_rates_and_units() -> None:
    units = {"position_unit": 0.05, "rotation_unit": 0.15}
    env = Tabletop(Tabletop.Config(cameras=(), rate=10, **units))
    assert env.data_spec.dt == pytest.approx(0.1)
    for task in ("close_drawer", "move_slider_left", "push_pink_block_right", "lift_blue_block"):
        assert 0 < run(env, begin(env, task)) <= 20
    env.close()


def test_an_action_moves_the_target_by_the_units_of_the_convention(blind: Tabletop) -> None:
    convention = blind.data_spec.action.convention
    assert convention is not None and blind.data_spec.dt == pytest.approx(1 / 30)
    assert (convention.position_unit, convention.rotation_unit) == (0.02, 0.05)
    before = begin(blind, "open_drawer")["robot_obs"]
    for _ in range(3):
        blind.step(action(1, -0.5, 0.25, 0.2, -0.4, 1))
    for _ in range(5):
        after = blind.step(action()).observation["robot_obs"]
    moved = (after - before)[:6]
    np.testing.assert_allclose(moved[:3], 3 * 0.02 * np.array([1, -0.5, 0.25]), atol=1e-3)
    np.testing.assert_allclose(moved[3:], 3 * 0.05 * np.array([0.2, -0.4, 1]), atol=5e-3)


@pytest.mark.parametrize(
    ("grip", "width", "told"), [(-1, 0, -1), (-0.1, 0, -1), (0.1, 0.08, 1), (1, 0.08, 1)]
)
def test_the_grippers_number_is_a_sign(
    blind: Tabletop, grip: float, width: float, told: float
) -> None:
    begin(blind, "open_drawer")
    for _ in range(10):
        robot = blind.step(action(grip=grip)).observation["robot_obs"]
    assert robot[6] == pytest.approx(width, abs=2e-3)
    assert robot[14] == told
    assert not robot[7:14].any()


def test_the_target_stays_in_reach(blind: Tabletop) -> None:
    begin(blind, "open_drawer")
    for _ in range(60):
        up = blind.step(action(1, 1, 1)).observation["robot_obs"]
    down = blind.step(action(0, 0, -1)).observation["robot_obs"]
    assert up[2] < 0.31  # and what was asked for beyond is not remembered
    assert up[2] - down[2] > 0.01


@pytest.mark.parametrize("task", TASKS.values(), ids=NAMES)
def test_starts_are_random_and_leave_room_for_the_task(task: tasks.Task) -> None:
    rng = np.random.default_rng(0)
    drawn = [tasks.draw_start(task, rng) for _ in range(30)]
    numbers = np.array([tasks.encode(scene) for scene in drawn])
    assert (numbers[:, BLOCKS : BLOCKS + 2].std(axis=0) > 0.02).all()
    for scene, row in zip(drawn, numbers, strict=True):
        assert not task.done(row, row)
        far = row.copy()
        far[task.place] += task.way * task.further
        far[BULB] = lights(float(far[SWITCH]))
        assert task.done(far, row)
        moved = np.array(tasks.decode(far)[:3])
        assert (moved >= 0).all() and (moved <= list(RANGES.values())).all()
        gaps = np.linalg.norm(scene.blocks[:, None, :2] - scene.blocks[None, :, :2], axis=2)
        assert gaps[np.triu_indices(3, 1)].min() >= tasks.GAP


def test_done_is_what_changed_since_the_start() -> None:
    row = tasks.encode(Scene(0.1, 0.1, 0.01, np.tile([0.0, 0, BLOCK / 2, 0, 0, 0], (3, 1))))

    def changed(place: int, by: float, then: Array = row) -> Array:
        after = then.copy()
        after[place] += by
        return after

    assert not TASKS["open_drawer"].done(changed(DRAWER, 0.11), row)
    assert TASKS["open_drawer"].done(changed(DRAWER, 0.13), row)
    assert TASKS["close_drawer"].done(row, changed(DRAWER, 0.13))
    push = TASKS["push_blue_block_left"]
    assert push.done(changed(BLOCKS + 6, -0.11), row)
    assert not push.done(changed(BLOCKS + 6, 0.11), row)
    assert not push.done(changed(BLOCKS, -0.11), row)  # another block
    assert not push.done(changed(BLOCKS + 8, -0.1, changed(BLOCKS + 6, -0.11)), row)  # fell off
    assert TASKS["turn_on_light"].done(changed(BULB, 1), row)
    assert not TASKS["turn_on_light"].done(changed(SWITCH, 0.01), row)
    assert TASKS["lift_red_block"].done(changed(BLOCKS + 2, 0.06), row)


def test_every_sentence_belongs_to_one_task() -> None:
    said = [sentence for task in TASKS.values() for sentence in task.sentences]
    assert len(said) == len(set(said)) >= 4 * len(TASKS)


def test_a_reset_draws_a_task_and_an_instruction(blind: Tabletop) -> None:
    told = [blind.reset(seed=seed)[1] for seed in range(40)]
    assert len({info["task"] for info in told}) > 10
    assert all(info["text"] in TASKS[info["task"]].sentences for info in told)
    opened = {blind.reset(seed=s, options={"task": "open_drawer"})[1]["text"] for s in range(12)}
    assert len(opened) > 1


@pytest.mark.parametrize("task", ["close_drawer", "push_pink_block_left", "lift_red_block"])
def test_a_goal_sets_the_scene_that_leads_to_it(blind: Tabletop, task: str) -> None:
    goal = blind.reset(seed=3, options={"task": task})[1]["goal"]
    observation, info = blind.reset(seed=4, options={"goal": goal})
    assert info["task"] == task
    place = TASKS[task].place
    own = slice(place, place + 1) if place < BLOCKS else slice(place // 6 * 6, place // 6 * 6 + 6)
    others = np.delete(np.arange(24), np.r_[own])
    np.testing.assert_allclose(
        observation["scene_obs"][others], goal["scene_obs"][others], atol=2e-3
    )
    assert blind.distance(observation, goal) > 0.07
    assert run(blind, observation)


def test_without_goals_a_reset_returns_goal_numbers_without_images() -> None:
    env = Tabletop(Tabletop.Config(cameras=("static",), goals=False))
    observation, info = env.reset(seed=2, options={"task": "push_red_block_left"})
    assert set(info["goal"]) == {"scene_obs", "task"}
    assert env.distance(observation, info["goal"]) == pytest.approx(0.12, abs=1e-6)
    assert run(env, observation)
    again, _ = env.reset(seed=3, options={"goal": info["goal"]})
    assert run(env, again)
    with_goals, told = Tabletop().reset(seed=2, options={"task": "push_red_block_left"})
    np.testing.assert_array_equal(with_goals["scene_obs"], observation["scene_obs"])
    assert set(told["goal"]) == set(with_goals)
    assert set(env.goal(seed=5)) == set(env.data_spec.observation)
    env.close()


def test_a_snapshot_amid_a_grasp_goes_on_bit_for_bit(blind: Tabletop) -> None:
    observation = begin(blind, "lift_blue_block", 1)
    count = run(blind, observation)
    begin(blind, "lift_blue_block", 1)
    rng = np.random.default_rng(0)
    for _ in range(count - 3):
        observation = blind.step(blind.expert(observation, rng)).observation
    state = blind.snapshot()

    def onwards() -> list[Array]:
        seen, rng = [], np.random.default_rng(1)
        for _ in range(25):
            moved = np.append(rng.uniform(-1, 1, 6), -1).astype(np.float32)
            step = blind.step(moved)
            seen.append(np.concatenate([step.observation["scene_obs"], [step.info["success"]]]))
        return seen

    first = onwards()
    assert np.ptp([row[BLOCKS + 8] for row in first]) > 0.01  # the block moves
    begin(blind, "open_drawer", 5)
    for _ in range(2):
        blind.restore(state)
        assert np.array_equal(onwards(), first)


def test_states_are_forgotten_with_their_snapshots() -> None:
    import pybullet

    world = World(substeps=8, static=64, gripper=64)
    kept = world.snapshot()
    number = kept.number
    world.restore(kept)
    del kept
    with pytest.raises(pybullet.error, match="restore"):
        pybullet.restoreState(number, physicsClientId=world._client)
    late = world.snapshot()
    world.close()
    del late  # after its world: nothing happens


def test_success_ends_an_episode_only_with_stop() -> None:
    env = Tabletop(Tabletop.Config(cameras=(), task="turn_on_light", stop=True, after=3))
    observation, _ = env.reset(seed=0)
    rng, ends = np.random.default_rng(0), []
    while not ends or not ends[-1][0]:
        step = env.step(env.expert(observation, rng))
        observation = step.observation
        ends.append((step.terminated, step.info["success"]))
    assert [success for _, success in ends[-5:]] == [False, True, True, True, True]
    env.close()


def test_a_demonstration_carries_its_sentence_as_a_label() -> None:
    config = Tabletop.Config(cameras=(), stop=True)
    recipe = Recipe(
        Tabletop, Expert, config, Expert.Config(), config=CollectConfig(length=64), seed=0
    )
    episode = Recorder(recipe).record(0).episode
    (label,) = episode.labels
    assert label.text in TASKS[label.task].sentences
    scenes = episode.observations["scene_obs"]
    assert TASKS[label.task].done(scenes[-1], scenes[0])
    assert episode.terminated and len(episode) < 64


@pytest.mark.parametrize(("switch", "lit"), [(0.01, False), (0.07, True)])
def test_the_lamp_follows_the_lever(switch: float, lit: bool) -> None:
    world = World(substeps=8, static=64, gripper=64)
    blocks = np.tile([0.0, 0, BLOCK / 2, 0, 0, 0], (3, 1))
    blocks[:, 0] = -0.15, 0, 0.15
    for other in (0.0, switch):  # it was otherwise before
        world.lay(Scene(0.0, 0.0, other, blocks), pose=np.array(HOME))
        rgb = world.image("static").rgb
    u, v = world.camera("static").project(np.array([0.24, 0.19, 0.12]))[0].round().astype(int)
    red, green, blue = rgb[v, u].astype(int)
    assert (red > 150 and green > 150 and blue < 100) == lit
    world.close()


def test_images_show_objects_at_their_positions(seeing: Tabletop) -> None:
    observation = begin(seeing, "open_drawer", 6)
    camera = seeing.cameras()["static"]
    points = camera.unproject(observation["depth_static"])
    for number, strongest in ((0, 0), (1, 2)):  # red, blue
        x, y = observation["scene_obs"][BLOCKS + 6 * number : BLOCKS + 6 * number + 2]
        (u, v), _ = camera.project(np.array([x, y, BLOCK]))
        u, v = round(float(u)), round(float(v))
        assert observation["rgb_static"][v, u].argmax() == strongest
        np.testing.assert_allclose(points[v, u], [x, y, BLOCK], atol=0.02)


def test_the_wrists_camera_turns_with_the_gripper(seeing: Tabletop) -> None:
    begin(seeing, "open_drawer")
    before = seeing.cameras()["gripper"].axes()
    for _ in range(10):
        seeing.step(action(0, 0, 0, 0, 0, 1))
    turned = seeing.cameras()["gripper"].axes() @ before.T
    assert np.degrees(np.arccos((np.trace(turned) - 1) / 2)) == pytest.approx(
        np.degrees(0.5), abs=2
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"task": "open_draw"}, "did you mean 'open_drawer'"),
        ({"cameras": ("static", "wrist")}, "known: gripper, static"),
        ({"rate": 0}, r"Tabletop\.rate: 0 is not within"),
        ({"static": 8}, r"Tabletop\.static: 8 is not within"),
        ({"position_unit": -1.0}, r"Tabletop\.position_unit"),
    ],
)
def test_a_wrong_setting_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Tabletop.Config(**values)  # type: ignore[arg-type]


def test_a_wrong_goal_or_task_is_refused(blind: Tabletop) -> None:
    goal = blind.reset(seed=0)[1]["goal"]
    with pytest.raises(ShapeError, match="has no 'scene_obs'"):
        blind.reset(seed=0, options={"goal": {"task": goal["task"]}})
    with pytest.raises(ShapeError, match=r"goal\.task: 99"):
        blind.reset(seed=0, options={"goal": {**goal, "task": np.array([99])}})
    with pytest.raises(ConfigError, match="did you mean 'close_drawer'"):
        blind.reset(seed=0, options={"task": "close_drawers"})


def test_settings_suit_what_a_model_was_trained_with():
    short = Tabletop.Config(
        rate=10.0, position_unit=0.05, rotation_unit=0.15, cameras=("static",), static=32
    )
    env = Tabletop(short)
    spec = env.data_spec
    env.close()
    asked = Tabletop.settings_for(spec)
    assert asked == {"rate": 10, "position_unit": 0.05, "rotation_unit": 0.15, "static": 32}
    assert Tabletop.Config(cameras=("static",), **asked) == short
