from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import ToyEnv
from toy_model import ToyModel, toy_spec
from toy_problem import at, build, every_planner, imagined, seeded

import latentplan
from latentplan import registry
from latentplan.errors import ConfigError, ShapeError
from latentplan.models.ensemble import Ensemble
from latentplan.objectives.goal import GoalDistance, LatentDistance
from latentplan.objectives.pessimistic import Disagreement, Pessimistic
from latentplan.planning.spaces import Box
from latentplan.protocols import Dynamics
from latentplan.training import checkpoint
from latentplan.types import Batch, Goal


def members(count=3, **values):
    return [ToyModel(toy_spec(), ToyModel.Config(seed=k, **values)) for k in range(count)]


def batch():
    draw = seeded()
    states = torch.randn(5, 3, 4, generator=draw)
    return Batch({"state": states}, torch.randn(5, 2, 2, generator=draw))


def test_latents_are_the_members_side_by_side():
    each = members()
    ensemble = Ensemble(each)
    assert isinstance(ensemble, Dynamics) and ensemble.latent_dim == 12
    seen, actions = {"state": torch.randn(2, 1, 4)}, torch.randn(2, 7, 3, 2)
    latents = ensemble.encode(seen)
    torch.testing.assert_close(latents, torch.cat([m.encode(seen) for m in each], -1))
    ahead = imagined(ensemble, latents, actions)
    assert ahead.shape == (2, 7, 3, 12)
    for number, member in enumerate(each):
        part = slice(4 * number, 4 * number + 4)
        torch.testing.assert_close(
            ahead[..., part], imagined(member, latents[..., part], actions), rtol=0, atol=0
        )


