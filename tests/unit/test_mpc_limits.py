"""MPC: rates, surprises, precision, constraints, proposals, and models that raise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import ToyEnv
from toy_model import ToyModel, toy_spec
from toy_problem import HalfSpace, Scripted, build, every_planner

from latentplan.errors import ConfigError, PlanningError, ShapeError
from latentplan.objectives.goal import GoalDistance
from latentplan.planning.cem import CEM
from latentplan.planning.mpc import MPC

QUADRATIC = GoalDistance(GoalDistance.Config(power=2, reduce="mean"))
HERE = {"state": np.array([0.5, -0.5, 0.2, 0.0], np.float32)}
THERE = {"state": np.array([-0.5, 0.8, 0.0, 0.6], np.float32)}


def controller(*, planner=None, seed=0, model=None, proposals=(), constraints=(), **config):
    mpc = MPC(
        model or ToyModel(toy_spec()),
        planner or CEM(CEM.Config(candidates=64, elites=8, horizon=3)),
        objective=QUADRATIC,
        seed=seed,
        config=MPC.Config(**config),
        proposals=proposals,
        constraints=constraints,
    )
    mpc.goal(THERE)
    return mpc


def drive(mpc: MPC, steps: int, *, push=None) -> np.ndarray:
    """Return the actions (steps, A) in a world that is the model; `push` moves it at a step."""
    latent, actions = torch.from_numpy(HERE["state"]), []
    for step in range(steps):
        if push is not None and step == push:
            latent = latent + 0.3
        actions.append(mpc.act({"state": latent.numpy()}))
        with torch.no_grad():
            latent = mpc.model.A @ latent + mpc.model.B @ torch.from_numpy(actions[-1])
    return np.array(actions)


@every_planner
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_successive_actions_keep_the_rate_across_plans(name, chunk):
    planner = build(name, candidates=64, horizon=3)
    rate = (0.1, 0.037)
    actions = drive(controller(planner=planner, action_rate_limit=rate, chunk=chunk), 12)
    change = np.abs(np.diff(actions.astype(np.float64), axis=0))
    assert (change <= np.float32(rate).astype(np.float64)).all()
    assert (change > 0.03).any()  # it moves
    free = drive(controller(planner=planner, chunk=chunk), 12)
    assert (np.abs(np.diff(free, axis=0)) > 0.1).any()  # the rate did bind


def test_the_first_action_is_free_and_so_is_that_after_a_reset():
    mpc = controller(action_rate_limit=(0.01, 0.01))
    first = drive(mpc, 5)
    assert (np.abs(first[0]) > 0.05).all()
    mpc.goal({"state": -THERE["state"]})  # a new goal does not free the arm
    after = drive(mpc, 1)[0]
    assert (np.abs(after.astype(np.float64) - first[-1]) <= np.float32(0.01)).all()
    mpc.reset(seed=0)
    mpc.goal(THERE)
    assert np.array_equal(drive(mpc, 5), first)


def test_rates_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="MPC.action_rate_limit: 1 rates for actions"):
        controller(action_rate_limit=(0.1,))
    with pytest.raises(ConfigError, match=r"MPC.action_rate_limit: 0\.0 must be at least"):
        MPC.Config(action_rate_limit=(0.1, 0.0))
    model = ToyModel(ToyEnv().data_spec, ToyModel.Config(key="rgb"))
    with pytest.raises(ConfigError, match="MPC.action_rate_limit: 4 rates .* which are picks"):
        MPC(model, CEM(), objective=QUADRATIC, config=MPC.Config(action_rate_limit=(0.1,) * 4))


class Counting(CEM):
    """Counts its plans."""

    plans = 0

    def plan(self, *given, **named):
        self.plans += 1
        return super().plan(*given, **named)


@pytest.mark.parametrize(("push", "plans"), [(None, 2), (2, 3), (3, 2)])
def test_a_surprise_replans_and_what_was_predicted_does_not(push, plans):
    planner = Counting(CEM.Config(candidates=64, horizon=3))
    mpc = controller(planner=planner, chunk=3, replan_threshold=0.5)
    drive(mpc, 6, push=push)  # at step 3 a plan is due in any case
    assert planner.plans == plans


def test_surprise_zero_replans_for_any_difference_and_none_for_nothing():
    for surprise, plans in ((0.0, 3), (None, 1)):
        planner = Counting(CEM.Config(candidates=64, horizon=3))
        mpc = controller(planner=planner, chunk=3, replan_threshold=surprise)
        for _ in range(3):
            mpc.act(HERE)  # it does not move, as the model said it would
        assert planner.plans == plans


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_imagines_alike_and_encodes_in_full(dtype):
    encoded = []

    class Spy(ToyModel):
        def encode(self, observations):
            encoded.append(self.A.dtype)
            return super().encode(observations)

        def rollout(self, prepared, actions):
            imagined.append((self.A.dtype, prepared.dtype, actions.dtype))
            return super().rollout(prepared, actions)

    imagined: list = []
    half = controller(model=Spy(toy_spec()), dtype=dtype)
    full = controller()
    wanted, close = drive(full, 6), drive(half, 6)
    assert set(encoded) == {torch.float32}
    assert set(imagined) == {(getattr(torch, dtype),) * 3}
    assert close.dtype == np.float32 and np.abs(close - wanted).mean() < 0.1
    assert half.plan.actions.dtype == torch.float32
    cost = {mpc: full.evaluate(HERE, mpc.plan.actions.numpy()) for mpc in (full, half)}
    np.testing.assert_allclose(cost[half], cost[full], rtol=0.1)
    np.testing.assert_allclose(
        half.evaluate(HERE, half.plan.actions.numpy()), cost[half], rtol=0.02
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
@pytest.mark.parametrize("config", [{"cuda_graph": True}, {"dtype": "tf32"}])
def test_what_needs_cuda_is_refused_without(config):
    with pytest.raises(ConfigError, match="MPC.* needs a CUDA device, the model is on cpu"):
        controller(**config)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match="MPC.dtype: 'int8' is not one of float32, tf32, bfloa"):
        MPC.Config(dtype="int8")


def test_constraints_and_proposals_reach_the_planner():
    actions = torch.full((1, 5, 3, 2), 0.123)
    proposal, wall = Scripted(actions), HalfSpace(torch.tensor([1.0, 0.0, 0.0, 0.0]), -1e3)
    mpc = controller(proposals=[proposal], constraints=[wall])
    mpc.act(HERE)
    assert proposal.asked == [16]  # a quarter of the candidates
    assert mpc.plan.violation.item() > 900
    free = controller()
    free.act(HERE)
    assert free.plan.violation is None
    only = controller(
        planner=CEM(CEM.Config(candidates=5, elites=1, iterations=1, horizon=3, hold=False)),
        proposals=[proposal],
    )
    assert np.array_equal(only.act(HERE), np.float32([0.123, 0.123]))


@pytest.mark.parametrize("method", ["encode", "rollout"])
@pytest.mark.parametrize("chunk", [1, 2])
def test_a_model_that_raises_gives_an_error_and_never_an_action(method, chunk):
    mpc = controller(chunk=chunk)
    drive(mpc, chunk if method == "rollout" else 1)

    def broken(*given):
        raise RuntimeError("CUDA out of memory")

    setattr(mpc.model, method, broken)
    for _ in range(2):
        with pytest.raises(PlanningError, match=f"ToyModel.{method} raised RuntimeError: CUDA"):
            mpc.act(HERE)
        assert mpc.plan is None
    delattr(mpc.model, method)
    assert np.isfinite(mpc.act(HERE)).all()  # it goes on from what is seen


def test_an_observation_that_does_not_fit_ends_the_plan():
    mpc = controller(chunk=3)
    mpc.act(HERE)
    with pytest.raises(ShapeError):
        mpc.act({"state": np.zeros(3, np.float32)})
    assert mpc.plan is None


def test_a_latent_that_is_not_a_number_is_a_surprise():
    mpc = controller(chunk=3, replan_threshold=100.0)
    mpc.act(HERE)
    mpc.model.encode = lambda observations: torch.full((1, 1, 4), torch.nan)
    with pytest.raises(PlanningError, match="no candidate has a finite cost"):
        mpc.act(HERE)
    assert mpc.plan is None
