"""CALVIN's evaluations: on a small table here, and in the real one where there is a checkout."""

import numpy as np
import pytest

from latentplan.errors import ConfigError, MissingDependency
from latentplan.evaluation.calvin import chains
from latentplan.evaluation.calvin.controls import Presser
from latentplan.evaluation.calvin.rollouts import (
    ANNOTATIONS,
    GoalPicture,
    Instruction,
    Trial,
    chain_rates,
    long,
    rates,
    sentences,
    single,
    trials,
)
from latentplan.evaluation.calvin.tasks import TASKS
from latentplan.sim.calvin.env import Calvin
from latentplan.types import ActionSpec, ArraySpec, Episode, Label, Spec

SPEC = Spec(
    observation={"robot_obs": ArraySpec((15,), "float64"), "scene_obs": ArraySpec((24,))},
    action=ActionSpec((-1.0,) * 7, (1.0,) * 7),
    env="lamps",
    privileged=("scene_obs",),
)


class Lamps:
    """A table with two lamps and two doors that the numbers of an action move."""

    data_spec = SPEC

    def reset(self, *, seed=None, options=None):
        self.scene = np.array(options["scene_obs"])
        self.steps = 0
        return self._seen(), {}

    def step(self, action):
        self.steps += 1
        self.scene[:2] += 0.01 * np.asarray(action[:2])
        for lamp, number in ((4, 2), (5, 3)):
            if action[number]:
                self.scene[lamp] = action[number] > 0
        return self._seen(), 0.0, False, False, {}

    def _seen(self):
        return {"robot_obs": np.full(15, float(self.steps)), "scene_obs": self.scene.copy()}

    def task_info(self):
        still = {"current_pos": (0, 0, 0), "current_orn": (0, 0, 0, 1), "contacts": []}
        slow = {"current_lin_vel": (0, 0, 0), "current_ang_vel": (0, 0, 0)}
        return {
            "robot_info": {"uid": 0, "contacts": []},
            "scene_info": {
                "movable_objects": {
                    f"block_{c}": {"uid": uid, **still, **slow}
                    for uid, c in enumerate(("red", "blue", "pink"), 1)
                },
                "fixed_objects": {"table": {"uid": 4, "links": {"base_link": -1}}},
                "doors": {
                    "base__slide": {"current_state": self.scene[0]},
                    "base__drawer": {"current_state": self.scene[1]},
                },
                "lights": {
                    "lightbulb": {"logical_state": int(self.scene[4])},
                    "led": {"logical_state": int(self.scene[5])},
                },
            },
        }


MOVES = {
    "move_slider_left": (0, 1),
    "move_slider_right": (0, -1),
    "open_drawer": (1, 1),
    "close_drawer": (1, -1),
    "turn_on_lightbulb": (2, 1),
    "turn_off_lightbulb": (2, -1),
    "turn_on_led": (3, 1),
    "turn_off_led": (3, -1),
}


class Obedient:
    """Does what it is told, for one move more than it needs to find out."""

    def __init__(self):
        self.told, self.seen = [], []

    def reset(self, instruction):
        self.told.append(instruction)

    def act(self, observation):
        self.seen.append(observation)
        action = np.zeros(7)
        number, sign = MOVES.get(self.told[-1].task, (6, 1))
        action[number] = sign
        return action


STATE = dict(chains._states().__next__())
CHAINS = [
    chains.Chain(STATE, ("move_slider_left", "open_drawer", "turn_on_led", "lift_red_block_table")),
    chains.Chain(STATE, ("stack_block", "open_drawer")),
    chains.Chain(STATE, ("turn_on_lightbulb", "open_drawer", "move_slider_left", "turn_on_led")),
]


def test_chains_go_on_from_where_the_last_task_ended():
    policy, env = Obedient(), Lamps()
    done = list(long(policy, env, chains=CHAINS[:2], texts={"open_drawer": "pull!"}, limit=40))
    assert done == [3, 0]
    texts = [i.text for i in policy.told]
    assert texts == ["move slider left", "pull!", "turn on led", "lift red block table"] + [
        "stack block"
    ]
    assert all(set(o) == {"robot_obs"} for o in policy.seen)  # no simulator truth
    steps = [o["robot_obs"][0] for o in policy.seen]
    assert steps[:-40] == list(range(16 + 13 + 1 + 40)) and steps[-40:] == list(range(40))
    result = chain_rates([3, 0], of=CHAINS[:2])
    assert result.in_a_row == (0.5, 0.5, 0.5, 0.0, 0.0) and result.mean == 1.5
    assert result.tasks.tasks["open_drawer"] == (1, 1) and result.tasks.total == (3, 5)
    low, high = result.intervals[0]
    assert 0 < low < 0.5 < high < 1


