"""What every planner gives a model: one `prepare` a solve, and the past actions as they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_model import ToyModel, toy_spec
from toy_problem import build, every_planner, objective, problem, seeded

from latentplan.errors import PlanningError, ShapeError
from latentplan.objectives.goal import GoalDistance
from latentplan.planning.graph import Captured
from latentplan.planning.mpc import MPC
from latentplan.planning.spaces import Box
from latentplan.types import Context

QUADRATIC = GoalDistance(GoalDistance.Config(power=2, reduce="mean"))


class Recurrent(ToyModel):
    """Carries a sum of its past actions, which acts on like a wind; records what it is given."""

    def __init__(self, context: int = 3) -> None:
        super().__init__(toy_spec(), ToyModel.Config(context=context))
        self.prepared: list[Context] = []
        self.rollouts = 0

    def prepare(self, context):
        self.prepared.append(context)
        wind = context.actions.sum(1) @ self.B.T.to(context.actions)  # B D
        return super().prepare(context), wind

    def rollout(self, prepared, actions):
        self.rollouts += 1
        latent, wind = prepared
        return super().rollout(latent, actions) + wind[:, None, None].to(latent)


@every_planner
@pytest.mark.parametrize("captured", [False, True])
def test_a_solve_prepares_once(name, captured):
    model = Recurrent()
    planner = build(name, candidates=32, horizon=3, iterations=5)
    planner = Captured(planner) if captured else planner
    limit = torch.ones(2)
    for solve in (1, 2, 3):
        latents, past = torch.randn(2, 3, 4), torch.rand(2, 2, 2)
        before = model.rollouts
        plan = planner.plan(
            Context(latents, past),
            model,
            objective=objective(torch.zeros(2, 4)),
            space=Box(-limit, limit, problems=2),
            generator=seeded(),
        )
        assert len(model.prepared) == solve
        assert torch.equal(model.prepared[-1].actions, past)  # also by a captured solve
        assert model.rollouts > before
        with torch.no_grad():
            again = ToyModel.rollout(model, latents[:, -1], plan.actions[:, None])
            again += (past.sum(1) @ model.B.T)[:, None, None]
        torch.testing.assert_close(
            plan.cost, objective(torch.zeros(2, 4))(again, plan.actions[:, None])[:, 0]
        )


@every_planner
def test_a_context_that_does_not_fit_is_one_clear_error(name):
    _, context, goal, (low, high) = problem(2)
    model = Recurrent().double()
    latents = context.expand(-1, 3, -1)

    def plan(past):
        build(name).plan(
            Context(latents, past),
            model,
            objective=objective(goal),
            space=Box(low, high, problems=2),
            generator=seeded(),
        )

    plan(torch.zeros(2, 2, 2))
    for shape in [(2, 3, 2), (1, 2, 2), (2, 2, 3), (2, 2)]:
        with pytest.raises(ShapeError, match="Planner.context.actions: found shape"):
            plan(torch.zeros(shape))

    def broken(context):
        raise RuntimeError("no cache")

    model.prepare = broken
    with pytest.raises(PlanningError, match="Recurrent.prepare raised RuntimeError: no cache"):
        plan(torch.zeros(2, 2, 2))


def state(number: float) -> dict[str, np.ndarray]:
    return {"state": np.full(4, number, np.float32)}


def controller(**config) -> MPC:
    mpc = MPC(
        Recurrent(),
        build("cem", candidates=32, horizon=3),
        objective=QUADRATIC,
        config=MPC.Config(**config),
    )
    mpc.goal(state(0.0))
    return mpc


def past(mpc: MPC) -> np.ndarray:
    """Return the actions (2, A) that the model was given last."""
    return mpc.model.prepared[-1].actions[0].numpy()


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_model_that_needs_the_past_actions_gets_those_that_were_returned(chunk):
    mpc = controller(chunk=chunk)
    sent = [np.zeros(2, np.float32)] * 2  # before the first observation nothing moved
    for step in range(9):
        count = len(mpc.model.prepared)
        sent.append(mpc.act(state(step / 10)))
        if step % chunk == 0:
            assert len(mpc.model.prepared) == count + 1
            np.testing.assert_array_equal(past(mpc), sent[-3:-1])
    mpc.reset()
    mpc.act(state(1.0))
    np.testing.assert_array_equal(past(mpc), np.zeros((2, 2)))


def test_a_model_receives_the_executed_action_if_it_differs():
    mpc = controller()
    first = mpc.act(state(0.1))
    filtered = first / 2
    mpc.sent(filtered)
    second = mpc.act(state(0.2))
    np.testing.assert_array_equal(past(mpc), [np.zeros(2), filtered])
    mpc.act(state(0.3))
    np.testing.assert_array_equal(past(mpc), [filtered, second])
    with pytest.raises(ShapeError, match="MPC.sent.action: found shape"):
        mpc.sent(np.zeros(3))


def test_a_rate_limit_holds_from_what_was_really_sent():
    mpc = controller(action_rate_limit=(0.1, 0.1))
    mpc.act(state(1.0))
    mpc.sent(np.float32([0.5, -0.5]))
    after = mpc.act(state(1.0)).astype(np.float64)
    assert (np.abs(after - [0.5, -0.5]) <= np.float32(0.1)).all()
    mpc.sent(np.float32([7.0, -7.0]))  # a driver that reports beyond the bounds
    assert (np.abs(mpc.act(state(1.0))) >= 0.9).all()


def test_a_model_gets_the_id_of_the_task():
    for tasks, text, wanted in (
        ((), "open", None),
        (("close", "open"), "open", [2]),
        (("close", "open"), "fly", [0]),
    ):
        model = Recurrent()
        model.spec = replace(model.spec, tasks=tasks)
        mpc = MPC(model, build("cem", candidates=16), objective=QUADRATIC)
        mpc.goal(state(0.0), text=text)
        mpc.act(state(0.1))
        found = model.prepared[-1].task
        assert (found if found is None else found.tolist()) == wanted


def test_evaluate_after_act_does_not_count_the_observation_twice():
    mpc = controller()
    for number in (0.1, 0.2, 0.3):
        mpc.act(state(number))
    planned = mpc.plan
    cost = mpc.evaluate(state(0.3), planned.actions.numpy())
    np.testing.assert_allclose(cost, planned.cost.numpy(), rtol=1e-5)
    acted, evaluated = mpc.model.prepared[-2:]
    assert torch.equal(acted.latents, evaluated.latents)
    assert torch.equal(acted.actions, evaluated.actions)
    mpc.evaluate(state(0.4), planned.actions.numpy())  # the next observation
    there = mpc.model.prepared[-1]
    assert there.latents[0, :, 0].tolist() == pytest.approx([0.2, 0.3, 0.4])
    np.testing.assert_array_equal(there.actions[0, -1], planned.actions[0, 0])
