from __future__ import annotations

import itertools
from time import sleep

import numpy as np
import pytest
from sighted import Sighted
from toy import ToyEnv

from latentplan.errors import ConfigError, ShapeError, UnstablePhysics
from latentplan.evaluation.goals import Goals, image_key
from latentplan.evaluation.metrics import summarise
from latentplan.exploration.collect import collect
from latentplan.exploration.recorder import CollectConfig, Recipe
from latentplan.registry import get
from latentplan.types import Step

ToyConfig = ToyEnv.Config


def evaluate(agent=None, env=None, *, episodes=3, seed=0, **settings):
    evaluation = Goals(Goals.Config(**settings))
    return list(
        evaluation.trials(agent or Sighted(), env or ToyEnv(), episodes=episodes, seed=seed)
    )


def distances(trials):
    return [{name: a.distance.tolist() for name, a in t.attempts.items()} for t in trials]


def test_a_good_agent_lies_between_random_and_oracle():
    trials = evaluate(episodes=8)
    found = summarise(trials, seed=0)
    assert found.oracle_final <= found.final < 0.03 < found.random_final
    assert found.progress > 0.85
    assert found.noop_final == found.start
    for trial in trials:
        assert {a.distance[0] for a in trial.attempts.values()} == {
            trial.attempts["planner"].distance[0]
        }
        assert all(len(a.distance) == 21 for a in trial.attempts.values())


def test_the_agent_never_sees_privileged_keys():
    agent = Sighted()
    evaluate(agent)
    assert agent.seen
    assert all(keys == {"rgb"} for keys in agent.seen)


def test_the_same_seed_gives_the_same_trials_and_another_seed_others():
    assert distances(evaluate(seed=5)) == distances(evaluate(seed=5))
    assert distances(evaluate(seed=5)) != distances(evaluate(seed=6))


def test_the_first_trials_do_not_depend_on_how_many_follow():
    assert distances(evaluate(episodes=4))[:2] == distances(evaluate(episodes=2))


def test_trying_candidates_out_leaves_the_episode_as_it_was():
    probed, plain = evaluate(states=40), evaluate(states=0)
    assert distances(probed) == distances(plain)
    assert sum(len(t.candidates) for t in probed) == 40
    assert not any(t.candidates for t in plain)


def test_an_exact_model_ranks_candidates_as_the_env_does():
    found = summarise(evaluate(episodes=4, states=20), seed=0)
    assert found.spearman_candidates > 0.95
    assert found.spearman > 0.95


def test_a_model_that_is_wrong_about_everything_ranks_them_backwards():
    class Backwards(Sighted):
        def evaluate(self, observation, actions):
            return -super().evaluate(observation, actions)

    found = summarise(evaluate(Backwards(), episodes=4, states=20), seed=0)
    assert found.spearman_candidates < -0.95
    assert found.progress < 0.2


def test_no_start_or_goal_was_collected():
    recipe = Recipe(
        ToyEnv,
        get("policy", "random"),
        env_config=ToyConfig(),
        policy_config=get("policy", "random").Config(),
        config=CollectConfig(length=1),
        seed=0,
    )

    class Seeds(list):
        def append(self, episode):
            super().append(episode.seed)

    collected = Seeds()
    collect(collected, recipe, episodes=60, workers=0)
    held_out = [s for t in evaluate(episodes=20, length=1) for s in (t.start_seed, t.goal_seed)]
    assert len(set(held_out)) == 40
    assert len(set(collected)) == 60
    assert not set(held_out) & set(collected)


def test_a_trial_that_diverges_begins_again_for_every_policy_and_is_counted():
    trials = evaluate(env=ToyEnv(ToyConfig(unstable=0.03)), episodes=6)
    dropped = summarise(trials, seed=0).dropped
    assert dropped > 0
    assert len(trials) == 6
    for trial in trials:
        assert len({a.distance[0] for a in trial.attempts.values()}) == 1


def test_an_env_that_always_diverges_is_an_error():
    with pytest.raises(UnstablePhysics, match="trial 0 diverged 20 times in a row"):
        evaluate(env=ToyEnv(ToyConfig(unstable=1.0)))


