"""The benchmark of token budgets counts the frames that a solve really imagines."""

import sys
from pathlib import Path

import pytest
import torch

from latentplan.models.elastic import Elastic, PrefixDynamics
from latentplan.objectives.goal import LatentDistance
from latentplan.planning.cem import CEM
from latentplan.planning.spaces import Box
from latentplan.tokenizers.elastictok import ElasticTok
from latentplan.types import ActionSpec, ArraySpec, Context, Part, Spec

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import token_budget  # noqa: E402

SPEC = Spec({"rgb": ArraySpec((32, 32, 3), "uint8")}, ActionSpec((-1.0,), (1.0,)))
TOKENIZER = ElasticTok.Config(patch=4, levels=(3, 3), width=16, layers=1, heads=2)
DYNAMICS = PrefixDynamics.Config(width=16, layers=1, heads=2)


@pytest.mark.parametrize("arm", token_budget.ARMS)
def test_tokens_and_frames_are_those_of_a_solve(arm, monkeypatch):
    budget, candidates = token_budget.ARMS[arm]
    config = Elastic.Config(tokenizer=Part("tokenizer", "elastictok", TOKENIZER), dynamics=DYNAMICS)
    model, seen = Elastic(SPEC, config).eval(), []
    rollout = model.rollout
    monkeypatch.setattr(
        model, "rollout", lambda z, a: seen.append((z[1], a[0, :, :, 0].numel())) or rollout(z, a)
    )
    settings = CEM.Config(
        candidates=candidates, elites=token_budget.ELITES, iterations=token_budget.ROUNDS,
        horizon=token_budget.HORIZON, budget=budget,
    )  # fmt: skip
    z = torch.zeros(1, 1, model.latent_dim)
    CEM(settings).plan(
        Context(z, torch.zeros(1, 0, 1)),
        model,
        objective=LatentDistance(z[:, 0]),
        space=Box(torch.tensor([-1.0]), torch.tensor([1.0])),
        generator=torch.Generator().manual_seed(0),
    )
    frames = sum(count for _, count in seen)
    tokens = sum(tokens * count for tokens, count in seen) / frames
    found = token_budget.tokens_a_frame(budget, candidates, model.tokens)
    assert found == (pytest.approx(tokens), frames)
