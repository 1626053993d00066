"""The checks of policies find what is broken: one that keeps all, and one that breaks each."""

import numpy as np
import pytest

from latentplan.conformance.suite import Broken, Subject, checks, run
from latentplan.exploration.box import Box
from latentplan.exploration.oracle import NoisyOracle
from latentplan.types import Goal


class Kept(NoisyOracle):
    """The noisy expert, which keeps everything."""


class Double(Kept):
    def act(self, observation):
        return super().act(observation).astype(np.float64)


class Long(Kept):
    def act(self, observation):
        return np.append(super().act(observation), np.float32(0))


class Loud(Kept):
    def act(self, observation):
        return super().act(observation) + np.float32(0.5)


class Undefined(Kept):
    def act(self, observation):
        return super().act(observation) * np.float32("nan")


class Unseeded(Kept):
    def reset(self, goal=None, *, seed=None):
        super().reset(goal)


class Growing(Kept):
    """Remembers how many episodes there were."""

    episodes = 0

    def reset(self, goal=None, *, seed=None):
        self.episodes += 1
        super().reset(goal, seed=seed + self.episodes)


class Private(Kept):
    """Depends on when it was made."""

    made = 0

    def __init__(self, spec, config=None):
        super().__init__(spec, config)
        Private.made += 1
        self.number = Private.made

    def reset(self, goal=None, *, seed=None):
        super().reset(goal, seed=seed + self.number)


class Constant(Box):
    def reset(self, goal=None, *, seed=None):
        super().reset(goal, seed=0)


class Whole(Kept):
    def reset(self, goal=None, *, seed=None):
        super().reset(goal, seed=int(seed))


class Sequential(Kept):
    """Takes no account of a Generator."""

    def reset(self, goal=None, *, seed=None):
        super().reset(goal, seed=None if isinstance(seed, np.random.Generator) else seed)


class Partial(Kept):
    @property
    def goal_chosen(self):
        goal = super().goal_chosen
        return goal and Goal(observation={"state": goal.observation["state"]})


class Headstrong(Kept):
    def reset(self, goal=None, *, seed=None):
        super().reset(seed=seed)


BREAKS = [
    ("bounds", Double, "an action is ndarray float64"),
    ("bounds", Long, "the shape of an action is (5,)"),
    ("bounds", Loud, "out of bounds"),
    ("bounds", Undefined, "found [nan, nan, nan, nan], out of bounds"),
    ("seeds", Unseeded, "actions differ in a second episode of seed 1"),
    ("seeds", Growing, "actions differ in a second episode of seed 1"),
    ("seeds", Private, "actions of a new policy with seed 1 differ"),
    ("kinds_of_seed", Sequential, "actions differ in a second episode of default_rng(5)"),
    ("goal_chosen", Partial, "keys are ['state'], of the env ['rgb', 'state']"),
    ("goal_given", Headstrong, "goal_chosen is not None"),
]


def of(made):
    return Subject("policy", "toy", made, made.Config())


def test_a_policy_that_keeps_all_passes():
    assert [r for r in run(of(Kept)) if r.status != "ok"] == []


@pytest.mark.parametrize("check, made, found", BREAKS, ids=[b[1].__name__ for b in BREAKS])
def test_what_is_broken_is_found(check, made, found):
    with pytest.raises(Broken) as raised:
        checks("policy")[check](of(made))
    assert found in str(raised.value)


def test_each_check_can_fail():
    assert {check for check, _, _ in BREAKS} == checks("policy").keys()


def test_a_random_policy_that_is_always_the_same_is_found():
    checks("policy")["seeds"](of(Constant))
    with pytest.raises(Broken, match="the same actions of seeds 1 and 2"):
        checks("policy")["seeds"](of(Constant), random=True)


def test_a_seed_that_is_refused_is_a_failure():
    (failed,) = [r for r in run(of(Whole)) if r.status == "FAILED"]
    assert "TypeError" in failed.found and "SeedSequence" in failed.found
