"""The policy of what a model generates, and models that propose or predict subgoals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import ToyEnv
from toy_model import ToyModel, toy_spec
from toy_problem import Scripted, build, cost_of, imagined, objective, problem, solve

import latentplan
from latentplan.errors import CheckpointError, ConfigError, PlanningError, ShapeError
from latentplan.models.videoworld.videoworld import VideoWorld
from latentplan.objectives.goal import GoalDistance
from latentplan.objectives.subgoal import Subgoal
from latentplan.planning.generative import GenerativePolicy, Proposed
from latentplan.planning.mpc import MPC
from latentplan.planning.spaces import Box
from latentplan.protocols import Policy
from latentplan.training import checkpoint
from latentplan.types import ArraySpec, Part

QUADRATIC = GoalDistance(GoalDistance.Config(power=2, reduce="mean"))


class Knowing(ToyModel):
    """A toy model that proposes by itself: the task is the number that all of its actions are."""

    def proposal(self, goal):
        if not goal.text:
            raise ConfigError("task '': was not trained on")
        return Scripted(torch.full((1, 1, 4, 2), float(goal.text)))


def test_the_plan_is_the_cheapest_of_what_is_proposed_inside_the_space():
    model, context, goal, (low, high) = problem()
    offered = 2 * torch.randn(3, 5, 2, 2, dtype=torch.float64)
    plan = solve(
        Proposed(Proposed.Config(horizon=2, candidates=5)),
        model,
        context,
        goal,
        Box(low, high, problems=3),
        proposals=[Scripted(offered)],
        warm_start=torch.zeros(3, 2, 2, dtype=torch.float64),
    )
    inside = offered.clamp(low, high)
    costs = objective(goal)(imagined(model, context, inside), inside)
    torch.testing.assert_close(plan.cost, costs.min(dim=1).values)
    torch.testing.assert_close(plan.cost, cost_of(plan, model, context, goal))
    assert (plan.actions[:, None] == inside).flatten(2).all(-1).any(1).all()


def test_nothing_proposed_is_an_error():
    model, context, goal, (low, high) = problem()
    with pytest.raises(PlanningError, match="generative: found no proposals"):
        solve(Proposed(), model, context, goal, Box(low, high, problems=3))


def test_a_model_proposes_for_the_task_at_hand():
    spec = toy_spec(4, 2, 1.0)
    mpc = GenerativePolicy(Knowing(spec), objective=QUADRATIC)
    assert isinstance(mpc, Policy)
    seen = {key: np.zeros(a.shape, a.dtype) for key, a in spec.observation.items()}
    mpc.goal(seen, text="0.25")
    assert mpc.act(seen).tolist() == [0.25, 0.25]
    mpc.goal(seen, text="-0.5")
    assert mpc.act(seen).tolist() == [-0.5, -0.5]
    with pytest.raises(ConfigError, match="not trained on"):
        mpc.goal(seen)


def test_with_cem_they_compete():
    spec = toy_spec(4, 2, 1.0)
    planner = build("cem", candidates=8, iterations=1, horizon=4)
    config = MPC.Config(propose=True)
    mpc = MPC(Knowing(spec), planner, objective=QUADRATIC, config=config)
    seen = {key: np.zeros(a.shape, a.dtype) for key, a in spec.observation.items()}
    mpc.goal(seen, text="0.0")  # stays at the goal: nothing beats it
    np.testing.assert_allclose(mpc.act(seen), 0, atol=1e-6)


def test_a_model_that_proposes_nothing_is_refused():
    model = ToyModel(toy_spec(4, 2, 1.0))
    with pytest.raises(ConfigError, match="needs a model that proposes actions.*ToyModel"):
        MPC(model, build("cem"), config=MPC.Config(propose=True))
    with pytest.raises(ConfigError, match="policy generative: needs a model that proposes.*ToyM"):
        GenerativePolicy(model)


class Leading(ToyModel):
    """A toy model that imagines: a task adds its number to the latent, at every step."""

    def subgoal(self, task=""):
        if not task:
            raise ConfigError("task '': was not trained on")
        return lambda context, steps: context.latents[:, -1] + steps * float(task)


def test_a_plan_leads_to_the_predicted_subgoal_of_the_task():
    spec = toy_spec(4, 4, 1.0)
    model = Leading(spec)
    planner = build("cem", candidates=256, iterations=8, horizon=2)
    quadratic = Subgoal.Config(power=2, reduce="mean", steps=2)
    mpc = MPC(model, planner, objective=Subgoal(quadratic))
    seen = {"state": np.zeros(4, np.float32)}
    with pytest.raises(PlanningError, match="no goal is set"):
        mpc.act(seen)
    for task in ("0.1", "-0.1"):
        mpc.goal(text=task)
        action = torch.from_numpy(mpc.act(seen))
        with torch.no_grad():
            after = imagined(model, torch.zeros(1, 1, 4), mpc.plan.actions[:, None])[0, 0, -1]
        torch.testing.assert_close(after, torch.full((4,), 2 * float(task)), rtol=0, atol=0.05)
        costs = mpc.evaluate(seen, torch.stack([action, -action]).numpy())
        assert costs[0] < costs[1]
    with pytest.raises(ConfigError, match="not trained on"):
        mpc.goal(text="")


def test_with_a_text_alone_the_first_proposal_is_executed():
    spec = toy_spec(4, 2, 1.0)
    offered = torch.tensor([0.5, 0.0, -0.5])[None, :, None, None].expand(1, 3, 4, 2)
    mpc = GenerativePolicy(
        ToyModel(spec),
        GenerativePolicy.Config(candidates=3),
        objective=QUADRATIC,
        proposals=[Scripted(offered)],
    )
    seen = {key: np.zeros(a.shape, a.dtype) for key, a in spec.observation.items()}
    mpc.goal(seen)  # where it is: to stay is best
    assert mpc.act(seen).tolist() == [0.0, 0.0]
    mpc.goal(text="push")
    assert mpc.act(seen).tolist() == [0.5, 0.5]
    with pytest.raises(ConfigError, match="goal.observation: found none"):
        mpc.goal()


def test_without_a_goal_or_a_model_that_imagines_there_is_nothing_to_reach():
    model = ToyModel(toy_spec(4, 2, 1.0))
    with pytest.raises(ConfigError, match="goal.observation: found none, .*objective subgoal"):
        MPC(model, build("cem")).goal(text="push")
    with pytest.raises(ConfigError, match="subgoal: needs a model that predicts.*ToyModel"):
        MPC(model, build("cem"), objective=Subgoal()).goal(text="push")


class Steering(ToyModel):
    """Proposes what it sees, which no other model sees, times the task's number."""

    def proposal(self, goal):
        return Seen(float(goal.text))