def test_a_task_that_takes_too_long_is_not_done():
    assert list(long(Obedient(), Lamps(), chains=CHAINS[2:], limit=13)) == [2]
    assert list(long(Obedient(), Lamps(), chains=CHAINS[2:], limit=16)) == [4]


class Data:
    """One recording with two labelled parts and one that is none of the tasks."""

    spec = SPEC

    def __len__(self):
        return 1

    def episode(self, index):
        rows = 30
        scene = np.zeros((rows, 24))
        scene[15:, 5] = 1
        robot = np.arange(rows)[:, None] * np.ones(15)
        return Episode(
            observations={"robot_obs": robot, "scene_obs": scene},
            actions=np.zeros((rows - 1, 7), np.float32),
            rewards=np.zeros(rows - 1, np.float32),
            labels=(
                Label("press it", "turn_on_led", 4, 20),
                Label("press it again", "turn_off_led", 18, 25),
                Label("wave", "wave", 0, 9),
                Label("turn", "rotate_red_block_left", 2, -1),
            ),
        )


def test_single_tasks_start_where_the_data_says():
    found = list(trials(Data(), texts={"turn_off_led": "off"}))
    assert [t.instruction.text for t in found] == ["press it", "off", "turn"]
    assert found[0].robot_obs[0] == 4 and found[0].scene_obs[5] == 0
    assert found[1].scene_obs[5] == 1
    goals = [t.instruction.goal for t in found]
    assert [g["robot_obs"][0] for g in goals] == [20, 25, 29]
    assert all("scene_obs" not in g for g in goals)
    lamps = found[:2] + [found[0]]
    result = rates(single(Obedient(), Lamps(), trials=lamps, limit=3))
    assert result.tasks == {"turn_on_led": (2, 2), "turn_off_led": (1, 1)}
    assert result.rate == 1 and result.interval[0] < 0.5


def test_a_planner_gets_the_goal_picture_and_no_chain():
    class Agent:
        def reset(self, *, seed):
            self.seed = seed

        def goal(self, observation, *, task=""):
            self.at = observation

        def act(self, observation):
            return np.eye(7)[3]

    agent = Agent()
    (found, *_) = trials(Data())
    assert list(single(GoalPicture(agent), Lamps(), trials=[found])) == [("turn_on_led", True)]
    assert agent.at["robot_obs"][0] == 20
    with pytest.raises(ConfigError, match="no goal picture"):
        list(long(GoalPicture(agent), Lamps(), chains=CHAINS))


def test_sentences_are_read_from_the_users_checkout(tmp_path):
    file = tmp_path / ANNOTATIONS
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"{task}: ['do {task}', 'other']\n" for task in TASKS))
    assert sentences(tmp_path)["open_drawer"] == "do open_drawer"
    file.write_text("open_drawer: ['pull']\n")
    with pytest.raises(ConfigError, match="no sentence for task 'rotate_red_block_right'"):
        sentences(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        sentences(tmp_path / "elsewhere")


def test_a_button_is_pressed_on_the_real_table():
    try:
        env = Calvin(Calvin.Config(cameras=()))
    except MissingDependency as e:
        pytest.skip(str(e))
    dark = STATE | {"led": 0, "pink_block": "slider_left", "blue_block": "slider_right"}
    told = ("turn_on_led", "turn_off_led")
    assert list(long(Presser(), env, chains=[chains.Chain(dark, told)])) == [2]  # comes again
    robot, scene = chains.start(dark)
    again = [Trial(robot, scene, Instruction(task, "")) for task in (*told, "open_drawer")]
    found = dict(single(Presser(), env, trials=again, limit=90))
    assert found == {"turn_on_led": True, "turn_off_led": False, "open_drawer": False}
    env.close()
