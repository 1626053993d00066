from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import ToyEnv
from toy_model import ToyModel, toy_spec

from latentplan.errors import ConfigError, PlanningError, ShapeError
from latentplan.objectives.goal import GoalDistance
from latentplan.planning.cem import CEM
from latentplan.planning.mpc import MPC
from latentplan.planning.solver import shift

QUADRATIC = GoalDistance(GoalDistance.Config(power=2, reduce="mean"))


def controller(*, context=1, chunk=1, horizon=3, warm_start=True, seed=0, objective=QUADRATIC):
    model = ToyModel(toy_spec(), ToyModel.Config(context=context))
    planner = CEM(CEM.Config(candidates=64, elites=8, horizon=horizon))
    config = MPC.Config(chunk=chunk, warm_start=warm_start)
    return MPC(model, planner, objective=objective, seed=seed, config=config)


def state(*values: float) -> dict[str, np.ndarray]:
    return {"state": np.array(values, np.float32)}


HERE, THERE = state(0.5, -0.5, 0.2, 0.0), state(0.0, 0.3, 0.0, 0.1)


def drive(mpc: MPC, steps: int = 8) -> list[np.ndarray]:
    latent, actions = torch.from_numpy(HERE["state"]), []
    for _ in range(steps):
        actions.append(mpc.act({"state": latent.numpy()}))
        with torch.no_grad():
            latent = mpc.model.A @ latent + mpc.model.B @ torch.from_numpy(actions[-1])
    return actions


def test_act_gives_finite_actions_inside_the_bounds_that_lead_to_the_goal():
    model = ToyModel(toy_spec(states=2), ToyModel.Config(coupling=0))  # any goal can be reached
    mpc = MPC(model, CEM(CEM.Config(horizon=2)), objective=QUADRATIC)
    goal, latent = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])
    mpc.goal({"state": goal.numpy()})
    for _ in range(30):
        action = mpc.act({"state": latent.numpy()})
        assert action.shape == (2,) and action.dtype == np.float32
        assert np.isfinite(action).all() and (np.abs(action) <= 1).all()
        with torch.no_grad():
            latent = model.A @ latent + model.B @ torch.from_numpy(action)
    assert (latent - goal).norm() < 0.05


def test_same_seed_same_actions_and_reset_with_a_seed_starts_over():
    one, two, other = controller(seed=3), controller(seed=3), controller(seed=4)
    for mpc in (one, two, other):
        mpc.goal(THERE)
    first = drive(one)
    assert np.array_equal(first, drive(two))
    assert not np.array_equal(first, drive(other))
    assert not np.array_equal(first, drive(one))
    one.reset(seed=3)
    assert np.array_equal(first, drive(one))


def test_an_action_that_the_caller_changes_does_not_change_the_plan():
    mpc = controller()
    mpc.goal(THERE)
    mpc.act(HERE)[:] = np.nan
    assert mpc.plan.actions.isfinite().all()


def test_the_warm_start_is_what_is_left_of_the_last_plan():
    seen = []

    class Spy(CEM):
        def plan(self, context, dynamics, **rest):
            seen.append((rest["warm_start"], super().plan(context, dynamics, **rest)))
            return seen[-1][1]

    for warm_start, chunk in [(True, 1), (True, 2), (False, 1)]:
        seen.clear()
        mpc = MPC(
            ToyModel(toy_spec()),
            Spy(CEM.Config(candidates=32, horizon=3)),
            objective=QUADRATIC,
            config=MPC.Config(chunk=chunk, warm_start=warm_start),
        )
        mpc.goal(THERE)
        drive(mpc, 4)
        assert len(seen) == 4 // chunk and seen[0][0] is None
        for (_, last), (start, _) in zip(seen, seen[1:], strict=False):
            if warm_start:
                assert torch.equal(start[:, 0], shift(last.actions, chunk))
                assert torch.equal(start[:, 1:], shift(last.elites[:, :3], chunk))
            else:
                assert start is None
    mpc = controller(horizon=1)  # nothing is left of a plan of one action
    mpc.goal(THERE)
    drive(mpc, 3)


def test_shift_drops_what_was_sent_and_repeats_the_last():
    actions = torch.arange(3.0).reshape(1, 3, 1)
    assert shift(actions, 0).flatten().tolist() == [0, 1, 2]
    assert shift(actions, 1).flatten().tolist() == [1, 2, 2]
    assert shift(actions, 2).flatten().tolist() == [2, 2, 2]
    assert shift(actions, 9).flatten().tolist() == [2, 2, 2]


def test_a_chunk_is_sent_before_planning_again():
    mpc = controller(chunk=3)
    mpc.goal(THERE)
    mpc.act(HERE)
    plan = mpc.plan
    for step in (1, 2):
        assert np.array_equal(mpc.act(HERE), plan.actions[0, step].numpy())
    mpc.act(HERE)
    assert mpc.plan is not plan


def test_a_new_goal_ends_the_old_plan():
    mpc = controller(chunk=3)
    mpc.goal(THERE)
    mpc.act(HERE)
    plan = mpc.plan
    mpc.goal(HERE)
    mpc.act(HERE)
    assert mpc.plan is not plan


def test_a_chunk_longer_than_the_horizon_is_refused():
    with pytest.raises(ConfigError, match=r"MPC.chunk: 4 is not within \[1, horizon=3\]"):
        controller(chunk=4)