def test_the_loss_is_the_mean_and_trains_all():
    each = members()
    loss = Ensemble(each).loss(batch())
    wanted = torch.stack([m.loss(batch()).total for m in each]).mean()
    torch.testing.assert_close(loss.total, wanted)
    torch.testing.assert_close(loss.parts["prediction"], wanted.detach())
    loss.total.backward()
    assert all(p.grad.abs().sum() > 0 for m in each for p in m.parameters())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: ToyModel(toy_spec(bound=2.0)), r"members\[1\].spec: other than"),
        (lambda: ToyModel(toy_spec(states=5)), r"members\[1\].spec: other than"),
        (lambda: ToyModel(toy_spec(), ToyModel.Config(context=2)), r"\[1\].context: 2, not 1,"),
    ],
)
def test_members_that_were_not_trained_alike_are_refused(other, message):
    with pytest.raises(ConfigError, match=message):
        Ensemble([*members(1), other()])
    with pytest.raises(ConfigError, match="Ensemble.members: found none"):
        Ensemble([])


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 4),
    weight=st.floats(0, 10),
    power=st.sampled_from([1.0, 2.0]),
    reduce=st.sampled_from(["last", "mean", "min"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_cost_is_mean_plus_weighted_deviation_of_the_members(
    count, weight, power, reduce, seed
):
    draw = seeded(seed)
    goal = torch.randn(2, 3 * count, generator=draw, dtype=torch.float64)
    latents = torch.randn(2, 5, 4, 3 * count, generator=draw, dtype=torch.float64)
    actions = torch.randn(2, 5, 4, 2, generator=draw, dtype=torch.float64)
    config = GoalDistance.Config(power=power, reduce=reduce, effort=(0.3, 0.0))
    members = [LatentDistance(part, config) for part in goal.chunk(count, dim=-1)]
    found = Disagreement(members, weight=weight)
    each = torch.stack(
        [one(latents[..., 3 * k : 3 * k + 3], actions) for k, one in enumerate(members)]
    )
    wanted = each.mean(0) + weight * each.std(0, correction=0)
    torch.testing.assert_close(found(latents, actions), wanted, rtol=1e-9, atol=1e-9)


def reach(goal: float):
    return lambda latents, actions: (latents[:, :, -1, 0] - goal).abs()


def test_it_combines_any_objectives():
    found = Disagreement([reach(1.0), reach(3.0)], weight=2.0)
    # The members' costs are 1 and 3: mean 2, deviation 1.
    assert found(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 2)).item() == pytest.approx(4.0)


def test_each_member_encodes_the_goal_and_uses_its_part_of_the_context():
    asked = []

    def inner(goal, context, model):
        asked.append((goal, context.latents, model))
        return reach(0.0)

    ensemble, goal = Ensemble(members(2)), Goal(observation={"state": np.ones(4, np.float32)})
    latents = torch.randn(1, 1, 8)
    made = Pessimistic(objective=inner)(goal, at(latents), ensemble)
    assert len(made.objectives) == 2
    for part, member, (told, seen, model) in zip(
        latents.chunk(2, -1), ensemble.members, asked, strict=True
    ):
        assert told is goal and model is member and torch.equal(seen, part)
    distance = Pessimistic()(goal, at(latents), ensemble)
    still = torch.ones(1, 1, 1, 8)  # identity encoders: at the goal
    assert distance(still, torch.zeros(1, 1, 1, 2)).item() == pytest.approx(0, abs=1e-6)


def test_the_slope_is_finite_if_members_agree():
    latents = torch.randn(1, 3, 2, 4).repeat(1, 1, 1, 2).requires_grad_()
    at_zero = [LatentDistance(torch.zeros(1, 4))] * 2
    cost = Disagreement(at_zero, weight=1.0)(latents, torch.zeros(1, 3, 2, 2))
    (slope,) = torch.autograd.grad(cost.sum(), latents)
    assert slope.isfinite().all() and (slope != 0).any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="LatentDistance.latents: found shape"):
        members = [LatentDistance(torch.zeros(1, 3))] * 3
        Disagreement(members, weight=1)(torch.zeros(1, 2, 2, 6), torch.zeros(1, 2, 2, 2))
    with pytest.raises(ConfigError, match="goal.observation: found none"):
        Pessimistic().check(Goal(text="push"), Ensemble([ToyModel(toy_spec())]))
    for values in ({"weight": -1.0}, {"weight": float("nan")}, {"power": 99.0}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            Pessimistic.Config(**values)


class Known(ToyModel):
    """Knows where pushes to the left lead; pushes to the right lead where its error says."""

    def __init__(self, error: float) -> None:
        super().__init__(toy_spec(states=1, actions=1))
        self.error = error

    def rollout(self, prepared, actions):
        change = torch.where(actions > 0, (1 + self.error) * actions, actions)
        return prepared[:, None, None] + change.cumsum(2)


def either_side(latents, actions):
    """Reach 0.8, or -0.7, which is not quite as good."""
    reached = latents[:, :, -1, 0]
    return torch.minimum((reached - 0.8).square(), (reached + 0.7).square() + 0.05)


@every_planner
def test_disagreement_avoids_states_where_members_differ(name):
    space = Box(-torch.ones(1), torch.ones(1))
    planner = build(name, candidates=256, iterations=8, horizon=1, hold=False)

    def push(*errors, weight=1.0):
        ensemble = Ensemble([Known(error) for error in errors])
        context = at(torch.zeros(1, 1, len(errors)), 1)
        config = Pessimistic.Config(weight=weight)
        pessimistic = Pessimistic(config, objective=lambda goal, context, model: either_side)
        plan = planner.plan(
            context,
            ensemble,
            objective=pessimistic(Goal(), context, ensemble),
            space=space,
            generator=seeded(),
        )
        return plan.actions.item()

    assert push(0.0) == pytest.approx(0.8, abs=0.05)  # alone, a member is sure of itself
    assert push(0.0, 0.0, 0.0) == pytest.approx(0.8, abs=0.05)
    # Members that are 0.2 off to either side expect 0.017 of a push of 0.8, less than 0.05.
    assert push(-0.2, 0.0, 0.2, weight=0.0) == pytest.approx(0.8, abs=0.05)
    # Their disagreement, 0.012, counts as one likes.
    assert push(-0.2, 0.0, 0.2, weight=10.0) == pytest.approx(-0.7, abs=0.05)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs of one config, untrained, of other seeds; and one of another spec."""
    build, found = registry.get("model", "cfm"), []
    for seed in range(3):
        torch.manual_seed(seed)
        model = build(ToyEnv().data_spec, build.Config(latent=4, channels=(8, 8, 8, 8)))
        found.append(tmp_path_factory.mktemp("member"))
        checkpoint.save(found[-1] / "best.safetensors", model, name="cfm", step=1, metrics={})
    return found


def act(agent):
    env = ToyEnv()
    goal, _ = env.reset(seed=1)
    start, _ = env.reset(seed=0)
    agent.goal(goal)
    return agent.act(start)


def test_several_runs_are_an_ensemble(runs):
    agent = latentplan.load(runs)
    assert isinstance(agent.model, Ensemble) and len(agent.model.members) == 3
    assert not any(m.training for m in agent.model.modules())
    action = act(agent)
    assert action.shape == (4,) and (np.abs(action) <= 1).all()
    assert np.array_equal(action, act(latentplan.load(tuple(map(str, runs)))))
    careless = latentplan.load(runs, overrides=["objective.weight=0"])
    act(careless)
    assert careless.plan.cost < agent.plan.cost  # untrained members disagree
    assert act(latentplan.load(runs[:1])).shape == (4,)
    for other in ({"objective": "goal"}, {"planner": "cem_lookahead"}, {"planner": "hybrid"}):
        assert np.isfinite(act(latentplan.load(runs, **other))).all()


def test_one_run_and_a_pessimist_plan_as_without(runs):
    alone, pessimist = (
        latentplan.load(runs[0], objective=name) for name in ("goal", "pessimistic")
    )
    assert np.array_equal(act(alone), act(pessimist))


def test_runs_that_do_not_fit_are_one_clear_error(runs, tmp_path):
    build = registry.get("model", "cfm")
    wider = build(ToyEnv().data_spec, build.Config(latent=8, channels=(8, 8, 8, 8)))
    checkpoint.save(tmp_path / "wider.safetensors", wider, name="cfm", step=1, metrics={})
    with pytest.raises(ConfigError, match=r"members\[3\].latent_dim: 8, not 4, than that"):
        latentplan.load([*runs, tmp_path / "wider.safetensors"])
    with pytest.raises(ConfigError, match="found no run"):
        latentplan.load([])
