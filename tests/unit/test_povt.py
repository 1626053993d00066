"""POVT: boxes of objects, what each frame depends on, commanded boxes, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from moving_square import SIDE, SIZE, stored

from latentplan.api.train import train
from latentplan.errors import CheckpointError, ConfigError, ShapeError
from latentplan.models.povt.boxes import boxes_of, coverage, glimpses, symbols
from latentplan.models.povt.povt import POVT, object_spec
from latentplan.models.povt.prior import ObjectPrior, Video, nothing
from latentplan.protocols import Staged, TokenModel, VideoModel
from latentplan.tokenizers.vqvae import VQVAE
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, ArraySpec, Part, Spec

MEMORY, CLIP = 3, 4
RED, BLUE = (200, 60, 60), (60, 60, 200)
SPEC = Spec({"rgb": ArraySpec((SIDE, SIDE, 3), "uint8")}, ActionSpec((-1.0,) * SIZE, (1.0,) * SIZE))
TOKENIZER = VQVAE.Config(channels=(8,), blocks=0, levels=(3, 3))
PRIOR = ObjectPrior.Config(
    memory=MEMORY, bins=16, glimpse=8, frames=2, channels=8, width=16, layers=2, heads=2
)
CONFIG = POVT.Config(
    colours=(RED, BLUE), tokenizer=Part("tokenizer", "vqvae", TOKENIZER), prior=PRIOR
)
FEW = [
    *("model.tokenizer.channels=[8]", "model.tokenizer.blocks=0", "model.tokenizer.levels=[3,3]"),
    *("model.colours=[[200,60,60]]", "model.prior.memory=3", "model.prior.width=16"),
    *("model.prior.layers=1", "model.prior.heads=2", "model.prior.channels=8"),
    *(f"training.{stage}.{key}={value}" for stage in ("tokenizer", "prior") for key, value in {
        "steps": 4, "batch": 4, "eval_every": 2, "save_every": 2, "warmup": 1, "held_out": 0.3,
    }.items()),
]  # fmt: skip


def built(config: POVT.Config = CONFIG) -> POVT:
    torch.manual_seed(0)
    made = POVT(SPEC, config).eval().requires_grad_(False)
    for weight in made.prior.parameters():  # nothing is almost zero, so that what leaks is seen
        weight += 0.1 * torch.randn_like(weight)
    return made


@pytest.fixture(scope="module")
def model() -> POVT:
    return built()


def frames(length: int, *, blue: bool = True) -> dict[str, torch.Tensor]:
    """Return two videos of a red square that moves to the right, and a blue one."""
    images = torch.full((2, length, SIDE, SIDE, 3), 30, dtype=torch.uint8)
    for t in range(length):
        images[:, t, 2:6, 1 + t : 5 + t] = torch.tensor(RED, dtype=torch.uint8)
        if blue:
            images[:, t, 9:13, 8:14] = torch.tensor(BLUE, dtype=torch.uint8)
    return {"rgb": images}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_keeps_the_protocols(model):
    assert all(isinstance(model, each) for each in (VideoModel, TokenModel))
    assert issubclass(POVT, Staged) and not hasattr(model, "rollout")


def test_boxes_are_where_the_colours_are(model):
    found = model.boxes(frames(2, blue=False)) * SIDE
    assert found[0, :, 0].tolist() == [[3, 4, 4, 4], [4, 4, 4, 4]]  # x, y, width, height
    assert not found[:, :, 1].any()  # no blue
    shade = replace(CONFIG, background=(190, 70, 70)).boxes()
    image = frames(1)["rgb"]
    image[:, :, 7, 7] = torch.tensor((192, 70, 70), dtype=torch.uint8)  # nearest to the background
    assert torch.equal(shade(image), model.boxes(frames(1)))
    single = replace(CONFIG, least=17).boxes()(frames(1)["rgb"])
    assert not single[:, :, 0].any() and single[:, :, 1].all()  # 16 and 24 pixels


def test_symbols_are_boxes_and_back():
    boxes = torch.tensor([[0.25, 0.5, 0.125, 0.25], [0.0, 0.0, 0.0, 0.0]])
    found = symbols(boxes, 16)
    assert found.tolist() == [[1, 4, 8, 2, 4], [0, 0, 0, 0, 0]]
    assert torch.equal(boxes_of(found, 16), boxes)


def test_glimpses_are_what_the_boxes_hold(model):
    image = frames(1)["rgb"]
    seen = glimpses(image, model.boxes(frames(1)), 8)
    assert seen.shape == (2, 1, 2, 8, 8, 3)
    assert (seen[:, :, 0].float().mean((-3, -2)) - torch.tensor(RED)).abs().max() < 30
    assert torch.equal(seen[0, 0, 1, 4, 4], torch.tensor(BLUE, dtype=torch.uint8))
    assert not glimpses(image, torch.zeros(2, 1, 2, 4), 8).any()


def test_patches_have_the_share_that_a_box_covers():
    found = coverage(torch.tensor([[0.375, 0.25, 0.25, 0.5]]), 4).view(4, 4, 3)
    share = torch.zeros(4, 4)
    share[0:2, 1] = 1.0  # x of 0.25 to 0.5, y of 0 to 0.5
    assert torch.equal(found[..., 0], share)
    assert found[0, 1, 1:].tolist() == [0.0, -0.5] and found[1, 1, 1:].tolist() == [0.0, 0.5]


def video_of(length: int) -> Video:
    draw = seeded()
    boxes = torch.randint(0, 16, (2, length, 2, 5), generator=draw)
    boxes[..., 0] = 1
    pixels = torch.randint(0, 256, (2, length, 2, 8, 8, 3), generator=draw).to(torch.uint8)
    return Video(torch.randint(0, 9, (2, length, 16), generator=draw), boxes, pixels)


def test_tokens_see_two_frames_and_objects_all_of_the_memory(model):
    """What changes the last of four frames, if it is in an earlier one."""
    whole = video_of(CLIP)
    found = sum(model.prior.log_prob(whole))
    for place in range(CLIP - 1):
        tokens, boxes, pixels = (each.clone() for each in whole)
        tokens[:, place] = (tokens[:, place] + 1) % 9
        changed = sum(model.prior.log_prob(whole._replace(tokens=tokens))) != found
        # its own probability, and that of the next frame alone
        assert changed[0].tolist() == [place <= t <= place + 1 for t in range(CLIP)]
        boxes[:, place, 0, 1] = (boxes[:, place, 0, 1] + 1) % 16
        pixels[:, place, 1] = 255 - pixels[:, place, 1]
        for key, other in (("boxes", boxes), ("glimpses", pixels)):
            changed = sum(model.prior.log_prob(whole._replace(**{key: other}))) != found
            assert changed[0].tolist() == [t >= place + (key == "glimpses") for t in range(CLIP)]


def test_without_objects_it_is_a_model_of_two_frames():
    plain = built(replace(CONFIG, colours=()))
    assert not any("object" in name for name, _ in plain.prior.named_parameters())
    other = whole = nothing(video_of(CLIP).tokens)
    other = nothing(torch.cat([(whole.tokens[:, :1] + 1) % 9, whole.tokens[:, 1:]], dim=1))

    def changed(model):
        found, wanted = (model.prior.log_prob(each)[1][0] for each in (other, whole))
        return (found != wanted).tolist()

    assert changed(plain) == [True, True, False, False]
    wide = built(replace(CONFIG, colours=(), prior=replace(PRIOR, previous=3)))
    assert changed(wide) == [True, True, True, True]
    assert plain.sample(frames(2), 2)["rgb"].shape == (2, 2, SIDE, SIDE, 3)


def test_what_it_draws_has_the_probability_that_it_states(model):
    """What is drawn symbol by symbol are the likeliest, also for all symbols at once."""
    past, logits = video_of(MEMORY), []
    boxes, tokens = model.prior.draw(past, temperature=0.0)
    assert boxes.shape == (2, 2, 5) and tokens.shape == (2, 16)
    new = Video(tokens[:, None], boxes[:, None], past.glimpses[:, :1])
    whole = Video(*(torch.cat(pair, dim=1) for pair in zip(past, new, strict=True)))
    watched = [model.prior.head.register_forward_hook(lambda m, x, out: logits.append(out))]
    model.prior.log_prob(whole)
    watched[0].remove()
    assert torch.equal(logits[0].unflatten(0, (2, CLIP))[:, -1].argmax(-1), tokens)
    every = torch.ones(2, 2, dtype=torch.bool)
    again = model.prior.draw(past, boxes=boxes, commanded=every, temperature=0.0)
    assert torch.equal(again[0], boxes) and torch.equal(again[1], tokens)


def test_commanded_boxes_are_where_they_are_commanded(model, monkeypatch):
    drawn = []
    real = model.prior.draw
    monkeypatch.setattr(
        model.prior, "draw", lambda *a, **k: drawn.append(real(*a, **k)[0]) or (
            drawn[-1], real(*a, **k)[1])
    )  # fmt: skip
    boxes = torch.tensor([0.5, 0.25, 0.25, 0.25]).expand(2, 2, 1, 4)
    model.sample(frames(2), 2, boxes=boxes, generator=seeded())
    assert all(each[:, 0].tolist() == [[1, 8, 4, 4, 4]] * 2 for each in drawn)
    drawn.clear()
    both = boxes.expand(2, 2, 2, 4)
    some = torch.tensor([[False, True], [False, False]]).expand(2, 2, 2)
    model.sample(frames(2), 2, boxes=both, commanded=some, temperature=0.0)
    assert drawn[0][:, 1].tolist() == [[1, 8, 4, 4, 4]] * 2
    free = [d.clone() for d in drawn]
    drawn.clear()
    model.sample(frames(2), 1, temperature=0.0)
    assert torch.equal(free[0][:, 0], drawn[0][:, 0])  # what is not commanded is the model's


@pytest.mark.parametrize(("given", "steps"), [(1, 2), (2, 5), (7, 1)])
def test_samples_are_as_many_frames_as_asked_for(model, given, steps):
    shown = model.sample(frames(given), steps, generator=seeded())["rgb"]
    assert shown.shape == (2, steps, SIDE, SIDE, 3) and shown.dtype == torch.uint8
    assert torch.equal(shown, model.sample(frames(given), steps, generator=seeded())["rgb"])


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"memory": 0}, r"POVT\.prior\.memory"),
        ({"previous": 4}, "previous: found 4 frames, need at most memory=3"),
        ({"width": 18}, "width: found 18, 8 channels"),
        ({"bins": 257}, r"POVT\.prior\.bins"),
    ],
)
def test_what_the_prior_cannot_be(field, said):
    with pytest.raises(ConfigError, match=said):
        replace(PRIOR, **field)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="vocabulary: found 7, the tokenizer has 9 ids"):
        POVT(SPEC, replace(CONFIG, prior=replace(PRIOR, vocabulary=7)))
    with pytest.raises(ConfigError, match="video_vqvae takes 2 observations a token frame, need 1"):
        POVT(SPEC, replace(CONFIG, tokenizer=Part("tokenizer", "video_vqvae")))
    with pytest.raises(ConfigError, match=r"POVT.colours: found \[200, 60\], need red, green"):
        replace(CONFIG, colours=((200, 60),))
    with pytest.raises(ConfigError, match="no observation 'wrist'; the data have: rgb"):
        POVT(SPEC, replace(CONFIG, image="wrist"))


BOX = torch.tensor([0.5, 0.5, 0.25, 0.25]).expand(2, 1, 1, 4)


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        (BOX + torch.tensor([0.6, 0, 0, 0]), r"video 0, step 0, object 0: found \[1.1, 0.5, 0.25"),
        (BOX - torch.tensor([0, 0, 0.5, 0]), "outside the image; need shares of it in 0 to 1"),
        (BOX / 0, "found NaN or infinite numbers"),
        (BOX.expand(2, 1, 3, 4), "found 3 objects, need at most 2, one for each of model.colours"),
        (BOX.expand(2, 2, 1, 4), r"POVT.sample.boxes: found shape \(2, 2, 1, 4\)"),
    ],
)
def test_boxes_that_cannot_be_are_one_line(model, boxes, said):
    with pytest.raises(ShapeError, match=said) as caught:
        model.sample(frames(1), 1, boxes=boxes)
    assert "\n" not in str(caught.value)


def test_bad_frames_are_one_line(model):
    with pytest.raises(ShapeError, match="found 5 frames, need 1 to 4, the clip"):
        model.log_prob(frames(5))
    for call in (model.log_prob, lambda given: model.sample(given, 1)):
        with pytest.raises(ShapeError, match="found a clip of 0 frames"):
            call(frames(0))
    with pytest.raises(ShapeError, match=r"POVT.frames\['rgb'\]: found shape"):
        model.log_prob({"rgb": torch.zeros(2, 1, 32, 32, 3, dtype=torch.uint8)})
    with pytest.raises(ConfigError, match="steps"):
        model.sample(frames(1), 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("povt")
    train("povt", data=stored(folder / "data.zarr"), run=folder / "run", overrides=FEW)
    return folder / "run"


def test_it_trains_with_the_tokenizer_of_a_run(run, tmp_path):
    data = run.parent / "data.zarr"
    overrides = [*FEW, f"model.tokenizer.run={run}"]
    done = train("povt", data=data, run=tmp_path / "run", overrides=overrides)
    assert done.steps == 4 and done.figures["prior.boxes"] > 0  # the prior alone
    a, b = (checkpoint.load(each / "best.safetensors").model for each in (run, tmp_path / "run"))
    assert torch.equal(a.tokenizer.encode(frames(2)).ids, b.tokenizer.encode(frames(2)).ids)
    assert b.sample(frames(2), 2)["rgb"].shape == (2, 2, SIDE, SIDE, 3)


def test_images_of_another_size_than_the_tokenizers_are_refused(run, tmp_path):
    data = stored(tmp_path / "data.zarr", side=32)
    overrides = [*FEW, f"model.tokenizer.run={run}"]
    with pytest.raises(CheckpointError, match="tokenizer observes"):
        train("povt", data=data, run=tmp_path / "run", overrides=overrides)


def test_its_store_has_the_boxes_of_the_frames(run):
    from latentplan.data.store import ZarrStore

    with ZarrStore.open(next((run / "stages").glob("objects-*"))) as store:
        seen = store.episode(0).observations
    made = checkpoint.load(run / "best.safetensors").model
    assert store.spec.observation == object_spec(SPEC, made.tokenizer, made.config).observation
    with ZarrStore.open(run.parent / "data.zarr") as data:
        images = torch.from_numpy(data.episode(0).observations["rgb"])[None]
    wanted = symbols(made.boxes({"rgb": images}), made.config.prior.bins)
    assert torch.equal(torch.from_numpy(seen["boxes"]).long(), wanted[0])
    assert wanted[..., 0].all() and seen["glimpses"].shape == (8, 1, 16, 16, 3)
