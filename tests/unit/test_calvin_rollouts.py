"""CALVIN's evaluations: on a small table here, and in the real one where there is a checkout."""

import json

import numpy as np
import pytest
from lamps import SPEC, Lamps
from toy import ToyEnv

from latentplan.api.evaluate import evaluate
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, MissingDependency
from latentplan.evaluation.calvin import chains, evaluations
from latentplan.evaluation.calvin.baselines import Presser
from latentplan.evaluation.calvin.evaluations import Chains, SingleTasks
from latentplan.evaluation.calvin.rollouts import (
    ANNOTATIONS,
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
from latentplan.types import Episode, Goal, Label

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


TEXTS = {"pull!": "open_drawer", "press it": "turn_on_led", "off": "turn_off_led"}


class Obedient:
    """Follows its instruction, for one move more than it needs to find out."""

    def __init__(self):
        self.goals, self.seen = [], []

    def reset(self, goal=None, *, seed=None):
        self.goals.append(goal)

    def act(self, observation):
        self.seen.append(observation)
        action = np.zeros(7)
        task = TEXTS.get(self.goals[-1].text, self.goals[-1].text.replace(" ", "_"))
        number, sign = MOVES.get(task, (6, 1))
        action[number] = sign
        return action


STATE = dict(chains._states().__next__())
CHAINS = [
    chains.Chain(STATE, ("move_slider_left", "open_drawer", "turn_on_led", "lift_red_block_table")),
    chains.Chain(STATE, ("stack_block", "open_drawer")),
    chains.Chain(STATE, ("turn_on_lightbulb", "open_drawer", "move_slider_left", "turn_on_led")),
]


def test_chains_continue_from_the_end_of_the_last_task():
    policy, env = Obedient(), Lamps()
    done = list(long(policy, env, chains=CHAINS[:2], texts={"open_drawer": "pull!"}, limit=40))
    assert done == [3, 0]
    texts = [goal.text for goal in policy.goals]
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


def test_single_tasks_start_in_the_states_of_the_data():
    found = list(trials(Data(), texts={"turn_off_led": "off"}))
    assert [t.goal.text for t in found] == ["press it", "off", "turn"]
    assert found[0].robot_obs[0] == 4 and found[0].scene_obs[5] == 0
    assert found[1].scene_obs[5] == 1
    goals = [t.goal.observation for t in found]
    assert [g["robot_obs"][0] for g in goals] == [20, 25, 29]
    assert all("scene_obs" not in g for g in goals)
    lamps = found[:2] + [found[0]]
    result = rates(single(Obedient(), Lamps(), trials=lamps, limit=3))
    assert result.tasks == {"turn_on_led": (2, 2), "turn_off_led": (1, 1)}
    assert result.rate == 1 and result.interval[0] < 0.5


def test_a_policy_gets_the_goal_observation_of_a_task_and_none_in_a_chain():
    policy = Obedient()
    (found, *_) = trials(Data())
    assert list(single(policy, Lamps(), trials=[found])) == [("turn_on_led", True)]
    assert policy.goals[0].observation["robot_obs"][0] == 20
    list(long(policy, Lamps(), chains=CHAINS[:1], limit=3))
    assert policy.goals[-1].observation is None and policy.goals[-1].text


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
    asked = ("turn_on_led", "turn_off_led")
    assert list(long(Presser(), env, chains=[chains.Chain(dark, asked)])) == [2]  # comes again
    robot, scene = chains.start(dark)
    again = [Trial(task, robot, scene, Goal(text="")) for task in (*asked, "open_drawer")]
    found = dict(single(Presser(), env, trials=again, limit=90))
    assert found == {"turn_on_led": True, "turn_off_led": False, "open_drawer": False}
    env.close()


def test_both_evaluations_are_registered_and_stand_beside_baselines(tmp_path, monkeypatch):
    store = ZarrStore.create(tmp_path / "lamps.zarr", SPEC)
    with store:
        store.append(Data().episode(0))
    settings = {"evaluation": {"data": str(tmp_path / "lamps.zarr"), "limit": 3}}
    out = tmp_path / "out"
    found = evaluate(Obedient(), env=Lamps(), evaluation="calvin-mtlc", overrides=settings, out=out)
    assert found.metrics.rates["policy"].tasks["turn_on_led"] == (1, 1)
    assert found.metrics.rates["noop"].total == (0, 3) == (0, found.metrics.episodes)
    values = json.loads((out / "metrics.json").read_text())
    assert values["success"] == found.metrics.rates["policy"].rate > values["noop_success"] == 0
    assert {p.name for p in out.iterdir()} == {"config.yaml", "episodes.json", "metrics.json"}
    assert json.loads((out / "episodes.json").read_text())[0]["task"] == "turn_on_led"

    monkeypatch.setattr(evaluations, "chains", lambda count: CHAINS)
    settings = {"evaluation": {"chains": 3, "limit": 40, "baselines": ["noop"]}}
    found = evaluate(
        Obedient(), env=Lamps(), evaluation="calvin-lh", episodes=2, overrides=settings
    )
    assert found.metrics.rates["policy"].done == (3, 0)
    assert found.metrics.rates["noop"].done == (0, 0)
    assert found.metrics.table().rows[0] == (
        "policy", "50.0%", "50.0%", "50.0%", "0.0%", "0.0%", "1.50"
    )  # fmt: skip
    assert found.metrics.to_json()["mean_in_a_row"] == 1.5


def test_calvins_evaluations_refuse_missing_data_and_wrong_envs():
    with pytest.raises(ConfigError, match="SingleTasks.data: is empty"):
        evaluate(Obedient(), env=Lamps(), evaluation="calvin-mtlc")
    with pytest.raises(ConfigError, match="Chains.baselines: 'idle' is not one of noop, "):
        Chains.Config(baselines=("idle",))
    with pytest.raises(ConfigError, match="SingleTasks.limit: 0 must be at least 1"):
        SingleTasks.Config(limit=0)
    with pytest.raises(ConfigError, match="env 'toy' has no task_info"):
        evaluate(Obedient(), env=ToyEnv, evaluation="calvin-lh", episodes=1)
    with pytest.raises(ConfigError, match="evaluate.goal_text: is for the evaluation goals"):
        evaluate(Obedient(), env=Lamps(), evaluation="calvin-lh", goal_text="open it")
