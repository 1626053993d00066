"""The regressed dynamics, the inverse model and the proposals of `calibrated`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy import ToyEnv

import latentplan
from latentplan.errors import ConfigError
from latentplan.models.calibrated import Calibrated, LatentDynamics
from latentplan.models.cfm import CFM
from latentplan.models.goal_inverse import GoalInverse, InverseProposal
from latentplan.models.latents import LATENTS, latent_spec
from latentplan.nn.symmetry import turn_for_views
from latentplan.planning.beam import Beam
from latentplan.types import ActionSpec, ArraySpec, Batch, Context, Goal, PlanarSpec, Spec

SIZE = 3  # of a latent; an action moves its first two numbers
SPEC = Spec({LATENTS: ArraySpec((1, SIZE))}, ActionSpec((-1.0, -2.0), (1.0, 2.0)))


def windows(length: int, *, seed: int = 0, rows: int = 256) -> Batch:
    """Return windows of latents that move by their actions; the third number stays."""
    draw = torch.Generator().manual_seed(seed)
    span = torch.tensor(SPEC.action.high)
    actions = span * (2 * torch.rand(rows, length - 1, 2, generator=draw) - 1)
    start = torch.randn(rows, 1, SIZE, generator=draw)
    moved = torch.nn.functional.pad(actions.cumsum(1), (0, 1, 1, 0))
    return Batch({LATENTS: (start + moved)[:, :, None]}, actions)


def fitted(learner, *, length: int, steps: int):
    optimizer = torch.optim.Adam(learner.parameters(), 3e-3)
    for step in range(steps):
        loss = learner.loss(windows(length, seed=step))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    return learner.eval().requires_grad_(False)


def test_regression_brings_the_error_near_zero_at_every_step():
    torch.manual_seed(0)
    config = LatentDynamics.Config(members=2, hidden=(64, 64), ahead=3)
    learner = LatentDynamics(SPEC, config)
    before = learner.loss(windows(4, seed=999)).parts
    after = fitted(learner, length=4, steps=300).loss(windows(4, seed=999)).parts
    for k in (1, 2, 3):
        assert before[f"error_{k}"] > 0.5 and after[f"error_{k}"] < 0.15


def test_a_figure_of_one_means_that_predictions_are_no_better_than_no_change():
    learner = LatentDynamics(SPEC, LatentDynamics.Config(members=1, hidden=(8,)))
    for parameter in learner.parameters():
        torch.nn.init.zeros_(parameter)
    figures = learner.loss(windows(4)).parts
    assert [round(float(figures[f"error_{k}"]), 5) for k in (1, 2, 3)] == [1.0, 1.0, 1.0]


def test_a_prediction_is_the_mean_of_the_members():
    torch.manual_seed(0)
    both = LatentDynamics(SPEC, LatentDynamics.Config(members=2, hidden=(16, 16)))
    z, actions = torch.randn(2, SIZE), torch.randn(2, 5, 3, 2)
    with torch.no_grad():
        mean = sum(each.unroll(z, actions) for each in both.members) / 2
        torch.testing.assert_close(both.unroll(z, actions), mean)


@pytest.fixture(scope="module")
def inverse() -> GoalInverse:
    torch.manual_seed(0)
    config = GoalInverse.Config(steps=2, hidden=(64, 64), components=4, hide=0.2)
    return fitted(GoalInverse(SPEC, config), length=3, steps=400)


def test_the_likeliest_action_of_one_step_leads_to_the_goal(inverse):
    z = torch.zeros(3, SIZE)
    goal = torch.tensor([[0.5, 1.0, 0.0], [-0.5, 0.0, 0.0], [0.0, -1.0, 0.0]])
    one = torch.ones(1, dtype=torch.long)
    action = inverse.propose(z, goal, one, generator=torch.Generator())[:, 0]
    torch.testing.assert_close(action, goal[:, :2], atol=0.2, rtol=0)


def test_two_steps_to_a_goal_leave_more_freedom_than_one(inverse):
    z, goal = torch.zeros(1, SIZE), torch.tensor([[0.2, 0.4, 0.0]])
    std = []
    for steps in (1, 2):
        draw = torch.Generator().manual_seed(0)
        given = torch.full((500,), steps)
        std.append(inverse.propose(z, goal, given, generator=draw)[0, 1:, 0].std())
    assert std[1] > 2 * std[0]


def test_samples_have_the_density_that_log_prob_gives(inverse):
    z, goal = torch.zeros(1, SIZE), torch.tensor([[0.2, 0.4, 0.0]])
    shares, means, stds = inverse(z, goal, torch.ones(1, dtype=torch.long))
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=shares),
        torch.distributions.Independent(torch.distributions.Normal(means, stds), 1),
    )
    actions = torch.tensor([[0.3, 0.5]])
    unit = actions / torch.tensor([1.0, 2.0])
    found = inverse.log_prob(z, goal, torch.ones(1, dtype=torch.long), actions)
    torch.testing.assert_close(found, mixture.log_prob(unit))


def test_a_constant_number_of_an_action_stays_constant():
    spec = Spec({LATENTS: ArraySpec((1, SIZE))}, ActionSpec((-1.0, 0.5), (1.0, 0.5)))
    model = GoalInverse(spec, GoalInverse.Config(steps=2, hidden=(8,), components=2))
    batch = windows(3)
    actions = batch.actions.index_fill(2, torch.tensor([1]), 0.5)
    assert model.loss(Batch(batch.observations, actions)).total.isfinite()
    z = torch.zeros(1, SIZE)
    found = model.propose(z, z, torch.ones(9, dtype=torch.long), generator=torch.Generator())
    assert (found[..., 1] == 0.5).all() and found[..., 0].unique().numel() > 1


def test_proposals_are_a_problems_own_whatever_the_batch(inverse):
    latents, goal = torch.randn(3, 1, SIZE), torch.zeros(1, SIZE)
    proposal = InverseProposal(inverse, goal)

    def sample(rows: slice):
        context = Context(latents[rows], torch.zeros(3, 0, 2)[rows])
        draw = torch.Generator().manual_seed(5)
        return proposal.sample(context, 6, horizon=3, generator=draw)

    whole = sample(slice(None))
    assert whole.shape == (3, 6, 3, 2) and (whole[:, :, 1:] == 0).all()
    torch.testing.assert_close(sample(slice(1, 2))[0], whole[1])


PLANAR = Spec(
    {"rgb": ArraySpec((64, 64, 3), "uint8")},
    ActionSpec((-1.0,) * 4, (1.0,) * 4),
    planar=PlanarSpec("rgb", ((0, 1), (2, 3))),
)


@pytest.mark.parametrize("learner", [LatentDynamics, GoalInverse])
def test_a_learner_of_latents_turns_actions_and_keeps_no_weights_of_the_base(learner):
    base = CFM(PLANAR, CFM.Config(latent=8))
    spec = latent_spec(PLANAR, base)
    model = learner(spec, base=base)
    z, actions = torch.randn(8, model.window, 8, 8), torch.rand(8, model.window - 1, 4)
    row = torch.arange(8)  # row i is read in view i
    alone = Batch({LATENTS: z[row, :, row, None]}, base.turn_actions(actions, row))
    assert model.loss(Batch({LATENTS: z}, actions)).total == model.loss(alone).total
    assert model.state_dict().keys() == learner(spec).state_dict().keys()


def test_all_views_of_cfm_describe_one_transition():
    base = CFM(PLANAR, CFM.Config(latent=8, views=8)).eval()
    assert latent_spec(PLANAR, base).observation[LATENTS].shape == (8, 8)
    image = torch.randint(0, 256, (2, 3, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        views = base.encode_views({"rgb": image})  # b t g d
        torch.testing.assert_close(views.flatten(2), base.encode({"rgb": image}))
        actions = torch.rand(2, 5, 1, 4)
        own = base.rollout(views[:, -1].flatten(0, 1), actions)  # turns actions itself
        seen = turn_for_views(actions, 8, base.turn_actions)
        ahead = base.dynamics.unroll(views[:, -1].flatten(0, 1), seen)
    torch.testing.assert_close(own, ahead.view(2, 8, 5, 1, 8).permute(0, 2, 3, 1, 4).flatten(3))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    lengths = {"collect": {"length": 12}}
    latentplan.collect(ToyEnv, out=folder / "toy.zarr", episodes=12, overrides=lengths)
    few = {"steps": 3, "batch": 4, "warmup": 1, "eval_every": 3, "save_every": 3, "held_out": 0.2}
    overrides = {f"training.{stage}": few for stage in ("base", "dynamics", "inverse")}
    latentplan.train(Calibrated, data=folder / "toy.zarr", run=folder / "run", overrides=overrides)
    return folder / "run"


def test_it_plans_by_beam_unless_another_planner_is_named(run):
    env = ToyEnv()
    goal, _ = env.reset(seed=1)
    start, _ = env.reset(seed=0)
    policy = latentplan.load(run)
    assert isinstance(policy.planner, Beam) and policy.config.propose == "auto"
    policy.goal(goal)
    action = policy.act(start)
    assert np.isfinite(action).all() and (np.abs(action) <= 1).all()
    assert latentplan.load(run, planner="cem").config.propose is False
    direct = latentplan.load(run, policy="generative", overrides=["horizon=1"])
    direct.goal(goal)
    proposed = direct.act(start)
    offered = policy.model.proposal(Goal(observation=goal)).sample(
        Context(policy.model.encode({"rgb": torch.from_numpy(start["rgb"])[None, None]}),
                torch.zeros(1, 0, 4)), 1, horizon=1, generator=torch.Generator(),
    )  # fmt: skip
    np.testing.assert_allclose(proposed[2:], offered[0, 0, 0, 2:].numpy(), atol=1e-6)


def test_a_goal_in_words_is_refused_when_it_is_set(run):
    with pytest.raises(ConfigError, match="goal.observation: found none.*propose=false"):
        latentplan.load(run).goal(text="straighten")


def test_proposals_compete_unless_they_are_switched_off(run):
    env = ToyEnv()
    goal, _ = env.reset(seed=1)
    start, _ = env.reset(seed=0)

    def act(**settings):
        policy = latentplan.load(run, planner="propose", **settings)
        policy.goal(goal)
        return policy.act(start)

    none = act(overrides=["mpc.propose=false"])
    assert not np.array_equal(act(), none)
    with pytest.raises(ConfigError, match="MPC.propose: 'maybe' is not one of true, false, auto"):
        act(overrides=["mpc.propose=maybe"])
