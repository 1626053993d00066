"""CALVIN's chains of tasks: which are possible, and that they are the benchmark's own."""

import numpy as np
import pytest

from latentplan.errors import ConfigError
from latentplan.evaluation.calvin import chains
from latentplan.evaluation.calvin.tasks import TASKS

STATES = list(chains._states())
FIRST = chains.Chain(  # of the benchmark's 1,000
    {
        "led": 1,
        "lightbulb": 1,
        "slider": "left",
        "drawer": "open",
        "red_block": "slider_left",
        "blue_block": "table",
        "pink_block": "slider_right",
        "grasped": 0,
    },
    (
        "rotate_blue_block_right",
        "move_slider_right",
        "lift_red_block_slider",
        "place_in_slider",
        "turn_off_lightbulb",
    ),
)


def test_the_benchmarks_first_chain_is_drawn():
    seed = STATES.index(FIRST.state)
    drawn = chains._draw(FIRST.state, 6, rng=np.random.RandomState(seed))
    assert FIRST.tasks in list(drawn)


def test_there_are_192_states_and_every_chain_is_possible():
    assert len(STATES) == 192 == len({tuple(s.items()) for s in STATES})
    for seed in (0, 77, 191):
        for tasks in chains._draw(STATES[seed], 2, rng=np.random.RandomState(seed)):
            state = STATES[seed]
            for task in tasks:
                (state,) = chains.outcomes(state, task)
            assert len({chains.kind(t) for t in tasks}) == chains.LENGTH


def test_what_is_possible_follows_from_the_state():
    state = FIRST.state | {"blue_block": "table", "slider": "left"}
    assert chains.outcomes(state, "lift_red_block_slider") == []  # behind the slider
    (held,) = chains.outcomes(state, "lift_pink_block_slider")
    assert held["pink_block"] == "grasped" and held["grasped"] == 1
    assert chains.outcomes(held, "lift_blue_block_table") == []  # the hand is full
    (stack,) = chains.outcomes(held, "stack_block")
    assert (stack["pink_block"], stack["blue_block"]) == ("stacked_top", "stacked_bottom")
    assert chains.outcomes(stack, "unstack_block")[0]["blue_block"] == "table"
    (drawer,) = chains.outcomes(state, "push_into_drawer")
    assert chains.outcomes(drawer, "lift_blue_block_drawer")
    closed = chains.outcomes(drawer, "close_drawer")[0]
    assert chains.outcomes(closed, "lift_blue_block_drawer") == []
    everything = [task for task in TASKS if chains.outcomes(state, task)]
    assert "turn_off_led" in everything and "turn_on_led" not in everything


def test_the_hash_is_pyhashs_fnv1_32():
    assert chains._hash("hello world") == 2805756500  # from pyhash's own documentation
    assert chains._hash("hello ") == 406904344


def test_a_start_is_the_same_every_time_and_fits_its_words():
    robot, scene = chains.start(FIRST.state)
    again = chains.start(dict(FIRST.state))
    assert np.array_equal(robot, again[0]) and np.array_equal(scene, again[1])
    assert robot.shape == (15,) and scene.shape == (24,)
    assert scene[:6].tolist() == [0.28, 0.22, 0, 0.088, 1, 1]
    assert scene[6] < 0 < scene[18]  # red in the slider's left, pink in its right
    turns = scene[[11, 17, 23]]
    assert (turns > np.pi * 3 / 8).all() and (turns < np.pi * 5 / 8).all()
    both = FIRST.state | {"red_block": "table", "pink_block": "slider_left"}
    _, scene = chains.start(both)
    assert abs(scene[6] - scene[12]) > 0.1  # red and blue lie apart


def test_they_are_kept_and_a_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    drawn = chains.chains(3)
    monkeypatch.setattr(chains, "draw", lambda count: pytest.fail("drawn again"))
    assert chains.chains(3) == drawn
    (file,) = (tmp_path / "latentplan").iterdir()
    for damage in ("[[", "[]", file.read_text().replace("open", "ajar"), "[[1, 2], 3, 4]"):
        file.write_text(damage)
        with pytest.raises(ConfigError, match="delete it"):
            chains.chains(3)
