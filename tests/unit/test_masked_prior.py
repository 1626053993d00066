"""The masked prior: what it conditions on, its likelihood, and that decoding is consistent."""

from dataclasses import replace

import pytest
import torch

from latentplan.errors import ConfigError, ShapeError
from latentplan.nn.masked_prior import MaskedPrior
from latentplan.nn.transformer import Cache, Transformer

TOKENS, VOCABULARY, CONDITION = 6, 5, 3
CONFIG = MaskedPrior.Config(width=16, layers=1, heads=2, draft=3, revise=2, rounds=1)


@pytest.fixture
def prior() -> MaskedPrior:
    torch.manual_seed(0)
    made = MaskedPrior(TOKENS, vocabulary=VOCABULARY, condition=CONDITION, config=CONFIG)
    for weight in made.parameters():  # nothing is almost zero, so that what leaks is seen
        weight.data += 0.3 * torch.randn_like(weight)
    return made.eval()


def test_a_masked_token_is_not_read_and_a_known_one_is(prior):
    ids, known = torch.randint(0, VOCABULARY, (2, TOKENS)), torch.randn(2, TOKENS, CONDITION)
    masked = torch.zeros(2, TOKENS, dtype=torch.bool)
    masked[:, 2] = True
    other = ids.clone()
    other[:, 2] = (ids[:, 2] + 1) % VOCABULARY
    torch.testing.assert_close(prior(ids, masked, known), prior(other, masked, known))
    other[:, 0] = (ids[:, 0] + 1) % VOCABULARY  # later and earlier tokens are both read
    assert not torch.allclose(prior(ids, masked, known)[:, 2], prior(other, masked, known)[:, 2])


def test_its_likelihood_sums_to_one(prior):
    small = MaskedPrior(2, vocabulary=3, condition=CONDITION, config=CONFIG).eval()
    for weight in small.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    ids = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    known = torch.randn(1, 2, CONDITION).expand(9, -1, -1)
    assert small.log_prob(ids, known).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_tokens_of_a_grid_are_drawn_together():
    """All tokens are equal, to one of two ids: drawn independently, one grid in 8 would be."""
    torch.manual_seed(0)
    prior = MaskedPrior(4, vocabulary=2, condition=1, config=replace(CONFIG, draft=4, rounds=0))
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    known = torch.zeros(64, 4, 1)
    for _ in range(60):
        loss = prior.loss(torch.randint(0, 2, (64, 1)).expand(-1, 4), known)
        optimizer.zero_grad()
        loss.nats.backward()
        optimizer.step()
    draw = prior.eval().sample(known, generator=torch.Generator().manual_seed(0))
    equal = (draw == draw[:, :1]).all(-1)
    assert equal.float().mean() > 0.9 and 0.2 < draw[:, 0].float().mean() < 0.8


def test_without_a_generator_the_likeliest_is_the_same_each_time(prior):
    known = torch.randn(3, TOKENS, CONDITION)
    first = prior.sample(known, temperature=0.0)
    assert torch.equal(prior.sample(known, temperature=0.0), first)
    assert torch.equal(prior.sample(known[1:2], temperature=0.0), first[1:2])


def test_a_draft_of_one_step_takes_all_tokens_as_independent(prior):
    known = torch.randn(4, TOKENS, CONDITION)
    nothing = torch.zeros(4, TOKENS, dtype=torch.long)
    alone = prior(nothing, torch.ones(4, TOKENS, dtype=torch.bool), known).argmax(-1)
    assert torch.equal(prior.sample(known, temperature=0.0, draft=1), alone)


def test_wrong_grids_and_settings_are_refused(prior):
    ids = torch.zeros(2, TOKENS + 1, dtype=torch.long)
    with pytest.raises(ShapeError, match=r"MaskedPrior.ids: found shape \(2, 7\)"):
        prior(ids, ids.bool(), torch.zeros(2, TOKENS, CONDITION))
    with pytest.raises(ShapeError, match="MaskedPrior.conditions"):
        prior(ids[:, 1:], ids[:, 1:].bool(), torch.zeros(2, TOKENS, CONDITION + 1)[:1])
    with pytest.raises(ConfigError, match="width: found 18, need a multiple of 2 heads=8"):
        MaskedPrior.Config(width=18)
    with pytest.raises(ConfigError, match=r"MaskedPrior\.draft"):
        MaskedPrior.Config(draft=0)


@pytest.mark.parametrize("block", [1, 3])
def test_block_causal_attention_sees_its_block_and_what_is_before(block):
    torch.manual_seed(0)
    body = Transformer(16, layers=2, heads=2, span=block)
    x = torch.randn(1, 9, 16)
    found = body(x)
    for changed in range(9):
        other = x.clone()
        other[:, changed] += 1
        differs = ((body(other) - found).abs().amax(-1) > 1e-6)[0]
        first = changed // block * block
        assert not differs[:first].any() and differs[first:].all()
    cache = Cache(body, 1, 9)
    parts = [body(some, cache) for some in (x[:, :6], x[:, 6:])]
    torch.testing.assert_close(torch.cat(parts, dim=1), found)
    cache = Cache(body, 1, 9)
    parts = [body(some, cache) for some in x.split(3, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), found)
