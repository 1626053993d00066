"""Elastic: rollouts of the first tokens of a frame, and planners that ask for few of them."""

from dataclasses import replace

import pytest
import torch
from moving_square import SIDE, SIZE, stored
from toy_problem import PLANNERS, build, problem, seeded

from latentplan.api.train import train
from latentplan.errors import ConfigError
from latentplan.models.elastic import Elastic, PrefixDynamics
from latentplan.models.frame_tokens import TOKENS
from latentplan.objectives.goal import LatentDistance
from latentplan.planning import solver
from latentplan.planning.cem import CEM
from latentplan.planning.mpc import MPC
from latentplan.planning.problem import Problem
from latentplan.planning.spaces import Box
from latentplan.protocols import DecodableDynamics, ElasticDynamics
from latentplan.tokenizers.elastictok import ElasticTok
from latentplan.tokenizers.video_vqvae import VideoVQVAE
from latentplan.tokenizers.vqvae import VQVAE
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, ArraySpec, Batch, Context, Part, Spec

SPEC = Spec(
    {"rgb": ArraySpec((SIDE, SIDE, 3), "uint8"), "wrist": ArraySpec((SIDE, SIDE, 3), "uint8")},
    ActionSpec((-1.0,) * SIZE, (1.0,) * SIZE),
)
TOKENIZER = ElasticTok.Config(patch=4, levels=(3, 3), width=16, layers=1, heads=2)
DYNAMICS = PrefixDynamics.Config(width=16, layers=1, heads=2, min_tokens=2, ahead=2)
CONFIG = Elastic.Config(tokenizer=Part("tokenizer", "elastictok", TOKENIZER), dynamics=DYNAMICS)
SLOTS, NUMBERS = 16, 2


@pytest.fixture(scope="module")
def model() -> Elastic:
    torch.manual_seed(0)
    made = Elastic(SPEC, CONFIG)
    for weight in made.parameters():  # nothing is almost zero, so that what leaks is seen
        weight.data += 0.2 * torch.randn_like(weight)
    return made.eval().requires_grad_(False)


def context(model, seed=0) -> Context:
    shape = (2, 1, SIDE, SIDE, 3)
    draw = seeded(seed)
    images = {k: torch.randint(0, 256, shape, generator=draw).byte() for k in SPEC.observation}
    return Context(model.encode(images), torch.zeros(2, 0, SIZE))


def frames(latents):
    """Return latents (..., D) as (..., cameras, slots, numbers)."""
    return latents.unflatten(-1, (2, SLOTS, NUMBERS))


def test_it_keeps_the_protocols(model):
    assert isinstance(model, ElasticDynamics) and isinstance(model, DecodableDynamics)
    assert (model.tokens, model.latent_dim) == (SLOTS, 2 * SLOTS * NUMBERS)


def test_later_tokens_stay_and_do_not_change_what_is_predicted(model):
    given, actions = context(model), torch.randn(2, 3, 4, SIZE, generator=seeded(1))
    found = frames(model.rollout(model.prepare_prefix(given, 5), actions))
    before = frames(given.latents)[:, :, None].expand_as(found)
    assert torch.equal(found[..., 5:, :], before[..., 5:, :])
    assert (found[..., :5, :] != before[..., :5, :]).float().mean() > 0.9
    other = frames(given.latents).clone()
    other[..., 5:, :] = 0
    changed = replace(given, latents=other.flatten(-3))
    again = frames(model.rollout(model.prepare_prefix(changed, 5), actions))
    assert torch.equal(again[..., :5, :], found[..., :5, :])


def test_all_tokens_are_the_default(model):
    given, actions = context(model), torch.randn(2, 3, 4, SIZE, generator=seeded(1))
    whole = model.rollout(model.prepare(given), actions)
    assert torch.equal(whole, model.rollout(model.prepare_prefix(given, SLOTS), actions))


def test_training_reaches_what_an_action_does_to_early_tokens():
    torch.manual_seed(0)
    spec = Spec({TOKENS: ArraySpec((4,), "int32")}, ActionSpec((-1.0,), (1.0,)))
    config = PrefixDynamics.Config(width=16, layers=1, heads=2, min_tokens=2, ahead=1)
    learner = PrefixDynamics(spec, config, levels=(3, 3), cameras=1)
    learner.scaling.use_bounds()
    actions = torch.randint(0, 2, (64, 1, 1)).float() * 2 - 1
    first = torch.full((64, 1, 4), 4)  # the number 0
    after = first + actions.long()  # the action is the first number of each token
    batch = Batch({TOKENS: torch.cat([first, after], dim=1)}, actions)
    optimiser = torch.optim.Adam(learner.parameters(), 1e-2)
    for _ in range(100):
        loss = learner.loss(batch)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    assert learner.eval().loss(batch).parts["change"] < 0.05


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (Part("tokenizer", "vqvae", VQVAE.Config(patch=4, channels=(8,), blocks=0)), None),
        (Part("tokenizer", "vqvae", VQVAE.Config(channels=(8,), quantizer="vq")), "numbers"),
        (Part("tokenizer", "video_vqvae", VideoVQVAE.Config(width=8, embedding=8)), "token frame"),
    ],
)
def test_tokenizers_of_other_kinds(part, match):
    config = replace(CONFIG, tokenizer=part)
    if match is None:
        assert Elastic(SPEC, config).tokens == SLOTS
    else:
        with pytest.raises(ConfigError, match=match):
            Elastic(SPEC, config)


