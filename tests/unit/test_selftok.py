"""Selftok: the order of tokens over diffusion time, the flow decoder, prefixes, training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from trainings import settings, stored

from latentplan import config
from latentplan.api.train import train
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, ShapeError, StoreError
from latentplan.protocols import Illustrated, ScalarTokenizer, Tokenizer
from latentplan.tokenizers.selftok import flow_decoder
from latentplan.tokenizers.selftok.selftok import PositionNorm, Selftok, times
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, ArraySpec, Batch, Spec, Tokens

SIDE, COUNT = 16, 8
SPEC = Spec(
    {key: ArraySpec((SIDE, SIDE, 3), "uint8") for key in ("rgb", "wrist")},
    ActionSpec((-1.0,), (1.0,)),
)
TINY = {
    "tokens": COUNT, "patch": 2, "channels": 8, "width": 16, "layers": 1, "heads": 2,
    "decoder_width": 16, "decoder_layers": 1, "decoder_heads": 2, "levels": (5, 5, 5),
}  # fmt: skip


def images(rows: int = 2, frames: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return images of random squares of one colour."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for key in SPEC.observation:
        cells = torch.randint(0, 256, (rows, frames, 2, 2, 3), generator=draw, dtype=torch.uint8)
        found[key] = cells.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    return found


def batch(seed: int = 0, rows: int = 12) -> Batch:
    return Batch(images(rows, 1, seed), torch.zeros(rows, 0, 1))


def made(steps: int = 0, **changes) -> Selftok:
    """Return a tokenizer, trained a little on one batch."""
    torch.manual_seed(0)
    tokenizer = Selftok(SPEC, Selftok.Config(**{**TINY, **changes}))
    for weight in tokenizer.parameters():  # nothing is almost zero, so that what leaks is seen
        weight.data += 0.05 * torch.randn_like(weight)
    optimizer = torch.optim.Adam(tokenizer.parameters(), 1e-2)
    for _ in range(steps + 1):  # the first sets the statistics of the images and the numbers
        loss = tokenizer.loss(batch()).total
        if steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return tokenizer.eval()


@pytest.fixture(scope="module")
def trained() -> Selftok:
    return made(60)


def psnr(tokenizer: Selftok, frames: dict[str, torch.Tensor], tokens: Tokens, **more) -> float:
    shown = tokenizer.decode(tokens, **more)
    away = [(shown[key].float() - frames[key].float()) / 127.5 for key in frames]
    return float(-10 * torch.log10(torch.stack(away).square().mean() / 4))


def test_it_keeps_the_protocols(trained):
    assert isinstance(trained, Tokenizer) and isinstance(trained, ScalarTokenizer)
    assert isinstance(trained, Illustrated)
    assert (trained.stride, trained.tokens, trained.vocabulary) == (1, 2 * COUNT, 125)
    assert made(quantizer="vq").levels == ()  # VideoWorld then refuses it


def test_the_published_schedule_keeps_as_many_tokens_as_the_paper():
    given = times(512, (16, 48, 72, 184, 192))
    # At t the paper gives the tokens of index 0 to k(t): pure noise all, the clean end one.
    for t, last in ((1.0, 511), (0.8, 496), (0.6, 448), (0.4, 376), (0.2, 192), (0.0, 0)):
        assert int((given <= t + 1e-6).sum()) == last + 1, t
    assert (given.diff() < 0).all()  # the first token is lost first
    even = times(10, (1,))
    assert torch.allclose(even, torch.linspace(0.9, 0, 10))
    assert torch.allclose(times(4, (3, 1)), torch.tensor([5 / 6, 2 / 3, 0.5, 0.0]))


def test_the_decoder_reads_only_the_tokens_of_its_time(trained):
    n = 2 * len(SPEC.observation)
    vectors = torch.randn(n, COUNT, 16, requires_grad=True)
    x = torch.randn(n, 3, SIDE, SIDE)
    for t in (1.0, 0.75, 0.5, 0.1, 0.0):
        at = torch.full((n,), t)
        out = trained.decoder.velocity(x, at, trained._given(vectors, at, None))
        (slope,) = torch.autograd.grad(out.square().sum(), vectors)
        reads = slope.abs().sum((0, 2)) > 0
        assert torch.equal(reads, t >= trained.until), t


def test_the_exact_network_would_follow_the_straight_path_from_noise_to_the_image():
    x, noise = torch.randn(2, 5, 3, 8, 8).unbind()
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    at, target = flow_decoder.noised(x, noise, t)
    assert torch.equal(target[-1], x[-1]) and torch.equal(target[0], -noise[0])
    assert torch.equal(at[-1], noise[-1]) and torch.equal(at[0], x[0])
    assert 0.8 < float(target.var()) < 1.2

    class Exact(flow_decoder.FlowDecoder):
        def forward(self, noised, t, vectors):
            return target

    decoder = Exact(side=8, tokens=1, patch=2, channels=8, width=16, layers=1, heads=2)
    velocity = decoder.velocity(at, t, torch.zeros(5, 1, 16))
    assert torch.allclose(velocity, noise - x, atol=1e-5)


def test_cells_do_not_read_queries_and_queries_read_all(trained):
    x = torch.randn(2, 3, SIDE, SIDE, requires_grad=True)
    out = trained._encoded(x)
    (slope,) = torch.autograd.grad(out[0, 0].sum(), x)
    assert (slope[0].abs().sum(0) > 0).float().mean() > 0.9 and not slope[1].any()
    first = trained._encoded(x)
    trained.queries.data[0, 1] += 1  # of the first camera
    second = trained._encoded(x)
    trained.queries.data[0, 1] -= 1
    assert (first != second).any(-1).any(-1).tolist() == [True, False]


def test_more_tokens_and_the_right_order_decode_a_better_image(trained):
    frames = batch().observations
    full = trained.encode(frames)
    few = [psnr(trained, frames, trained.truncate(full, n)) for n in (0, 2, COUNT)]
    assert few[0] < few[1] < few[2]
    wrong = {"rgb": full.ids.roll(1, 0), "reversed": full.ids.flip(-1)}
    assert all(psnr(trained, frames, Tokens(ids)) < few[2] - 0.5 for ids in wrong.values())
    assert psnr(trained, frames, full, steps=8) > few[0]  # samples, and of the right image


def test_a_prefix_hides_the_other_tokens(trained):
    full = trained.encode(images())
    cut = trained.truncate(full, 3)
    place = torch.arange(2 * COUNT) % COUNT
    assert torch.equal(cut.mask, (place < 3).expand_as(cut.ids))
    changed = Tokens(torch.where(cut.mask, cut.ids, (cut.ids + 1) % 125), cut.mask)
    shown, same = trained.decode(cut), trained.decode(changed)
    assert all(torch.equal(shown[key], same[key]) for key in shown)
    other = trained.decode(Tokens((cut.ids + 1) % 125, cut.mask))
    assert not torch.equal(shown["rgb"], other["rgb"])
    assert torch.equal(trained.truncate(cut, 5).mask, cut.mask)


def test_each_position_is_normalised_over_images():
    norm = PositionNorm(3, 4)
    apart = 100 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    for _ in range(100):
        out = norm(apart + 0.1 * torch.randn(64, 3, 4))
    assert out.mean(0).abs().max() < 0.5 and 0.4 < out.var(0).min() < out.var(0).max() < 2
    seen = apart + 0.1 * torch.randn(1000, 3, 4)
    mean = norm.eval().mean.clone()
    assert (norm(seen).mean(0).abs() < 0.3).all() and torch.equal(norm.mean, mean)
    assert torch.equal(norm(seen[:1]), norm(seen)[:1])  # of one image as of many


def test_tokens_of_a_position_differ_between_images(trained):
    ids = trained.encode(batch(seed=3, rows=40).observations).ids[:, 0]
    assert min(len(each.unique()) for each in ids.T) > 3


def test_only_training_draws_prefixes_and_some_images_are_pure_noise():
    tokenizer = made(dropout=0.5, noise=0.25)
    torch.manual_seed(0)
    assert tokenizer._random_prefixes(400, device="cpu") is None
    shown = tokenizer.train()._random_prefixes(400, device="cpu")
    lengths = shown.sum(1)
    assert set(lengths.tolist()) == set(range(COUNT + 1))
    assert 0.4 < float((lengths == COUNT).float().mean()) < 0.6
    assert (shown == (torch.arange(COUNT) < lengths[:, None])).all()
    t, pure = tokenizer._random_times(400, device="cpu")
    assert pure == 100 and (t[:100] == 1).all()
    assert t.min() >= 0 and t.max() <= 1 and 0.4 < float(t[100:].mean()) < 0.6


def test_images_are_normalised_by_running_statistics(trained):
    x = trained._normalised(trained._stacked(batch().observations))
    assert abs(float(x.mean())) < 0.05 and 0.9 < float(x.var()) < 1.1
    mean = trained.mean.clone()
    trained.loss(batch(seed=5))  # an evaluation
    assert torch.equal(trained.mean, mean)


def test_equal_images_and_nan_are_no_crash():
    tokenizer = made()
    black = {key: torch.zeros_like(x) for key, x in batch().observations.items()}
    tokenizer.train()
    for _ in range(3):
        loss = tokenizer.loss(Batch(black, torch.zeros(12, 0, 1)))
        loss.total.backward()
    assert loss.total.isfinite() and all(p.grad.isfinite().all() for p in tokenizer.parameters()
                                         if p.grad is not None)  # fmt: skip
    assert tokenizer.eval().encode(black).ids.shape == (12, 1, 2 * COUNT)


MISTAKES = {
    "tokens: 0 must be at least 1": {"tokens": 0},
    "schedule: found none": {"schedule": ()},
    "schedule: 0 is not within": {"schedule": (0, 1)},
    "schedule: nan is not within": {"schedule": (float("nan"),)},
    "patch: two maps of patch=3 need images whose side is a multiple of 6, found 16": {"patch": 3},
    "width: 24 is not a multiple of 2 heads=32": {"width": 24, "heads": 16},
    "decoder_width: 24 is not a multiple of 2 decoder_heads=32": {
        "decoder_width": 24, "decoder_heads": 16
    },
    "channels: 12 is not a multiple of 8": {"channels": 12},
    "levels: 2 is not within": {"levels": (2, 2)},
    "quantizer: 'ema' is not one of": {"quantizer": "ema"},
    "dropout: 1.5 is not within": {"dropout": 1.5},
    "steps: 0 must be at least 1": {"steps": 0},
}  # fmt: skip


@pytest.mark.parametrize("said", MISTAKES)
def test_settings_that_do_not_fit_are_one_line(said):
    with pytest.raises(ConfigError, match=f"Selftok.{said}") as caught:
        Selftok(SPEC, Selftok.Config(**{**TINY, **MISTAKES[said]}))
    assert "\n" not in str(caught.value)


def test_frames_that_do_not_fit_are_one_line(trained):
    frames = images()
    wrong = {
        "found torch.float32, need uint8": {k: x * float("nan") for k, x in frames.items()},
        "found shape (2, 3, 8, 16, 3)": {k: x[:, :, :8] for k, x in frames.items()},
    }
    for said, each in wrong.items():
        with pytest.raises(ShapeError) as caught:
            trained.encode(each)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    tokens = trained.encode(frames)
    with pytest.raises(ConfigError, match=r"Selftok.truncate.length: 9"):
        trained.truncate(tokens, 9)
    with pytest.raises(ConfigError, match=r"Selftok.decode.steps: -1"):
        trained.decode(tokens, steps=-1)


@pytest.mark.parametrize(
    ("preset", "side", "tokens", "codes"),
    [("cpu", 64, 64, 1000), ("gpu", 128, 64, 8000), ("published", 256, 512, 32_768)],
)
def test_presets_build(preset, side, tokens, codes):
    own = {"tokenizer": config.resolve("tokenizer", f"selftok_{preset}").values["tokenizer"]}
    few = ["layers=1", "decoder_layers=1", "width=64", "decoder_width=64", "heads=4"]
    few = [f"tokenizer.{each}" for each in (*few, "decoder_heads=4")]
    filled = config.load({"tokenizer": Selftok.Config}, preset=own, overrides=few)["tokenizer"]
    spec = replace(SPEC, observation={"rgb": ArraySpec((side, side, 3), "uint8")})
    tokenizer = Selftok(spec, filled)
    assert (tokenizer.tokens, tokenizer.vocabulary) == (tokens, codes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("selftok") / "squares.zarr")


SMALL = ["patch=8", "tokens=16", "channels=8", "width=16", "layers=1", "heads=2",
         "decoder_width=16", "decoder_layers=1", "decoder_heads=2", "levels=[5,5,5]"]  # fmt: skip


def test_a_trained_run_is_shown_from_few_to_all_tokens(data, tmp_path):
    run = train("selftok", data=data, run=tmp_path / "run", overrides=[
        *settings("tokenizer", "selftok"), *(f"tokenizer.{each}" for each in SMALL)])  # fmt: skip
    assert {"psnr", "usage", "perplexity"} <= run.figures.keys()
    model = checkpoint.load(tmp_path / "run" / "best.safetensors", kind="tokenizer").model
    with ZarrStore.open(data) as store:
        ((shown, about),) = model.illustrate(store, tmp_path)
    assert all(f" {n}: " in about for n in (1, 2, 4, 8, 16)) and shown.stat().st_size > 1000
    other = replace(SPEC, observation={"depth": ArraySpec((3,))})
    with ZarrStore.create(tmp_path / "other.zarr", other) as store:
        with pytest.raises(StoreError, match="has no images rgb"):
            list(model.illustrate(store, tmp_path))


def test_videogpt_trains_on_its_tokens(data, tmp_path):
    chosen = [f"model.tokenizer.{each}" for each in ("name=selftok", *SMALL)]
    chosen += ["model.clip=4", *(f"model.prior.{each}" for each in (
        "width=16", "layers=1", "heads=2", "channels=8"))]  # fmt: skip
    run = train("videogpt", data=data, run=tmp_path / "run",
                overrides=[*settings("model", "videogpt"), *chosen])  # fmt: skip
    model = checkpoint.load(run.checkpoint).model
    assert isinstance(model.tokenizer, Selftok) and np.isfinite(list(run.figures.values())).all()
    frames = {"rgb": torch.zeros(1, 4, 64, 64, 3, dtype=torch.uint8)}
    assert model.log_prob(frames).isfinite().all()
    assert model.sample(frames, 2)["rgb"].shape == (1, 2, 64, 64, 3)


def test_videoworld_plans_with_its_tokens():
    from latentplan.models.videoworld.videoworld import VideoWorld

    small = [
        *(f"model.tokenizer.{each}" for each in ("name=selftok", *SMALL)),
        *("model.ldm.patch=8", "model.ldm.channels=[16]", "model.ldm.levels=[3,3]"),
        *("model.ldm.horizon=2", "model.ldm.decoded=1", "model.transformer.horizon=2"),
        *("model.transformer.width=32", "model.transformer.layers=1", "model.inverse.width=16"),
        *("model.inverse.chunk=2", "model.dynamics.width=16", "model.dynamics.layers=1"),
    ]
    filled = config.load({"model": VideoWorld.Config}, overrides=small)["model"]
    spec = replace(SPEC, observation={"rgb": ArraySpec((64, 64, 3), "uint8")})
    model = VideoWorld(spec, filled).eval()
    frames = torch.randint(0, 256, (1, 2, 64, 64, 3), dtype=torch.uint8)
    latents = model.encode({"rgb": frames})
    assert latents.shape == (1, 2, 16 * 3) and model.decode(latents)["rgb"].shape == frames.shape
    rolled = model.rollout(latents[:, -1], torch.zeros(1, 3, 2, 1))
    assert rolled.shape == (1, 3, 2, 16 * 3) and rolled.isfinite().all()