def test_the_context_is_the_last_latents_oldest_first():
    seen = []

    class Spy(CEM):
        def plan(self, context, dynamics, **rest):
            seen.append(context.latents[0, :, 0].tolist())
            return super().plan(context, dynamics, **rest)

    model = ToyModel(toy_spec(states=1), ToyModel.Config(context=3))
    mpc = MPC(model, Spy(), objective=QUADRATIC)
    mpc.goal(state(0.0))
    for value in (1.0, 2.0, 3.0, 4.0):
        mpc.act(state(value))
    mpc.evaluate(state(9.0), np.zeros((1, 2)))  # remembers nothing
    mpc.act(state(5.0))
    mpc.reset()
    mpc.act(state(6.0))
    assert seen == [[1, 1, 1], [1, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [6, 6, 6]]


def test_evaluate_is_the_cost_of_what_the_model_predicts():
    mpc = controller()
    mpc.goal(THERE)
    mpc.act(HERE)
    planned = mpc.evaluate(HERE, mpc.plan.actions.numpy())
    np.testing.assert_allclose(planned, mpc.plan.cost.numpy(), rtol=1e-5)
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 2))
    A, B = mpc.model.A.detach().numpy(), mpc.model.B.detach().numpy()
    ahead = HERE["state"] @ A.T + actions @ B.T
    cost = ((ahead - THERE["state"]) ** 2).sum(1)
    np.testing.assert_allclose(mpc.evaluate(HERE, actions), cost, rtol=1e-5)
    np.testing.assert_allclose(mpc.evaluate(HERE, actions[:, None]), cost, rtol=1e-5)
    for shape in [(5, 3), (5,), (5, 1, 3)]:
        with pytest.raises(ShapeError, match="MPC.evaluate.actions: found shape"):
            mpc.evaluate(HERE, np.zeros(shape))


def test_latency_is_measured():
    mpc = controller()
    assert mpc.latency.count == 0 and np.isnan(mpc.latency.p50_ms)
    mpc.goal(THERE)
    drive(mpc, 5)
    found = mpc.latency
    assert found.count == 5
    assert 0 < found.p50_ms <= found.p90_ms <= found.p99_ms < 10_000


def test_acting_without_a_goal_is_refused():
    mpc = controller()
    for call in (lambda: mpc.act(HERE), lambda: mpc.evaluate(HERE, np.zeros((1, 2)))):
        with pytest.raises(PlanningError, match="no goal is set: call goal"):
            call()


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"rgb": np.zeros(4, np.float32)}, "has no 'state', only rgb"),
        ({}, "has no 'state', only nothing"),
        (np.zeros(4, np.float32), "found ndarray, need a mapping"),
        ({"state": np.zeros(5, np.float32)}, r"\['state'\]: found shape \(5,\), need \(4,\)"),
        ({"state": np.zeros((1, 4), np.float32)}, r"found shape \(1, 4\), need \(4,\)"),
        ({"state": np.zeros(4, np.uint8)}, "found uint8, need float32"),
        ({"state": np.array([0, np.nan, 0, 0], np.float32)}, "1 of 4 numbers are NaN or infinite"),
        ({"state": np.array([0, 1e300, 0, 0])}, "1 of 4 numbers are NaN or infinite"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(observation, message):
    mpc = controller()
    with pytest.raises(ShapeError, match=f"goal.observation.*{message}"):
        mpc.goal(observation)
    mpc.goal(THERE)
    with pytest.raises(ShapeError, match=f"MPC.act.*{message}"):
        mpc.act(observation)
    with pytest.raises(ShapeError, match=f"MPC.evaluate.*{message}"):
        mpc.evaluate(observation, np.zeros((1, 2)))
    assert mpc.latency.count == 0 and mpc.plan is None


def test_an_image_must_be_bytes():
    model = ToyModel(ToyEnv().data_spec, ToyModel.Config(key="rgb"))
    mpc = MPC(model, CEM(), objective=QUADRATIC)
    mpc.goal({"rgb": np.zeros((64, 64, 3), np.uint8)})
    with pytest.raises(ShapeError, match=r"MPC.act\['rgb'\]: found float64, need uint8"):
        mpc.act({"rgb": np.zeros((64, 64, 3))})


def test_lists_other_floats_other_keys_and_reversed_images_are_accepted():
    mpc = controller()
    mpc.goal({"state": [0.0, 0.3, 0.0, 0.1], "rgb": None})
    again = controller()
    again.goal(THERE)
    backwards = HERE["state"][::-1].astype(np.float64)[::-1]
    backwards.flags.writeable = False
    assert np.array_equal(mpc.act({"state": backwards}), again.act(HERE))


@pytest.mark.parametrize("broken", ["A", "B"])
def test_a_broken_model_gives_an_error_and_never_an_action(broken):
    mpc = controller(chunk=2)
    mpc.goal(THERE)
    mpc.act(HERE)
    mpc.act(HERE)
    getattr(mpc.model, broken).data.fill_(torch.nan)
    for _ in range(2):
        with pytest.raises(PlanningError, match="no candidate has a finite cost"):
            mpc.act(HERE)
    assert mpc.plan is None


def test_privileged_keys_are_not_needed_and_picks_lie_on_the_visible_object():
    env = ToyEnv()
    start, _ = env.reset(seed=0)
    goal, _ = env.reset(seed=1)
    model = ToyModel(env.data_spec, ToyModel.Config(key="rgb"))
    mpc = MPC(model, CEM(CEM.Config(candidates=64)), objective=GoalDistance())
    mpc.goal({"rgb": goal["rgb"]})
    for _ in range(3):
        action = mpc.act({"rgb": start["rgb"]})
        row, column = (1 - action[1]) / 2 * 64 - 0.5, (action[0] + 1) / 2 * 64 - 0.5
        assert (start["rgb"][round(row), round(column)] >= 150).all()
