"""CALVIN's 34 tests of success: on instants made up here, and against calvin_env's own."""

import copy
import sys

import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from latentplan.errors import MissingDependency, UnknownName
from latentplan.evaluation.calvin.tasks import TASKS, achieved
from latentplan.sim.calvin import checkout

ROBOT, BLOCKS, TABLE, PLANE = 0, {"red": 2, "blue": 3, "pink": 4}, 5, 6
LINKS = {"base_link": -1, "plank_link": 6, "drawer_link": 3}


def touch(*pairs):
    return [(0, 0, body, -1, link) for body, link in pairs]


def block(uid, place=(0.1, -0.1, 0.46), turn=0.0, contacts=((TABLE, -1),), speed=0.0):
    return {
        "uid": uid,
        "current_pos": tuple(place),
        "current_orn": tuple(Rotation.from_euler("z", turn, degrees=True).as_quat()),
        "current_lin_vel": (speed, 0, 0),
        "current_ang_vel": (0, 0, 0),
        "contacts": touch(*contacts),
    }


def instant(robot=(), doors=(0.0, 0.0), lights=(0, 0), **blocks):
    made = {c: block(uid, **blocks.get(c, {})) for c, uid in BLOCKS.items()}
    return {
        "robot_info": {"uid": ROBOT, "contacts": touch(*robot)},
        "scene_info": {
            "movable_objects": {f"block_{c}": b for c, b in made.items()},
            "fixed_objects": {"table": {"uid": TABLE, "links": LINKS, "contacts": []}},
            "doors": {
                f"base__{name}": {"current_state": x}
                for name, x in zip(("slide", "drawer"), doors, strict=True)
            },
            "lights": {
                name: {"logical_state": x}
                for name, x in zip(("lightbulb", "led"), lights, strict=True)
            },
        },
    }


AIR = {"place": (0.1, -0.1, 0.56), "contacts": ((ROBOT, 10),)}
IN_SLIDER = {"contacts": ((TABLE, 6),)}
IN_DRAWER = {"contacts": ((TABLE, 3),)}
ON_BLUE = {"contacts": ((BLOCKS["blue"], -1),)}
CASES = {
    "rotate_red_block_right": (instant(), instant(red={"turn": -70})),
    "rotate_blue_block_left": (instant(), instant(blue={"turn": 70})),
    "push_red_block_right": (instant(), instant(red={"place": (0.21, -0.1, 0.46)})),
    "push_pink_block_left": (instant(), instant(pink={"place": (-0.01, -0.1, 0.46)})),
    "move_slider_left": (instant(), instant(doors=(0.16, 0))),
    "move_slider_right": (instant(doors=(0.28, 0)), instant(doors=(0.1, 0))),
    "open_drawer": (instant(), instant(doors=(0, 0.13))),
    "close_drawer": (instant(doors=(0, 0.2)), instant(doors=(0, 0.05))),
    "lift_red_block_table": (instant(), instant(red=AIR)),
    "lift_blue_block_slider": (
        instant(blue=IN_SLIDER),
        instant(blue=AIR | {"place": (0.1, -0.1, 0.5)}),
    ),
    "lift_pink_block_drawer": (instant(pink=IN_DRAWER), instant(pink=AIR)),
    "place_in_slider": (instant(robot=((2, -1),), red=AIR), instant(red=IN_SLIDER)),
    "place_in_drawer": (instant(robot=((4, -1),), pink=AIR), instant(pink=IN_DRAWER)),
    "stack_block": (instant(red=AIR), instant(red=ON_BLUE)),
    "unstack_block": (instant(red=ON_BLUE), instant()),
    "turn_on_lightbulb": (instant(), instant(lights=(1, 0))),
    "turn_off_lightbulb": (instant(lights=(1, 0)), instant()),
    "turn_on_led": (instant(), instant(lights=(0, 1))),
    "turn_off_led": (instant(lights=(0, 1)), instant()),
    "push_into_drawer": (instant(), instant(blue=IN_DRAWER)),
}


