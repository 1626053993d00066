"""The checks of evaluations find what is broken: one that keeps all, and one that breaks each."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from latentplan.conformance.suite import Broken, NotApplicable, Subject, checks, run
from latentplan.errors import ConfigError
from latentplan.evaluation.baselines import baselines
from latentplan.evaluation.table import Table

calls, runs = itertools.count(), itertools.count()


@dataclass(frozen=True)
class Metrics:
    episodes: int
    seed: int
    rewards: dict  # by policy

    def to_json(self):
        values = {"episodes": self.episodes, "seed": self.seed}
        return values | {
            "reward" if name == "policy" else f"{name}_reward": value
            for name, value in self.rewards.items()
        }

    def table(self):
        rows = tuple((name, f"{value:.2f}") for name, value in self.rewards.items())
        return Table(("policy", "reward"), rows)


class Kept:
    """The reward of one action, of a policy and of random actions."""

    @dataclass(frozen=True)
    class Config:
        length: int = 2  # actions of a trial

    metrics_of = Metrics

    def __init__(self, config=None):
        self.config = config or self.Config()

    def count(self, episodes):
        return 3 if episodes is None else episodes

    def trials(self, policy, env, *, episodes=None, seed=0):
        for index in range(self.count(episodes)):
            rewards = {}
            for name, each in {"policy": policy, "random": baselines(env)["random"]}.items():
                observation, _ = env.reset(seed=seed + index)
                each.reset(seed=seed + index)
                steps = [env.step(each.act(observation)) for _ in range(self.config.length)]
                rewards[name] = float(sum(step.reward for step in steps))
            yield rewards

    def figures(self, trial):
        return {"reward": f"{trial['policy']:.2f}"}

    def metrics(self, trials, *, seed):
        means = {name: float(np.mean([t[name] for t in trials])) for name in trials[0]}
        return self.metrics_of(len(trials), seed, means)

    def records(self, trials):
        return [{**trial, "act_ms": float(next(calls))} for trial in trials]


def with_metrics(**methods):
    """Return an evaluation with other metrics."""
    return type("Changed", (Kept,), {"metrics_of": type("Other", (Metrics,), methods)})


def having(**methods):
    return type("Changed", (Kept,), methods)


class Bare(Kept):
    @dataclass(frozen=True)
    class Config:
        length: int = 2


class OneMore(Kept):
    def count(self, episodes):
        return 1 + super().count(episodes)

    def trials(self, policy, env, *, episodes=None, seed=0):
        yield from super().trials(policy, env, episodes=episodes - 1, seed=seed)
        yield from list(super().trials(policy, env, episodes=0, seed=seed))[:-1]


class Drifting(Kept):
    def records(self, trials):
        return [{"reward": float(next(calls))} for _ in trials]


class Stopping(Kept):
    def trials(self, policy, env, *, episodes=None, seed=0):
        yield from itertools.islice(super().trials(policy, env, seed=seed), 1 + next(runs) % 2)


class Elsewhere(Kept):
    def trials(self, policy, env, *, episodes=None, seed=0):
        raise ConfigError("evaluation elsewhere: needs the env elsewhere")
        yield


def alone(self):
    return {"episodes": self.episodes, "seed": self.seed, "reward": 0.0}


def unnamed(self):
    return Table(("policy", "reward"), (("policy", "1"),))


BREAKS = [
    ("config", Bare, "fields without a comment: length"),
    ("count", OneMore, "counts 3, yields"),
    ("count", having(count=lambda self, n: 0 if n is None else n), "counts 0 by default"),
    ("seed", Drifting, "records of trials [0, 1] differ the second time"),
    ("seed", Stopping, "trials, then"),
    ("records", having(records=lambda self, trials: [{}]), "1 records of 2 trials"),
    ("records", having(records=lambda self, t: [{"a": (1,)} for _ in t]), "is not plain JSON"),
    ("records", having(figures=lambda self, trial: {"reward": 1.0}), "figures of a trial are"),
    ("records", having(figures=lambda self, trial: {}), "figures of a trial are {}"),
    ("metrics", with_metrics(to_json=lambda self: {"seed": 1}), "episodes is None, need 2"),
    ("metrics", with_metrics(to_json=lambda self: {"episodes": 2}), "seed is None, need 1"),
    (
        "metrics",
        with_metrics(to_json=lambda self: {"episodes": 2, "seed": 1, "x": float("nan")}),
        "to_json() is not strict JSON",
    ),
    ("table", with_metrics(table=lambda self: Table(("a",), ())), "it has no rows"),
    ("table", with_metrics(table=lambda self: Table(("a",), (("1", "2"),))), "2 cells for"),
    ("table", with_metrics(table=lambda self: Table(("a",), ((1,),))), "a cell is not text"),
    ("controls", with_metrics(to_json=alone), "no key begins with random, noop, oracle"),
    ("controls", with_metrics(table=unnamed), "without random"),
]


def of(made):
    return Subject("evaluation", "toy", made, made.Config())


def test_an_evaluation_that_keeps_all_passes():
    assert [r for r in run(of(Kept)) if r.status != "ok"] == []


@pytest.mark.parametrize("check, made, found", BREAKS, ids=[f"{b[0]}-{b[2]}" for b in BREAKS])
def test_what_is_broken_is_found(check, made, found):
    with pytest.raises(Broken) as raised:
        checks("evaluation")[check](of(made))
    assert found in str(raised.value)


def test_one_that_needs_another_env_is_not_judged_without():
    with pytest.raises(NotApplicable, match="name one: evaluation elsewhere: needs the env"):
        checks("evaluation")["seed"](of(Elsewhere))


def test_each_check_can_fail():
    assert {check for check, _, _ in BREAKS} == checks("evaluation").keys()
