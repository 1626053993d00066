"""What every registered tokenizer keeps: shapes, ids in the vocabulary, rows that do not mix."""

import pytest
import torch

from latentplan import registry
from latentplan.errors import ShapeError
from latentplan.protocols import Learner, Tokenizer
from latentplan.types import ActionSpec, ArraySpec, Batch, Spec, Tokens

SPEC = Spec({"rgb": ArraySpec((64, 64, 3), "uint8")}, ActionSpec((-1.0,) * 4, (1.0,) * 4))
B, FRAMES = 2, 3  # problems, token frames
SETTINGS = {"vqvae": [{"quantizer": "vq"}]}  # to be held as well as the defaults
CASES = [
    (name, settings)
    for name in sorted(registry.BUILT_IN["tokenizer"])
    for settings in ({}, *SETTINGS.get(name, []))
]


@pytest.fixture(params=CASES, ids=str)
def tokenizer(request):
    torch.manual_seed(0)
    name, settings = request.param
    build = registry.get("tokenizer", name)
    made = build(SPEC, build.Config(**settings))
    made.loss(batch(made, seed=9))  # statistics, books: of some data
    return made.eval()


def images(tokenizer, seed=0):
    length = FRAMES * tokenizer.stride
    generator = torch.Generator().manual_seed(seed)
    plain = torch.randint(0, 256, (B, length, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return {"rgb": plain.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)}


def batch(tokenizer, seed=0):
    observations = images(tokenizer, seed)
    return Batch(observations, torch.zeros(B, observations["rgb"].shape[1] - 1, 4))


def test_ids_lie_in_the_vocabulary_and_come_back_as_images(tokenizer):
    assert isinstance(tokenizer, Tokenizer) and isinstance(tokenizer, Learner)
    tokens = tokenizer.encode(images(tokenizer))
    ids = tokens.ids
    assert ids.shape == (B, FRAMES, tokenizer.tokens) and ids.dtype == torch.int64
    assert 0 <= ids.min() and ids.max() < tokenizer.vocabulary
    assert tokens.mask is None or (tokens.mask.shape, tokens.mask.dtype) == (ids.shape, torch.bool)
    shown = tokenizer.decode(tokens)
    assert {key: (v.shape, v.dtype) for key, v in shown.items()} == {
        "rgb": ((B, FRAMES * tokenizer.stride, 64, 64, 3), torch.uint8)
    }


def test_other_images_have_other_ids(tokenizer):
    first, other = (tokenizer.encode(images(tokenizer, seed)).ids for seed in (0, 1))
    assert not torch.equal(first, other)


def test_the_same_twice(tokenizer):
    first, again = (tokenizer.encode(images(tokenizer)) for _ in range(2))
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(tokenizer.decode(first)["rgb"], tokenizer.decode(again)["rgb"])


def test_a_batch_of_one_is_a_row_of_a_batch(tokenizer):
    tokens = tokenizer.encode(images(tokenizer))
    alone = tokenizer.encode({"rgb": images(tokenizer)["rgb"][1:]})
    assert torch.equal(alone.ids[0], tokens.ids[1])
    one, row = tokenizer.decode(alone)["rgb"][0], tokenizer.decode(tokens)["rgb"][1]
    assert (one.int() - row.int()).abs().max() <= 1  # another order of sums, then rounded


def test_every_id_can_be_decoded(tokenizer):
    ids = torch.arange(tokenizer.tokens) * 7 % tokenizer.vocabulary
    last = torch.full_like(ids, tokenizer.vocabulary - 1)
    shown = tokenizer.decode(Tokens(torch.stack([ids, last])[None]))["rgb"]
    assert not torch.equal(shown[0, 0], shown[0, tokenizer.stride])


def test_too_few_tokens_are_refused(tokenizer):
    with pytest.raises(ShapeError, match="K="):
        tokenizer.decode(Tokens(tokenizer.encode(images(tokenizer)).ids[..., 1:]))


def test_it_learns_and_tells_how_well(tokenizer):
    seen = batch(tokenizer)
    tokenizer.train()
    optimiser = torch.optim.Adam(tokenizer.parameters(), 2e-3)
    losses = []
    for _ in range(8):
        loss = tokenizer.loss(seen)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(loss.total.item())
    assert losses[-1] < losses[0]
    assert {"psnr", "usage", "perplexity"} <= loss.parts.keys()