class Seen:
    def __init__(self, times):
        self.times = times

    def sample(self, context, count, *, horizon, generator):
        return (self.times * context.latents[:, -1, None, None, :2]).expand(-1, 1, horizon, -1)


def test_another_model_proposes_of_what_it_sees_itself():
    spec = toy_spec(4, 2, 1.0)
    both = replace(spec, observation={**spec.observation, "force": ArraySpec((6,))})
    other = Steering(both, ToyModel.Config(key="force", context=3))
    config = GenerativePolicy.Config(candidates=1, horizon=3)
    mpc = GenerativePolicy(ToyModel(spec), config, objective=QUADRATIC, proposers=[other])
    seen = {"state": np.zeros(4, np.float32), "force": np.full(6, 0.4, np.float32)}
    for task, wanted in (("0.5", 0.2), ("-1", -0.4)):
        mpc.reset()
        mpc.goal(seen, text=task)
        np.testing.assert_allclose(mpc.act(seen), wanted, atol=1e-6)
    with pytest.raises(ShapeError, match="MPC.act: the observation has no 'force'"):
        mpc.act({"state": seen["state"]})


def test_a_proposer_that_cannot_propose_or_is_not_loaded_is_refused():
    model = ToyModel(toy_spec(4, 2, 1.0))
    with pytest.raises(ConfigError, match="needs a model that proposes actions.*ToyModel"):
        MPC(model, build("cem"), proposers=[model])
    with pytest.raises(ConfigError, match="MPC.cuda_graph: .* cannot .* use proposals of a model"):
        MPC.Config(cuda_graph=True, propose=True)
    with pytest.raises(ConfigError, match="MPC.proposer: 'run' is loaded by latentplan.load"):
        MPC(model, build("cem"), config=MPC.Config(proposer=Part("model", run="run")))


