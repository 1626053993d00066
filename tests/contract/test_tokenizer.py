"""What every registered tokenizer keeps: shapes, ids in the vocabulary, rows that do not mix."""

import pytest
import torch

from latentplan import registry
from latentplan.errors import ShapeError
from latentplan.protocols import Tokenizer
from latentplan.types import ActionSpec, ArraySpec, Batch, Spec

SPEC = Spec({"rgb": ArraySpec((64, 64, 3), "uint8")}, ActionSpec((-1.0,) * 4, (1.0,) * 4))
B, T = 2, 3
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
    made.loss(Batch(pictures(seed=9), torch.zeros(B, T - 1, 4)))  # statistics, books: of some data
    return made.eval()


def pictures(seed=0):
    generator = torch.Generator().manual_seed(seed)
    plain = torch.randint(0, 256, (B, T, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return {"rgb": plain.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)}


def test_ids_lie_in_the_vocabulary_and_come_back_as_pictures(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    ids = tokenizer.encode(pictures())
    assert ids.shape == (B, T, tokenizer.tokens) and ids.dtype == torch.int64
    assert 0 <= ids.min() and ids.max() < tokenizer.vocabulary
    shown = tokenizer.decode(ids)
    assert {key: (v.shape, v.dtype) for key, v in shown.items()} == {
        "rgb": ((B, T, 64, 64, 3), torch.uint8)
    }


def test_other_pictures_have_other_ids(tokenizer):
    assert not torch.equal(tokenizer.encode(pictures()), tokenizer.encode(pictures(1)))


def test_the_same_twice(tokenizer):
    first, again = (tokenizer.encode(pictures()) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(tokenizer.decode(first)["rgb"], tokenizer.decode(again)["rgb"])


def test_a_batch_of_one_is_a_row_of_a_batch(tokenizer):
    ids = tokenizer.encode(pictures())
    alone = tokenizer.encode({"rgb": pictures()["rgb"][1:, 2:]})
    assert torch.equal(alone[0, 0], ids[1, 2])
    one, row = tokenizer.decode(alone)["rgb"][0, 0], tokenizer.decode(ids)["rgb"][1, 2]
    assert (one.int() - row.int()).abs().max() <= 1  # another order of sums, then rounded


def test_every_id_can_be_drawn(tokenizer):
    ids = torch.arange(tokenizer.tokens) * 7 % tokenizer.vocabulary
    last = torch.full_like(ids, tokenizer.vocabulary - 1)
    shown = tokenizer.decode(torch.stack([ids, last])[None])["rgb"]
    assert not torch.equal(shown[0, 0], shown[0, 1])


def test_too_few_tokens_are_refused(tokenizer):
    with pytest.raises(ShapeError, match="K="):
        tokenizer.decode(tokenizer.encode(pictures())[..., 1:])


def test_it_learns_and_tells_how_well(tokenizer):
    batch = Batch(pictures(), torch.zeros(B, T - 1, 4))
    tokenizer.train()
    optimiser = torch.optim.Adam(tokenizer.parameters(), 2e-3)
    losses = []
    for _ in range(8):
        loss = tokenizer.loss(batch)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(loss.total.item())
    assert losses[-1] < losses[0]
    assert {"psnr", "usage", "perplexity"} <= loss.parts.keys()
