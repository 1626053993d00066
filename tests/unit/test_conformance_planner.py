"""The checks of planners find what is broken: one that keeps all, and one that breaks each."""

from dataclasses import replace

import pytest
import torch

from latentplan.conformance.suite import Broken, Subject, checks, run
from latentplan.planning.shooting import Shooting
from latentplan.planning.spaces import Box


class Kept(Shooting):
    """Random shooting, which keeps everything."""


class Unbounded(Kept):
    def plan(self, context, dynamics, **parts):
        plan = super().plan(context, dynamics, **parts)
        return replace(plan, actions=3 * plan.actions)


class Optimist(Kept):
    def plan(self, context, dynamics, **parts):
        plan = super().plan(context, dynamics, **parts)
        return replace(plan, cost=0.5 * plan.cost)


class Flat(Kept):
    def plan(self, context, dynamics, **parts):
        plan = super().plan(context, dynamics, **parts)
        return replace(plan, actions=plan.actions[:, 0])


class Boxed(Kept):
    """Neither limits of the change nor choices."""

    def plan(self, context, dynamics, *, space, **parts):
        box = Box(space.low, space.high, problems=len(context.latents))
        return super().plan(context, dynamics, space=box, **parts)


class Unseeded(Kept):
    def plan(self, context, dynamics, *, generator, **parts):
        generator.manual_seed(int(torch.randint(2**31, ())))
        return super().plan(context, dynamics, generator=generator, **parts)


class Averaging(Kept):
    def plan(self, context, dynamics, **parts):
        plan = super().plan(context, dynamics, **parts)
        return replace(plan, actions=plan.actions.mean(0, keepdim=True).expand_as(plan.actions))


class Tiring(Kept):
    def plan(self, context, dynamics, **parts):
        plan = super().plan(context, dynamics, **parts)
        return replace(plan, cost=plan.cost + self.config.iterations)


class Forgetful(Kept):
    def plan(self, context, dynamics, *, warm_start=None, **parts):
        return super().plan(context, dynamics, **parts)


class Lawless(Kept):
    def plan(self, context, dynamics, *, constraints=(), **parts):
        return super().plan(context, dynamics, **parts)


class Weighing(Kept):
    """Takes a cheap plan though it violates the constraint."""

    def plan(self, context, dynamics, *, constraints=(), **parts):
        plan = super().plan(context, dynamics, **parts)
        if not constraints:
            return plan
        latents = dynamics.rollout(dynamics.prepare(context), plan.actions[:, None])
        return replace(plan, violation=constraints[0](latents, plan.actions)[:, 0].relu())


class Understating(Kept):
    def plan(self, context, dynamics, **parts):
        plan = super().plan(context, dynamics, **parts)
        return plan if plan.violation is None else replace(plan, violation=plan.violation - 1)


class Normalising(Kept):
    """Divides by how much the costs differ."""

    def plan(self, context, dynamics, **parts):
        plan = super().plan(context, dynamics, **parts)
        none = 0 / (plan.cost - plan.cost.mean())
        return replace(plan, actions=plan.actions + none[:, None, None])


class Gullible(Kept):
    def plan(self, context, dynamics, *, objective, **parts):
        def finite(latents, actions):
            return objective(latents, actions).nan_to_num(-9, -9, -9)

        return super().plan(context, dynamics, objective=finite, **parts)


class Resigned(Kept):
    """Plans on if one problem has no finite cost."""

    def plan(self, context, dynamics, *, objective, **parts):
        def finite(latents, actions):
            return objective(latents, actions).nan_to_num(9e9, 9e9, 9e9)

        return super().plan(context, dynamics, objective=finite, **parts)


class Lax(Kept):
    def plan(self, context, dynamics, *, warm_start=None, **parts):
        wanted = (len(context.latents), self.horizon)
        if warm_start is not None and (warm_start.ndim < 3 or warm_start.shape[:2] != wanted):
            warm_start = None
        return super().plan(context, dynamics, warm_start=warm_start, **parts)


BREAKS = [
    ("bounds", Unbounded, "actions from -2"),
    ("bounds", Flat, "actions have shape (3, 2), need (3, 1, 2)"),
    ("cost", Optimist, "the cost of the plan and the objective of its actions"),
    ("rates", Boxed, "exceeds 0.25"),
    ("choices", Boxed, "is none of the 1 points"),
    ("seeds", Unseeded, "actions differ the second time"),
    ("rows", Averaging, "actions of problem 0, alone and in the batch"),
    ("iterations", Tiring, "the cost rises by 1 from 1 iterations to 2"),
    ("warm_start", Forgetful, "more"),
    ("constraints", Lawless, "violation is None though there is a constraint"),
    ("constraints", Weighing, "that of zero actions is 0"),
    ("constraints", Understating, "violation is [-1.0"),
    ("constant_cost", Normalising, "with constant cost 0.0, actions are not finite"),
    ("broken_cost", Gullible, "an action of cost nan is chosen"),
    ("broken_cost", Resigned, "a problem where every cost is nan is accepted, need PlanningError"),
    ("wrong_shapes", Lax, "a warm start (2, 2, 2) is accepted, need ShapeError"),
]


def of(made):
    return Subject("planner", "toy", made, made.Config())


def test_a_planner_that_keeps_all_passes():
    assert [r for r in run(of(Kept)) if r.status != "ok"] == []


@pytest.mark.parametrize(
    "check, made, found", BREAKS, ids=[f"{b[0]}-{b[1].__name__}" for b in BREAKS]
)
def test_what_is_broken_is_found(check, made, found):
    with pytest.raises(Broken) as raised:
        checks("planner")[check](of(made))
    assert found in str(raised.value)


def test_each_check_can_fail():
    assert {check for check, _, _ in BREAKS} == checks("planner").keys()