def test_videoworld_proposes_for_a_run_of_cfm(untrained_run, tmp_path):
    torch.manual_seed(0)
    toy = ToyEnv()
    video = VideoWorld(toy.data_spec, VideoWorld.Config())
    checkpoint.save(tmp_path / "v.safetensors", video, name="videoworld", step=1, metrics={})
    seen = toy.reset(seed=1)[0]
    made = []
    for policy in ("generative", "mpc"):
        mpc = latentplan.load(
            untrained_run, policy=policy, overrides=[f"proposer.run={tmp_path}/v.safetensors"]
        )
        mpc.goal(toy.reset(seed=2)[0])
        made.append(mpc.act(seen))
        assert np.isfinite(made[-1]).all()
    assert mpc.plan.cost <= float(mpc.evaluate(seen, made[0][None]).min()) + 1e-4
    arm = replace(toy.data_spec, action=replace(toy.data_spec.action, low=(-2.0,) * 4))
    other = VideoWorld(arm, VideoWorld.Config())
    checkpoint.save(tmp_path / "o.safetensors", other, name="videoworld", step=1, metrics={})
    with pytest.raises(CheckpointError, match="proposer: the actions of .* have low"):
        latentplan.load(untrained_run, overrides=[f"proposer.run={tmp_path}/o.safetensors"])


def test_cem_plans_in_videoworlds_latents():
    torch.manual_seed(0)
    spec = ToyEnv().data_spec
    model = VideoWorld(spec, VideoWorld.Config()).eval().requires_grad_(False)
    frames = torch.randint(0, 256, (1, model.context, 64, 64, 3), dtype=torch.uint8)
    context = model.encode({"rgb": frames})
    wanted = torch.tensor([0.6, -0.5, 0.7, -0.8]).expand(1, 1, 1, 4)
    goal = imagined(model, context, wanted)[:, 0, -1]
    box = Box(torch.full((4,), -1.0), torch.ones(4), problems=1)
    draw = torch.Generator().manual_seed(0)
    random = box.sample(384, 1, generator=draw)  # as many as CEM tries
    cost = objective(goal)(imagined(model, context, random), random)
    cem = build("cem", candidates=64, iterations=6, horizon=1)
    plan = solve(cem, model, context, goal, box)
    assert plan.cost < cost.min() and plan.cost < 0.01 * cost.mean()


def test_a_model_is_used_with_its_own_policy_unless_another_is_named(untrained_run, tmp_path):
    toy = ToyEnv()
    video = VideoWorld(toy.data_spec, VideoWorld.Config())
    checkpoint.save(tmp_path / "v.safetensors", video, name="videoworld", step=1, metrics={})
    file = tmp_path / "v.safetensors"
    own = latentplan.load(file, overrides=["candidates=3", "chunk=2"])
    assert isinstance(own, GenerativePolicy)
    assert own.planner.config.candidates == 3 and own.config.chunk == 2
    own.goal(toy.reset(seed=2)[0])
    assert np.isfinite(own.act(toy.reset(seed=1)[0])).all()
    for settings in ({"planner": "cem"}, {"policy": "mpc"}):
        assert type(latentplan.load(file, **settings)) is MPC
    leading = latentplan.load(file, planner="cem", objective="subgoal", overrides=["horizon=3"])
    assert leading._planner.objective.config.steps == 3  # the planner's horizon
    assert type(latentplan.load(untrained_run)) is MPC
    with pytest.raises(ConfigError, match="load.planner: policy 'generative' has none"):
        latentplan.load(file, policy="generative", planner="cem")
    with pytest.raises(ConfigError, match="proposer.name: found 'cfm', need a trained run"):
        latentplan.load(untrained_run, overrides=["proposer.name=cfm"])
    with pytest.raises(ConfigError, match="load.policy: .* is not made of a model"):
        latentplan.load(file, policy="noop")
