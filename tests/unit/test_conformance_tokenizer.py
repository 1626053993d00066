"""The checks of tokenizers find what is broken: one that keeps all, and one that breaks each."""

from dataclasses import dataclass

import pytest
import torch

from latentplan.conformance.suite import Broken, Subject, checks, run
from latentplan.errors import ShapeError
from latentplan.types import Loss, Tokens

CELLS = 8  # a side


class Kept(torch.nn.Module):
    """Cells of an image in grey levels, of two frames together."""

    stride, tokens, vocabulary = 2, CELLS**2, 16
    window, targets, reads = 2, (), ()

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, spec, config=None):
        super().__init__()
        self.spec, self.config = spec, config
        self.grey = torch.nn.Parameter(torch.linspace(0, 0.9, self.vocabulary))

    def encode(self, observations):
        ids = self._ids(self._cells(observations))
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))

    def decode(self, tokens):
        if tokens.ids.shape[-1] != self.tokens:
            raise ShapeError("Kept.decode.ids: need K=64")
        cells = self.grey.detach()[tokens.ids].repeat_interleave(self.stride, 1)
        whole = cells.unflatten(2, (CELLS, CELLS)).repeat_interleave(8, 2).repeat_interleave(8, 3)
        whole = (255 * whole).clamp(0, 255).to(torch.uint8)
        return {"rgb": whole[..., None].expand(*whole.shape, 3)}

    def loss(self, batch):
        cells = self._cells(batch.observations)
        error = (self.grey[self._ids(cells)] - cells).square().mean()
        none = error.detach()
        return Loss(error, {"psnr": none, "usage": none, "perplexity": none})

    def _ids(self, cells):
        return (cells * self.vocabulary).long().clamp_max(self.vocabulary - 1)

    def _cells(self, observations):
        images = observations["rgb"]
        if images.shape[1] % self.stride:
            raise ShapeError("Kept.encode: T is no multiple of 2")
        cells = images.float().unflatten(2, (CELLS, 8)).unflatten(4, (CELLS, 8))
        return cells.mean((3, 5, 6)).flatten(2).unflatten(1, (-1, self.stride)).mean(2) / 255


def changed(encode=None, decode=None, base=Kept):
    """Return a class whose ids or images are changed."""

    class Changed(base):
        def encode(self, observations):
            tokens = super().encode(observations)
            return tokens if encode is None else encode(tokens)

        def decode(self, tokens):
            shown = super().decode(tokens)
            return shown if decode is None else {"rgb": decode(shown["rgb"])}

    return Changed


def noise(images):
    return (images + torch.randint(0, 9, images.shape)).to(torch.uint8)


class Extra(Kept):
    def decode(self, tokens):
        shown = super().decode(tokens)
        return {**shown, "depth": shown["rgb"]}


class Padding(Kept):
    def decode(self, tokens):
        missing = self.tokens - tokens.ids.shape[-1]
        return super().decode(Tokens(torch.nn.functional.pad(tokens.ids, (0, missing))))


class Cutting(Kept):
    def encode(self, observations):
        rgb = observations["rgb"]
        return super().encode({"rgb": rgb[:, : len(rgb[0]) // 2 * 2]})


class Rising(Kept):
    def loss(self, batch):
        found = super().loss(batch)
        return Loss(2 * found.total.detach() - found.total, found.parts)


class Silent(Kept):
    def loss(self, batch):
        return Loss(super().loss(batch).total, {})


BREAKS = [
    ("ids", changed(lambda t: Tokens(t.ids[:, 1:])), "ids have shape (2, 2, 64), need (2, 3, 64)"),
    ("ids", changed(lambda t: Tokens(t.ids.int())), "ids are torch.int32, need int64"),
    ("ids", changed(lambda t: Tokens(t.ids + 9)), ", vocabulary 16"),
    ("ids", changed(lambda t: Tokens(t.ids, t.mask.int())), "the mask is torch.int32"),
    ("decoded", Extra, "cameras ['depth', 'rgb'], of its spec ['rgb']"),
    (
        "decoded",
        changed(decode=lambda v: v[:, ::2]),
        "'rgb' has shape (2, 3, 64, 64, 3), need (2, 6",
    ),
    ("decoded", changed(decode=lambda v: v.float()), "'rgb' is torch.float32, need uint8"),
    ("others", changed(lambda t: Tokens(0 * t.ids)), "all ids are equal"),
    ("twice", changed(lambda t: Tokens(torch.randint_like(t.ids, 16))), "ids differ the second"),
    ("twice", changed(decode=noise), "images 'rgb' differ the second time"),
    ("rows", changed(lambda t: Tokens((t.ids + t.ids.sum(0)) % 16)), "ids differ, alone and"),
    ("rows", changed(decode=lambda v: v - v.amin(0)), "alone and in a batch"),
    ("every_id", changed(decode=lambda v: 0 * v), "two frames of different ids are equal"),
    ("too_few", Padding, "K - 1 tokens is accepted, need ShapeError"),
    ("too_few", Cutting, "T no multiple of the stride is accepted, need ShapeError"),
    ("loss", Rising, " at first and "),
    ("loss", Silent, "lack ['perplexity', 'psnr', 'usage']"),
]


def of(made):
    return Subject("tokenizer", "toy", made, made.Config())


def test_a_tokenizer_that_keeps_all_passes():
    assert [r for r in run(of(Kept)) if r.status != "ok"] == []


@pytest.mark.parametrize("check, made, found", BREAKS, ids=[f"{b[0]}-{b[2]}" for b in BREAKS])
def test_what_is_broken_is_found(check, made, found):
    with pytest.raises(Broken) as raised:
        checks("tokenizer")[check](of(made))
    assert found in str(raised.value)


def test_each_check_can_fail():
    assert {check for check, _, _ in BREAKS} == checks("tokenizer").keys()