def test_act_is_timed():
    class Slow(Sighted):
        def act(self, observation):
            sleep(0.004)
            return super().act(observation)

    trial = evaluate(Slow(), episodes=1)[0]
    assert (trial.attempts["planner"].act_ms >= 4).all()
    assert np.median(trial.attempts["noop"].act_ms) < 4  # a busy machine delays some of them


class Ending(ToyEnv):
    """Ends by itself after three actions."""

    def reset(self, **options):
        self.taken = itertools.count(1)
        return super().reset(**options)

    def step(self, action):
        step = super().step(action)
        return step._replace(terminated=next(self.taken) == 3)


def test_an_episode_that_the_env_ends_stays_short():
    trial = evaluate(env=Ending(), episodes=1, states=0)[0]
    assert all(len(a.distance) == 4 for a in trial.attempts.values())
    assert len(trial.attempts["planner"].images) == 4


def test_success_by_threshold_is_judged_at_the_end():
    env = ToyEnv()
    env.success_threshold = 0.03
    for trial in evaluate(env=env, episodes=4):
        for attempt in trial.attempts.values():
            assert attempt.success == (attempt.distance[-1] <= 0.03)


def test_success_is_that_of_the_env():
    class Telling(ToyEnv):
        def step(self, action):
            step = super().step(action)
            return Step(*step[:4], {"success": bool(np.any(action))})

    env = Telling()
    trial = evaluate(env=env, episodes=1)[0]
    solved = trial.attempts["planner"].solved
    assert trial.attempts["planner"].success is True
    assert trial.threshold is None and not solved[0] and solved[1:].all()
    env.success_threshold = 9.0  # of the start, about which a step says nothing
    trial = evaluate(env=env, episodes=1)[0]
    assert trial.threshold == 9.0 and trial.attempts["noop"].solved[0]


def test_the_noop_policy_moves_nothing_even_with_an_object_in_the_middle():
    class Middle(ToyEnv):
        def reset(self, **options):
            super().reset(**options)
            self._points[0] = 0, 0
            return self._observe(), {}

    for trial in evaluate(env=Middle(), episodes=2):
        assert np.ptp(trial.attempts["noop"].distance) == 0


def test_costs_of_the_wrong_shape_are_an_error():
    class Wrong(Sighted):
        def act(self, observation):
            return np.zeros(4, np.float32)

        def evaluate(self, observation, actions):
            return np.zeros((len(actions), 2))

    with pytest.raises(ShapeError, match=r"evaluate: found shape \(1, 2\), need \(K=1,\)"):
        evaluate(Wrong())


@pytest.mark.parametrize(
    "settings",
    [{"length": 0}, {"states": -1}, {"candidates_per_state": 2}, {"episodes": 0}, {"seed": -1}],
)
def test_numbers_out_of_range_are_named(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        evaluate(**settings)


def test_the_image_to_show_is_never_privileged():
    assert image_key(ToyEnv().data_spec) == "rgb"


class Asking(ToyEnv):
    """Says what it asks for."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed, options=options)[0], {"task": "push", "text": "push it"}


class Listening(Sighted):
    """Remembers its instruction."""

    def reset(self, goal=None, *, seed=None):
        self.instruction = goal.text
        return super().reset(goal, seed=seed)


@pytest.mark.parametrize(
    ("settings", "instruction"),
    [
        ({}, "push"),
        ({"instruction": "text"}, "push it"),
        ({"instruction": "text", "goal_text": "shove it"}, "shove it"),
        ({"goal_text": "shove it"}, "shove it"),
    ],
)
def test_the_agent_gets_the_task_by_name_or_in_words(settings, instruction):
    agent = Listening()
    evaluate(agent, Asking(), episodes=1, length=1, states=0, **settings)
    assert agent.instruction == instruction


def test_the_instruction_is_one_of_two():
    with pytest.raises(ConfigError, match="Goals.instruction: 'words' is not 'task' or 'text'"):
        Goals.Config(instruction="words")