def test_a_prefix_longer_than_a_frame_is_refused(model):
    with pytest.raises(ConfigError, match="within"):
        model.prepare_prefix(context(model), SLOTS + 1)
    with pytest.raises(ConfigError, match="min_tokens: 17 is more than the 16"):
        Elastic(SPEC, replace(CONFIG, dynamics=replace(DYNAMICS, min_tokens=17)))


class Recorded(Elastic):
    """Elastic that records how many tokens of how many candidates its rollouts predict."""

    def rollout(self, prepared, actions):
        self.seen.append((prepared[1], actions.shape[1]))
        return super().rollout(prepared, actions)


@pytest.fixture
def recorded(model) -> Recorded:
    made = Recorded(SPEC, CONFIG)
    made.load_state_dict(model.state_dict())
    made.seen = []
    return made.eval().requires_grad_(False)


def plan(planner, model, seed=0, **rest):
    given = context(model)
    space = Box(torch.full((SIZE,), -1.0), torch.full((SIZE,), 1.0), problems=2)
    goal = LatentDistance(context(model, seed=5).latents[:, 0])
    found = planner.plan(given, model, objective=goal, space=space, generator=seeded(seed), **rest)
    return found, given, goal


@pytest.mark.parametrize("name", PLANNERS)
def test_every_planner_predicts_the_tokens_of_its_budget(name, recorded):
    planner = build(name, candidates=16, iterations=4, horizon=2, elites=4, budget=(3, 3, 7))
    found, given, goal = plan(planner, recorded)
    tokens = [tokens for tokens, _ in recorded.seen]
    assert tokens == sorted(tokens) and set(tokens) == {3, 7}  # the last holds on
    ahead = recorded.rollout(recorded.prepare_prefix(given, 7), found.actions[:, None])
    cost = goal(ahead, found.actions[:, None])[:, 0]
    torch.testing.assert_close(found.cost, cost, rtol=1e-4, atol=1e-5)  # of the last budget


def test_what_is_kept_is_scored_again_when_the_budget_changes(recorded):
    planner = CEM(CEM.Config(candidates=16, elites=4, iterations=3, horizon=2, budget=(3, 3, 7)))
    plan(planner, recorded)
    # first round; second; elites again; third; the answer's mean
    assert recorded.seen == [(3, 16), (3, 12), (7, 4), (7, 12), (7, 1)]


@pytest.mark.parametrize(("deadline", "rounds"), [(200, 2), (1000, 3)])
def test_a_deadline_reserves_the_time_of_more_tokens(deadline, rounds, recorded, monkeypatch):
    def milliseconds():  # 1 for each token of each candidate
        return sum(tokens * candidates for tokens, candidates in recorded.seen)

    monkeypatch.setattr(solver, "perf_counter", lambda: milliseconds() / 1e3)
    planner = CEM(CEM.Config(candidates=16, elites=4, iterations=3, horizon=2, budget=(3, 3, 9)))
    found, *_ = plan(planner, recorded, deadline_ms=deadline)
    # two rounds and their mean take 87 ms, the third with its mean 153: 200 would be exceeded
    assert found.iterations == rounds and milliseconds() <= deadline


def test_a_budget_of_all_tokens_changes_nothing(model):
    settings = CEM.Config(candidates=16, elites=4, iterations=3, horizon=2)
    plain, *_ = plan(CEM(settings), model)
    whole, *_ = plan(CEM(replace(settings, budget=(SLOTS,))), model)
    assert torch.equal(plain.actions, whole.actions) and torch.equal(plain.cost, whole.cost)


def test_budgets_that_do_not_fit_are_refused(model):
    with pytest.raises(ConfigError, match="CEM.budget: 3 rounds, iterations are 2"):
        CEM.Config(iterations=2, budget=(1, 2, 3))
    with pytest.raises(ConfigError, match=r"CEM\.budget"):
        CEM.Config(budget=(0,))
    with pytest.raises(ConfigError, match="planner.budget: 17 is more than the 16 tokens"):
        MPC(model, CEM(CEM.Config(budget=(4, 17))))
    toy, latents, goal, (low, high) = problem()
    with pytest.raises(ConfigError, match="planner.budget: needs a model.* found ToyModel"):
        MPC(toy, CEM(CEM.Config(budget=(4,))))
    space = Box(low, high, problems=3)
    given = Context(latents, latents.new_zeros(3, 0, 2))
    asked = Problem(given, toy, LatentDistance(goal), space, seeded(), 1)
    with pytest.raises(ConfigError, match="such as elastic, found ToyModel"):
        asked.prepare(4)


def test_it_is_trained_in_stages_and_plans(tmp_path):
    few = {"steps": 2, "batch": 2, "eval_every": 2, "save_every": 2, "warmup": 1, "held_out": 0.3}
    train(
        "elastic",
        data=stored(tmp_path / "data.zarr"),
        run=tmp_path / "run",
        overrides=[
            *("model.tokenizer.patch=4", "model.tokenizer.width=16", "model.tokenizer.layers=1"),
            *("model.tokenizer.heads=2", "model.dynamics.width=16", "model.dynamics.layers=1"),
            *("model.dynamics.heads=2", "model.dynamics.min_tokens=2"),
            *(f"training.{s}.{k}={v}" for s in ("tokenizer", "dynamics") for k, v in few.items()),
        ],
    )
    trained = checkpoint.load(tmp_path / "run/best.safetensors").model
    policy = MPC(trained, CEM(CEM.Config(candidates=16, iterations=2, budget=(2, 8))))
    image = torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8).numpy()
    policy.goal({"rgb": image})
    assert policy.act({"rgb": image}).shape == (SIZE,)
