"""ElasticTok: prefixes, block-causal attention, segments, the search for a length, training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from trainings import settings, stored

from latentplan import config
from latentplan.api.train import train
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, ShapeError, StoreError
from latentplan.protocols import Illustrated, ScalarTokenizer, Tokenizer
from latentplan.tokenizers.elastictok import ElasticTok
from latentplan.tokenizers.prefix_search import bisect, scan
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, ArraySpec, Batch, Spec, Tokens

SIDE, SLOTS = 16, 16
SPEC = Spec(
    {key: ArraySpec((SIDE, SIDE, 3), "uint8") for key in ("rgb", "wrist")},
    ActionSpec((-1.0,), (1.0,)),
)
TINY = {"patch": 4, "width": 16, "layers": 1, "heads": 2, "levels": (5, 5, 5), "min_tokens": 2}


def images(rows: int = 2, frames: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return images of random squares of one colour."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for key in SPEC.observation:
        cells = torch.randint(0, 256, (rows, frames, 4, 4, 3), generator=draw, dtype=torch.uint8)
        found[key] = cells.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    return found


def batch(seed: int, rows: int = 6, frames: int = 2) -> Batch:
    segments = torch.arange(rows)[:, None].expand(-1, frames)
    return Batch(images(rows, frames, seed), torch.zeros(rows, frames - 1, 1), segments=segments)


def made(steps: int = 0, **changes) -> ElasticTok:
    """Return a tokenizer, trained a little on one batch."""
    torch.manual_seed(0)
    tokenizer = ElasticTok(SPEC, ElasticTok.Config(**{**TINY, **changes}))
    for weight in tokenizer.parameters():  # nothing is almost zero, so that what leaks is seen
        weight.data += 0.1 * torch.randn_like(weight)
    optimizer = torch.optim.Adam(tokenizer.parameters(), 1e-2)
    for _ in range(steps + 1):  # the first sets the statistics before the quantizer
        loss = tokenizer.loss(batch(0)).total
        if steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return tokenizer.eval()


@pytest.fixture(scope="module")
def trained() -> ElasticTok:
    return made(25)


def errors(tokenizer: ElasticTok, frames: dict[str, torch.Tensor], tokens: Tokens) -> torch.Tensor:
    """Return the squared error (B, T / frames, cameras) of each block, images in [-1, 1]."""
    shown = tokenizer.decode(tokens)
    each = [(shown[key] / 127.5 - frames[key] / 127.5).square() for key in tokenizer.images]
    found = torch.stack(each, dim=2)  # b t v h w c
    return found.unflatten(1, (-1, tokenizer.stride)).mean((2, 4, 5, 6))


def test_a_block_keeps_exactly_the_first_tokens_and_ids_alone_decode_the_same(trained):
    frames = images()
    lengths = torch.randint(2, SLOTS + 1, (2, 4, 2), generator=torch.Generator().manual_seed(1))
    tokens = trained.encode(frames, lengths=lengths)
    kept = tokens.mask.unflatten(-1, (2, SLOTS))
    assert torch.equal(kept.sum(-1), lengths)
    assert torch.equal(kept, torch.arange(SLOTS) < lengths[..., None])
    full = trained.encode(frames)
    assert full.mask.all() and torch.equal(tokens.ids[tokens.mask], full.ids[tokens.mask])
    assert len(tokens.ids[~tokens.mask].unique()) == 1  # the code 0
    cut = [Tokens(tokens.ids), Tokens(full.ids, tokens.mask)]
    alone, masked = map(trained.decode, cut)
    assert all(torch.equal(alone[key], masked[key]) for key in frames)
    cut = trained.truncate(full, 5)
    five = trained.encode(frames, lengths=torch.full((2, 4, 2), 5))
    assert torch.equal(cut.ids, five.ids) and torch.equal(cut.mask, five.mask)
    again = trained.truncate(tokens, 5).mask.unflatten(-1, (2, SLOTS))
    assert torch.equal(again.sum(-1), lengths.clamp(max=5))


def test_it_keeps_the_protocols_and_single_images_are_encoded_alone(trained):
    assert isinstance(trained, Tokenizer) and isinstance(trained, ScalarTokenizer)
    assert isinstance(trained, Illustrated) and trained.reads == ()
    assert (trained.stride, trained.tokens, trained.vocabulary) == (1, 2 * SLOTS, 125)
    frames = images()
    each = {key: value.flatten(0, 1)[:, None] for key, value in frames.items()}
    whole, alone = trained.encode(frames).ids, trained.encode(each).ids
    assert torch.equal(whole.flatten(0, 1), alone[:, 0]) and len(whole.unique()) > 20


@pytest.mark.parametrize("more", [{}, {"frames": 2}, {"frames": 2, "depth": 2}], ids=str)
def test_blocks_attend_to_earlier_blocks_alone(more):
    tokenizer = made(blocks=2, **more)
    size = tokenizer.stride
    assert tokenizer.reads == ("segments",) and tokenizer.window == 2 * size
    frames = images(frames=4 * size)
    block = dict(zip(range(4), range(0, 4 * size, size), strict=True))
    ids = tokenizer.encode(frames).ids
    changed = {key: value.clone() for key, value in frames.items()}
    for value in changed.values():
        value[:, block[1] : block[2]] = 255 - value[:, block[1] : block[2]]
    differs = (tokenizer.encode(changed).ids != ids).any(-1).any(0)
    assert differs.tolist() == [False, True, True, False]  # one layer, two blocks
    other = torch.where(torch.arange(4)[:, None] == 1, (ids + 1) % 125, ids)
    shown, after = tokenizer.decode(Tokens(ids)), tokenizer.decode(Tokens(other))
    moved = (shown["rgb"] != after["rgb"]).flatten(2).any(-1).any(0).unflatten(0, (4, size))
    assert moved.any(-1).tolist() == [False, True, True, False]


def test_clips_in_one_row_do_not_attend_to_each_other():
    tokenizer = made(blocks=3, layers=2)
    first, second = images(seed=1), images(seed=2)
    packed = {key: torch.cat([first[key], second[key]], dim=1) for key in first}
    segments = torch.tensor([[7] * 4 + [3] * 4]).expand(2, -1)
    tokens = tokenizer.encode(packed, segments=segments)
    alone = torch.cat([tokenizer.encode(each).ids for each in (first, second)], dim=1)
    assert torch.equal(tokens.ids, alone)
    assert not torch.equal(tokenizer.encode(packed).ids, alone)
    shown = tokenizer.decode(tokens, segments=segments)["rgb"]
    each = [tokenizer.decode(tokenizer.encode(clip))["rgb"] for clip in (first, second)]
    assert (shown.int() - torch.cat(each, dim=1).int()).abs().max() <= 1
    # The same in the gradient: the loss of one clip depends on the other only without segments.
    for of, leaks in ((segments, False), (None, True)):
        x = tokenizer._blocks(packed).requires_grad_()
        tokenizer._encoded(x, None, of)[:, 4:].square().sum().backward()
        assert bool(x.grad[:, :4].any()) == leaks


@st.composite
def losses(draw, monotone: bool) -> torch.Tensor:
    """Return whether each length passes, (blocks, lengths)."""
    rows, most = draw(st.integers(1, 5)), draw(st.integers(1, 70))
    numbers = st.lists(st.integers(0, 9), min_size=most, max_size=most)
    found = torch.tensor([draw(numbers) for _ in range(rows)])
    found = found.sort(dim=1, descending=True).values if monotone else found
    return found < draw(st.integers(0, 10))


def searched(good: torch.Tensor, least: int, method=bisect):
    calls = []

    def passes(lengths: torch.Tensor) -> torch.Tensor:
        calls.append(lengths)
        assert lengths.min() >= least and lengths.max() <= good.shape[1]
        return good.gather(1, lengths[:, None] - 1)[:, 0]

    start = torch.zeros(len(good), dtype=torch.long)
    found, passed = method(passes, start, least=least, most=good.shape[1])
    return found, passed, len(calls)


@examples(max_examples=25)
@given(losses(monotone=False), st.integers(1, 70))
def test_what_bisection_returns_has_passed_whatever_the_loss(good, least):
    least = min(least, good.shape[1])
    found, passed, calls = searched(good, least)
    assert calls == 1 + (good.shape[1] - least).bit_length()
    assert torch.equal(passed, passed & good.gather(1, found[:, None] - 1)[:, 0])
    assert (passed | ~good[:, -1]).all()  # 100 % of the blocks that pass with all tokens
    assert (found[~passed] == good.shape[1]).all()
    exact, any_passes, calls = searched(good, least, scan)
    assert calls == good.shape[1] - least + 1
    assert torch.equal(any_passes, good[:, least - 1 :].any(1)) and (exact <= found).all()
    assert good.gather(1, exact[:, None] - 1)[:, 0][any_passes].all()


@examples(max_examples=25)
@given(losses(monotone=True), st.integers(1, 70))
def test_bisection_of_a_loss_that_falls_is_exact(good, least):
    least = min(least, good.shape[1])
    assert all(map(torch.equal, searched(good, least)[:2], searched(good, least, scan)[:2]))


@pytest.mark.parametrize("changes", [{"condition": True, "frames": 2}, {"blocks": 2}], ids=str)
def test_a_search_keeps_the_error_of_every_block_below_the_threshold(changes):
    tokenizer, frames = made(25, **changes), images(6, 2)
    slots, blocks = tokenizer.slots, 2 // tokenizer.stride
    every = [errors(tokenizer, frames, tokenizer.encode(
        frames, lengths=torch.full((6, blocks, 2), n))) for n in (2, slots)
    ]  # fmt: skip
    assert every[1].mean() < every[0].mean()
    threshold = float(every[1].median() + every[0].median()) / 2
    for exact in (False, True):
        found = tokenizer.search(frames, threshold=threshold, exact=exact)
        error = errors(tokenizer, frames, found.tokens)
        assert (error[found.passed] < threshold + 1e-6).all()
        assert found.passed.any() and found.lengths.unique().numel() > 1
        assert (found.lengths[~found.passed] == slots).all()
        kept = found.tokens.mask.unflatten(-1, (2, slots)).sum(-1)
        assert torch.equal(kept, found.lengths)
        assert found.lengths.min() >= 2


def test_thresholds_that_no_length_and_every_length_passes(trained):
    frames = images()
    none, every = (trained.search(frames, threshold=t) for t in (1e-9, 4.0))
    assert not none.passed.any() and (none.lengths == SLOTS).all()
    assert every.passed.all() and (every.lengths == 2).all()
    strict = ElasticTok(SPEC, replace(trained.config, threshold=0.1)).eval()
    strict.load_state_dict(trained.state_dict())
    assert torch.equal(
        strict.encode(frames).ids, trained.search(frames, threshold=0.1).tokens.ids
    )


def test_the_encoder_is_given_the_length_only_if_asked_to():
    frames, few = images(), torch.full((2, 4, 2), 3)
    for condition in (False, True):
        tokenizer = made(3, condition=condition)
        cut, full = tokenizer.encode(frames, lengths=few), tokenizer.encode(frames)
        same = torch.equal(cut.ids[cut.mask], full.ids[cut.mask])
        assert same != condition


def test_lengths_are_random_in_training_and_the_same_in_evaluation(trained):
    tokenizer = made(min_tokens=3, max_tokens=7)
    blocks = tokenizer._blocks(images(50, 4))
    drawn = tokenizer.train()._random_lengths(blocks)
    assert drawn.unique().tolist() == [3, 4, 5, 6, 7]
    assert not torch.equal(drawn, tokenizer._random_lengths(blocks))
    even = tokenizer.eval()._random_lengths(blocks)
    assert torch.equal(even, tokenizer._random_lengths(blocks))
    assert even.unique(return_counts=True)[1].tolist() == [80] * 5
    assert tokenizer.encode(images()).mask.sum(-1).unique().tolist() == [14]  # max_tokens


MISTAKES = {
    "min_tokens: 9 is more than max_tokens=8": {"min_tokens": 9, "max_tokens": 8},
    "max_tokens: 17 is more than the 16 slots": {"max_tokens": 17},
    "min_tokens: 30 is more than the 16 slots": {"min_tokens": 30},
    "patch: 5 does not divide images of 16": {"patch": 5},
    "depth: 2 does not divide frames=3": {"frames": 3, "depth": 2},
    "width: 18 is not a multiple of 2 heads=4": {"width": 18},
    "threshold: nan is not within": {"threshold": float("nan")},
    "levels: 2 is not within": {"levels": (2, 2)},
}


@pytest.mark.parametrize("said", MISTAKES)
def test_settings_that_do_not_fit_are_one_line(said):
    with pytest.raises(ConfigError, match=f"ElasticTok.{said}") as caught:
        ElasticTok(SPEC, ElasticTok.Config(**{**TINY, **MISTAKES[said]}))
    assert "\n" not in str(caught.value)


def test_frames_that_do_not_fit_are_one_line(trained):
    frames = images()
    nan = {key: value.float() * float("nan") for key, value in frames.items()}
    wrong = {
        "found torch.float32, need uint8": nan,
        "found 0 frames": {key: value[:, :0] for key, value in frames.items()},
        "found shape (2, 4, 8, 16, 3)": {key: value[:, :, :8] for key, value in frames.items()},
    }
    for said, each in wrong.items():
        for call in (trained.encode, lambda x: trained.search(x, threshold=0.1)):
            with pytest.raises(ShapeError) as caught:
                call(each)
            assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ShapeError, match="found 3 frames, need a multiple of 2"):
        made(frames=2).encode(images(frames=3))
    for threshold in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"ElasticTok.search.threshold"):
            trained.search(frames, threshold=threshold)
    with pytest.raises(ConfigError, match=r"truncate.length: 0"):
        trained.truncate(trained.encode(frames), 0)
    with pytest.raises(ShapeError, match=r"lengths: found shape \(2, 4\)"):
        trained.encode(frames, lengths=torch.ones(2, 4))
    with pytest.raises(ShapeError, match="segments"):
        made(blocks=2).encode(frames, segments=torch.zeros(2, 3))


@pytest.mark.parametrize(("preset", "side"), [("elastictok_cpu", 64), ("elastictok_gpu", 256)])
def test_presets_build(preset, side):
    own = {"tokenizer": config.resolve("tokenizer", preset).values["tokenizer"]}
    few = ["tokenizer.layers=1", "tokenizer.width=64"]  # the published network has 210 M weights
    filled = config.load({"tokenizer": ElasticTok.Config}, preset=own, overrides=few)["tokenizer"]
    spec = replace(SPEC, observation={"rgb": ArraySpec((side, side, 3), "uint8")})
    tokenizer = ElasticTok(spec, filled)
    assert (tokenizer.slots, tokenizer.vocabulary) == ((side // 8) ** 2 * filled.frames, 64_000)
    assert tokenizer.longest == tokenizer.slots


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("elastictok") / "squares.zarr")


SMALL = ["patch=8", "width=16", "layers=1", "heads=2", "levels=[5,5,5]"]


def test_a_trained_run_is_shown_from_few_to_all_tokens(data, tmp_path):
    small = [f"tokenizer.{each}" for each in (*SMALL, "blocks=2")]
    run = train("elastictok", data=data, run=tmp_path / "run",
                overrides=[*settings("tokenizer", "elastictok"), *small])  # fmt: skip
    assert {"psnr", "usage", "perplexity"} <= run.figures.keys()
    model = checkpoint.load(tmp_path / "run" / "best.safetensors", kind="tokenizer").model
    with ZarrStore.open(data) as store:
        ((shown, about),) = model.illustrate(store, tmp_path)
    assert all(f"{n}: " in about for n in (4, 8, 16, 32, 64)) and shown.stat().st_size > 1000
    assert model.config.blocks == 2 and model.window == 2
    other = replace(SPEC, observation={"depth": ArraySpec((3,))})
    with ZarrStore.create(tmp_path / "other.zarr", other) as store:
        with pytest.raises(StoreError, match="has no images rgb"):
            list(model.illustrate(store, tmp_path))


def test_videogpt_trains_on_its_tokens(data, tmp_path):
    chosen = [f"model.tokenizer.{each}" for each in ("name=elastictok", *SMALL)]
    chosen += ["model.clip=4", *(f"model.prior.{each}" for each in (
        "width=16", "layers=1", "heads=2", "channels=8"))]  # fmt: skip
    run = train("videogpt", data=data, run=tmp_path / "run",
                overrides=[*settings("model", "videogpt"), *chosen])  # fmt: skip
    model = checkpoint.load(run.checkpoint).model
    assert isinstance(model.tokenizer, ElasticTok) and np.isfinite(list(run.figures.values())).all()
    frames = {"rgb": torch.zeros(1, 4, 64, 64, 3, dtype=torch.uint8)}
    assert model.log_prob(frames).isfinite().all()
    assert model.sample(frames, 2)["rgb"].shape == (1, 2, 64, 64, 3)


VIDEOWORLD = [
    *(f"model.tokenizer.{each}" for each in ("name=elastictok", *SMALL)),
    *("model.ldm.patch=8", "model.ldm.channels=[16]", "model.ldm.levels=[3,3]"),
    *("model.ldm.horizon=2", "model.ldm.decoded=1", "model.transformer.horizon=2"),
    *("model.transformer.width=32", "model.transformer.layers=1", "model.inverse.width=16"),
    *("model.inverse.chunk=2", "model.dynamics.width=16", "model.dynamics.layers=1"),
]


def test_videoworld_plans_with_its_tokens():
    from latentplan.models.videoworld.videoworld import VideoWorld

    filled = config.load({"model": VideoWorld.Config}, overrides=VIDEOWORLD)["model"]
    spec = replace(SPEC, observation={"rgb": ArraySpec((64, 64, 3), "uint8")})
    model = VideoWorld(spec, filled).eval()
    frames = torch.randint(0, 256, (1, 2, 64, 64, 3), dtype=torch.uint8)
    latents = model.encode({"rgb": frames})
    assert latents.shape == (1, 2, 64 * 3) and model.decode(latents)["rgb"].shape == frames.shape
    rolled = model.rollout(latents[:, -1], torch.zeros(1, 3, 2, 1))
    assert rolled.shape == (1, 3, 2, 64 * 3) and rolled.isfinite().all()


@pytest.mark.slow
def test_videoworld_trains_on_its_tokens(data, tmp_path):
    run = train("videoworld", data=data, run=tmp_path / "run",
                overrides=[*settings("model", "videoworld"), *VIDEOWORLD])  # fmt: skip
    assert isinstance(checkpoint.load(run.checkpoint).model.tokenizer, ElasticTok)


def test_a_preset_of_a_tokenizer_fills_a_part():
    from latentplan.models.videogpt.videogpt import VideoGPT

    filled = config.load({"model": VideoGPT.Config}, overrides=["model.tokenizer=elastictok_cpu"])
    part = filled["model"].tokenizer
    assert part.name == "elastictok" and part.config.levels == (8, 8, 8, 5, 5, 5)