@pytest.mark.parametrize("task", CASES)
def test_only_the_condition_of_the_task_counts(task):
    start, end = CASES[task]
    assert achieved(start, end) == {task}
    assert achieved(start, start) == set() == achieved(end, end)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (instant(), instant(red={"turn": 70, "place": (0.25, -0.1, 0.46), "contacts": ()})),
        (instant(), instant(red={"turn": 70, "contacts": ((ROBOT, 10),)})),  # held in the air
        (instant(), instant(red={"place": (0.19, -0.1, 0.46)})),  # 9 cm
        (instant(red=IN_SLIDER), instant(red={"place": (0.3, -0.1, 0.46)})),  # fell off
        (instant(), instant(red=AIR | {"contacts": ((ROBOT, 10), (TABLE, -1))})),  # still touches
        (instant(), instant(red=AIR | {"place": (0.1, -0.1, 0.5)})),  # 4 cm
        (instant(red=AIR), instant(red=ON_BLUE | {"speed": 2.0})),  # falls over
        (instant(red=AIR), instant(red={"contacts": ((3, -1), (TABLE, -1))})),  # leans
        (
            instant(robot=((2, -1), (TABLE, -1)), red=AIR),  # touches the table, too
            instant(red=IN_SLIDER),
        ),
        (  # not let go
            instant(robot=((2, -1),), red=AIR),
            instant(robot=((2, -1),), red=IN_SLIDER),
        ),
    ],
)
def test_what_falls_short_does_not_count(start, end):
    assert achieved(start, end) == set()


def test_only_the_34_names_are_accepted():
    assert len(TASKS) == 34 and set(CASES) < set(TASKS)
    with pytest.raises(UnknownName, match="did you mean 'open_drawer'"):
        achieved(instant(), instant(), among=["open_drawr"])


def random_instant(rng):
    """Return an instant in which most of what the tests look at is likely to matter."""
    bodies = [(ROBOT, 10), (ROBOT, 12), (TABLE, -1), (TABLE, 6), (TABLE, 3), (PLANE, -1)]
    bodies += [(uid, -1) for uid in BLOCKS.values()]

    def some(among, most=3):
        chosen = rng.permutation(len(among))[: rng.integers(0, most)]
        return tuple(among[i] for i in chosen)

    blocks = {}
    for colour, uid in BLOCKS.items():
        blocks[colour] = {
            "place": rng.uniform((-0.1, -0.05, 0.4), (0.1, 0.05, 0.52)) * rng.choice([1, 0.1], 1),
            "contacts": some([b for b in bodies if b[0] != uid]),
            "speed": rng.choice([0.0, 0.5, 1.5]),
        }
    made = instant(
        robot=some([(uid, -1) for uid in BLOCKS.values()]),
        doors=rng.uniform(0, 0.4, 2),
        lights=rng.integers(0, 2, 2).tolist(),
        **blocks,
    )
    for thing in made["scene_info"]["movable_objects"].values():
        turn = Rotation.from_euler("xyz", rng.normal(0, (15, 15, 90)), degrees=True)
        thing["current_orn"] = tuple(turn.as_quat())
    return made


def test_they_agree_with_calvin_envs_own():
    try:
        root = checkout.find()
        checkout.simulator(root)
    except MissingDependency as e:
        pytest.skip(str(e))
    oracle_class = pytest.importorskip("calvin_env.envs.tasks").Tasks
    config = yaml.safe_load((root / "conf" / "tasks" / "new_playtable_tasks.yaml").read_text())
    oracle = oracle_class(config["tasks"])
    assert list(oracle.tasks) == list(TASKS)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(2000):
        start = random_instant(rng)
        end = random_instant(rng)
        for name in rng.permutation(list(BLOCKS))[: rng.integers(0, 4)]:  # some stay as they were
            kept = copy.deepcopy(start["scene_info"]["movable_objects"][f"block_{name}"])
            end["scene_info"]["movable_objects"][f"block_{name}"] |= {
                key: kept[key] for key in some_keys(rng)
            }
        want = oracle.get_task_info(start, end)
        assert achieved(start, end) == want
        seen |= want
    assert seen == set(TASKS)
    assert "calvin_env" in sys.modules


def some_keys(rng):
    keys = ["current_pos", "current_orn", "contacts"]
    return [k for k in keys if rng.random() < 0.5]
