"""The checks of objectives find what is broken: one that keeps all, and one that breaks each."""

import pytest
import torch

from latentplan.conformance.suite import Broken, Subject, checks, run
from latentplan.objectives.goal import GoalDistance


class Kept(GoalDistance):
    """The distance to a goal, which keeps everything."""


def costing(change, base=Kept):
    """Return a class whose cost is changed by `change(cost, latents, actions)`."""

    class Changed(base):
        def __call__(self, goal, context, model):
            distance = super().__call__(goal, context, model)
            return lambda latents, actions: change(distance(latents, actions), latents, actions)

    return Changed


class Stale(Kept):
    def _latent(self, goal, model):
        self._goal = goal if self._goal is None else self._goal
        return super()._latent(self._goal, model)


class Lenient(Kept):
    def check(self, goal, model):
        pass


class Strict(Kept):
    def check(self, goal, model):
        super().check(goal, model)
        super().check(type(goal)(), model)


class Broadcasting(Kept):
    def __call__(self, goal, context, model):
        return lambda latents, actions: latents.square().sum(-1).amin(-1)


def overwrite(cost, latents, actions):
    actions.mul_(0.5)
    return cost


BREAKS = [
    ("cost", costing(lambda cost, z, a: cost[:, 0]), "cost has shape (1,), need (1, 5)"),
    ("cost", costing(lambda cost, z, a: cost.int()), "cost is torch.int32"),
    ("cost", costing(lambda cost, z, a: cost.log() * torch.inf), "cost is not finite"),
    ("latents", costing(lambda cost, z, a: 0 * cost + 2), "all candidates cost 2"),
    ("rows", costing(lambda cost, z, a: cost - cost.mean()), "some candidates, alone and among"),
    ("twice", costing(lambda cost, z, a: cost + torch.rand(())), "between two calls"),
    ("twice", costing(overwrite), "a call changes latents or actions"),
    ("goal", Stale, "a second goal, and the same goal with a new objective"),
    ("checked_goals", Lenient, "without any part: check accepts it, its use raises ConfigError"),
    ("checked_goals", Strict, "check raises ConfigError, its use accepts it"),
    ("wrong_shapes", Broadcasting, "a latent of too few numbers is accepted, need ShapeError"),
]


def of(made):
    return Subject("objective", "toy", made, made.Config())


def test_an_objective_that_keeps_all_passes():
    assert [r for r in run(of(Kept)) if r.status != "ok"] == []


@pytest.mark.parametrize("check, made, found", BREAKS, ids=[f"{b[0]}-{b[2]}" for b in BREAKS])
def test_what_is_broken_is_found(check, made, found):
    with pytest.raises(Broken) as raised:
        checks("objective")[check](of(made))
    assert found in str(raised.value)


def test_each_check_can_fail():
    assert {check for check, _, _ in BREAKS} == checks("objective").keys()
