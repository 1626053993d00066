"""VideoGPT: causal tokens, the prior's conditions and cache, and its training from a store."""

import numpy as np
import pytest
import torch

from latentplan.api.train import train
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, Interrupted, ShapeError
from latentplan.models.videogpt.clips import ACTIONS, FRAMES, TOKENS, by_token_frame
from latentplan.models.videogpt.prior import Prior
from latentplan.models.videogpt.videogpt import VideoGPT
from latentplan.protocols import Illustrated, Staged, VideoModel
from latentplan.tokenizers.video_vqvae import VideoVQVAE
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, ArraySpec, Batch, Episode, Label, Part, Spec, Tokens

SIDE, CLIP, STRIDE, SIZE = 16, 8, 2, 2
CAMERAS = ("rgb", "wrist")
SPEC = Spec(
    {
        "rgb": ArraySpec((SIDE, SIDE, 3), "uint8"),
        "wrist": ArraySpec((SIDE, SIDE, 3), "uint8"),
        "state": ArraySpec((3,)),
    },
    ActionSpec((-1.0,) * SIZE, (1.0,) * SIZE),
    tasks=("left", "right"),
)
TOKENIZER = VideoVQVAE.Config(
    clip=CLIP, stride=(STRIDE, 4, 4), width=8, heads=1, blocks=1, embedding=4, codes=16, decay=0.8
)
PRIOR = Prior.Config(
    vocabulary=16, actions=True, tasks=True, width=16, layers=2, heads=2, dropout=0.0, channels=8
)
CONFIG = VideoGPT.Config(Part("tokenizer", "video_vqvae", TOKENIZER), clip=CLIP, prior=PRIOR)
TASK = torch.tensor([1, 2])
TINY = [
    *(f"model.tokenizer.{key}={value}" for key, value in {
        "clip": CLIP, "stride": f"[{STRIDE},4,4]", "width": 8, "heads": 1, "blocks": 1,
        "embedding": 4, "codes": 16, "decay": 0.8,
    }.items()),
    *(f"model.prior.{key}={value}" for key, value in {
        "width": 16, "layers": 1, "heads": 2, "channels": 8, "actions": True, "tasks": True,
    }.items()),
    *(f"training.{stage}.{key}={value}" for stage in ("tokenizer", "prior") for key, value in {
        "steps": 4, "batch": 4, "eval_every": 2, "save_every": 1, "warmup": 1, "held_out": 0.3,
    }.items()),
]  # fmt: skip


def squares(seed: int, count: int, length: int) -> np.ndarray:
    """Return videos (count, length, h, w, 3) of a bright square that moves."""
    rng = np.random.default_rng(seed)
    videos = np.full((count, length, SIDE, SIDE, 3), 30, np.uint8)
    for video in videos:
        (x, y), colour = rng.integers(0, SIDE - 6, 2), rng.integers(90, 255, 3)
        for frame in video:
            x, y = np.clip([x + rng.integers(-3, 4), y + rng.integers(-3, 4)], 0, SIDE - 6)
            frame[y : y + 6, x : x + 6] = colour
    return videos


def frames(seed: int = 0, length: int = CLIP) -> dict[str, torch.Tensor]:
    return {
        key: torch.from_numpy(squares(seed + place, 2, length))
        for place, key in enumerate(CAMERAS)
    }


def fit(tokenizer: VideoVQVAE, steps: int) -> VideoVQVAE:
    """Train a tokenizer a little, so that images differ in their ids."""
    optimizer = torch.optim.Adam(tokenizer.parameters(), 1e-2)
    for step in range(steps):
        loss = tokenizer.train().loss(Batch(frames(step), torch.zeros(2, CLIP - 1, SIZE)))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    return tokenizer.eval()


@pytest.fixture(scope="module")
def model() -> VideoGPT:
    torch.manual_seed(0)
    made = VideoGPT(SPEC, CONFIG)
    fit(made.tokenizer, 20)
    for weight in made.prior.parameters():  # nothing is almost zero, so that what leaks is seen
        weight.data += 0.1 * torch.randn_like(weight)
    return made.eval()


def sent(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, length, SIZE, generator=torch.Generator().manual_seed(seed))


def test_it_keeps_the_protocols_and_sees_its_cameras_alone(model):
    assert isinstance(model, VideoModel) and isinstance(model, Illustrated)
    assert issubclass(VideoGPT, Staged)
    assert model.cameras == CAMERAS and model.tokenizer.tokens == 2 * 4 * 4
    assert model.tokenizer.grid == (4, 4) and model.tokenizer.stride == STRIDE


def test_ids_are_of_each_camera_by_itself_and_decode_to_its_images(model):
    video = frames()
    ids = model.tokenizer.encode(video).ids
    assert ids.shape == (2, CLIP // STRIDE, 32) and len(ids.unique()) > 3
    other = {**video, "wrist": frames(7)["wrist"]}
    changed = model.tokenizer.encode(other).ids
    assert torch.equal(changed[..., :16], ids[..., :16])
    assert not torch.equal(changed[..., 16:], ids[..., 16:])
    shown = model.tokenizer.decode(Tokens(ids))
    assert {key: (v.shape, v.dtype) for key, v in shown.items()} == {
        key: ((2, CLIP, SIDE, SIDE, 3), torch.uint8) for key in CAMERAS
    }


def test_tokens_depend_on_no_later_frame(model):
    video = frames()
    ids = model.tokenizer.encode(video).ids
    later = {key: torch.cat([v[:, :4], 255 - v[:, 4:]], dim=1) for key, v in video.items()}
    changed = model.tokenizer.encode(later).ids
    assert torch.equal(changed[:, :2], ids[:, :2]) and not torch.equal(changed[:, 2:], ids[:, 2:])
    begun = model.tokenizer.encode({key: v[:, :4] for key, v in video.items()}).ids
    assert torch.equal(begun, ids[:, :2])


def test_reconstructions_get_better_than_the_mean_frame():
    torch.manual_seed(0)
    tokenizer = fit(VideoVQVAE(SPEC, TOKENIZER), 70)
    video = frames(100)
    shown = tokenizer.decode(tokenizer.encode(video))
    for key, truth in video.items():
        mean = truth.float().mean(dim=(0, 1))
        error = (shown[key].float() - truth.float()).square().mean()
        assert error < (mean - truth.float()).square().mean()


@pytest.mark.parametrize("stride", [(1, 2, 2), (4, 4, 4), (2, 8, 8)])
def test_any_stride_of_powers_of_two(stride):
    made = VideoVQVAE(SPEC, VideoVQVAE.Config(stride=stride, width=8, embedding=4, codes=8))
    made.loss(Batch(frames(), torch.zeros(2, CLIP - 1, SIZE)))
    tokens = made.eval().encode(frames())
    side = SIDE // stride[1]
    assert tokens.ids.shape == (2, CLIP // stride[0], 2 * side * side)
    assert made.decode(tokens)["rgb"].shape == (2, CLIP, SIDE, SIDE, 3)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"stride": (3, 4, 4)}, "stride: 3 is not a power of two"),
        ({"stride": (1, 1, 1)}, "stride: .* compresses nothing"),
        ({"clip": 7}, "clip: 7 frames are not a multiple of .* 2"),
        ({"width": 30}, "width: 30 is not a multiple of 2 heads=4"),
    ],
)
def test_what_a_tokenizer_cannot_be(field, said):
    with pytest.raises(ConfigError, match=said):
        VideoVQVAE.Config(**field)


def test_images_that_the_stride_does_not_divide_are_refused():
    with pytest.raises(ConfigError, match="does not divide images of 16 pixels"):
        VideoVQVAE(SPEC, VideoVQVAE.Config(stride=(2, 32, 32)))


def test_frames_that_are_no_multiple_of_the_stride_are_refused(model):
    with pytest.raises(ShapeError, match="found 5 frames, need a multiple of 2"):
        model.tokenizer.encode(frames(length=5))


def test_log_prob_sees_no_later_frame_and_no_neighbour(model):
    video, actions = frames(), sent(CLIP - 1)
    with torch.no_grad():
        found = model.log_prob(video, actions=actions, task=TASK)
        assert found.shape == (2, CLIP) and found.isfinite().all()
        assert (found[:, ::2] == 0).all() and (found[:, 1::2] < 0).all()
        later = {key: torch.cat([v[:, :4], 255 - v[:, 4:]], dim=1) for key, v in video.items()}
        after = model.log_prob(later, actions=actions, task=TASK)
        torch.testing.assert_close(after[:, :4], found[:, :4])
        assert not torch.allclose(after[:, 4:], found[:, 4:])
        alone = {key: v[1:] for key, v in video.items()}
        one = model.log_prob(alone, actions=actions[1:], task=TASK[1:])
        torch.testing.assert_close(one[0], found[1], rtol=1e-4, atol=1e-3)
        short = {key: v[:, :4] for key, v in video.items()}
        begun = model.log_prob(short, actions=actions[:, :3], task=TASK)
        torch.testing.assert_close(begun, found[:, :4], rtol=1e-4, atol=1e-3)


def test_an_action_matters_from_the_frame_on_that_it_leads_to(model):
    video, actions = frames(), sent(CLIP - 1)
    with torch.no_grad():
        found = model.log_prob(video, actions=actions, task=TASK)
        for place in range(CLIP - 1):  # actions[place] leads to frame place + 1
            other = actions.clone()
            other[:, place] += 1
            changed = model.log_prob(video, actions=other, task=TASK)[:, 1::2] != found[:, 1::2]
            first = (place + 1) // STRIDE
            assert not changed[:, :first].any() and changed[:, first].all()


def test_conditions_change_what_is_likely_and_may_be_left_out(model):
    video, actions = frames(), sent(CLIP - 1)
    with torch.no_grad():
        found = [
            model.log_prob(video, actions=a, task=t).sum()
            for a in (actions, None)
            for t in (TASK, TASK.flip(0), None)
        ]
        assert len({round(float(each), 3) for each in found}) == 6
        first = {key: torch.cat([255 - v[:, :1], v[:, 1:]], dim=1) for key, v in video.items()}
        known = [model._conditions(each, actions, TASK, 4) for each in (video, first)]
        assert not torch.allclose(*known)


def test_actions_by_token_frame_begin_with_nothing_and_end_with_zeros():
    actions = torch.arange(1.0, 6.0)[None, :, None]
    assert by_token_frame(actions, 3, 2).tolist() == [[[0, 1], [2, 3], [4, 5]]]
    assert by_token_frame(actions[:, :2], 2, 2).tolist() == [[[0, 1], [2, 0]]]


def test_the_cache_draws_the_same_tokens(model):
    video = {key: v[:, :1] for key, v in frames().items()}
    known = model._conditions(video, sent(CLIP - 1), TASK, CLIP // STRIDE)
    nothing = torch.zeros(2, 0, 32, dtype=torch.long)
    drawn = [
        model.prior.sample(
            nothing, known, cached=cached, generator=torch.Generator().manual_seed(3)
        )
        for cached in (True, False)
    ]
    assert drawn[0].shape == (2, 4, 32) and torch.equal(*drawn)
    assert len(drawn[0].unique()) > 3


@pytest.mark.parametrize(("given", "steps"), [(1, 7), (1, 12), (3, 4), (4, 4), (9, 3), (20, 1)])
def test_samples_are_as_many_frames_as_asked_for(model, given, steps):
    def draw(seed):
        return model.sample(
            frames(length=given),
            steps,
            actions=sent(given - 1 + steps),
            task=TASK,
            generator=torch.Generator().manual_seed(seed),
        )

    shown = draw(0)
    assert {key: (v.shape, v.dtype) for key, v in shown.items()} == {
        key: ((2, steps, SIDE, SIDE, 3), torch.uint8) for key in CAMERAS
    }
    assert torch.equal(shown["rgb"], draw(0)["rgb"])
    assert any(not torch.equal(shown["rgb"], draw(seed)["rgb"]) for seed in (1, 2, 3))


def test_a_sample_continues_the_tokens_of_what_is_given(model):
    video = frames()
    ids = model.tokenizer.encode(video).ids
    known = model._conditions(video, None, None, CLIP // STRIDE)
    drawn = model.prior.sample(ids[:, :2], known, temperature=0.0)
    assert torch.equal(drawn[:, :2], ids[:, :2])
    again = model.prior.sample(ids[:, :2], known, temperature=0.0)
    assert torch.equal(drawn, again)  # the likeliest, without chance


def test_too_many_or_too_few_frames_are_refused(model):
    with pytest.raises(ShapeError, match="found 10 frames, need at most 8"):
        model.log_prob(frames(length=10))
    with pytest.raises(ShapeError, match="found 0 frames, need at least 1"):
        model.sample(frames(length=0), 1)


def test_hidden_conditions_in_training_alone(model):
    batch = Batch(
        {
            TOKENS: torch.randint(0, 16, (2, 1, 4, 32)),
            FRAMES: torch.randint(0, 256, (2, 1, 1, 2, SIDE, SIDE, 3), dtype=torch.uint8),
            ACTIONS: torch.randn(2, 1, 4, STRIDE * SIZE),
        },
        torch.zeros(2, 0, 1),
        task=TASK[:, None],
    )
    prior = Prior(model.prior.spec, PRIOR)
    assert prior.reads == ("task",) and prior.window == 1
    losses = {
        mode: {prior.train(mode).loss(batch).total.item() for _ in range(20)}
        for mode in (True, False)
    }
    assert len(losses[False]) == 1 < len(losses[True])


def test_a_context_longer_than_a_token_frame_is_refused():
    config = VideoGPT.Config(CONFIG.tokenizer, clip=CLIP, context=3, prior=PRIOR)
    with pytest.raises(ConfigError, match="context of at most 2"):
        VideoGPT(SPEC, config)


def stored(path, *, lengths=(12, 12, 9, 12, 7, 12), labels=True):
    with ZarrStore.create(path, Spec(SPEC.observation, SPEC.action)) as store:
        for number, length in enumerate(lengths):
            rng = np.random.default_rng(number)
            seen = {key: squares(number + n, 1, length)[0] for n, key in enumerate(CAMERAS)}
            task = ("left", "right")[number % 2]
            store.append(
                Episode(
                    {**seen, "state": np.zeros((length, 3), np.float32)},
                    rng.uniform(-1, 1, (length - 1, SIZE)).astype(np.float32),
                    np.zeros(length - 1, np.float32),
                    labels=(Label(f"go {task}", task),) if labels else (),
                )
            )
    return path


def test_train_resume_load_and_draw(tmp_path):
    data = stored(tmp_path / "data.zarr")

    def stop(progress):
        if progress.task == "train prior" and progress.done == 2:
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train("videogpt", data=data, run=run, overrides=TINY, on_progress=stop)
    done = train("videogpt", data=data, run=run, overrides=TINY, resume=True)
    whole = train("videogpt", data=data, run=tmp_path / "whole", overrides=TINY)
    assert done.figures == whole.figures and done.figures["prior.nats"] > 0
    weights, others = (
        checkpoint.read(each.checkpoint, format=checkpoint.FORMAT)[0] for each in (done, whole)
    )
    assert all(torch.equal(weights[key], others[key]) for key in others)

    model = checkpoint.load(done.checkpoint).model
    assert isinstance(model, VideoGPT) and model.spec.tasks == ("left", "right")
    tokenizer = checkpoint.load(done.checkpoint, kind="tokenizer").model
    assert torch.equal(tokenizer.encode(frames()).ids, model.tokenizer.encode(frames()).ids)

    with ZarrStore.open(data) as store:
        drawn = list(model.illustrate(store, tmp_path))
    assert sorted(file.name for file, _ in drawn) == [
        f"samples_{key}.{kind}" for key in CAMERAS for kind in ("mp4", "png")
    ]
    assert all(file.stat().st_size > 500 for file, _ in drawn)

    # A tokenizer of another run stays as it is.
    other = [each for each in TINY if "model.tokenizer" not in each]
    taken = train(
        "videogpt",
        data=data,
        run=tmp_path / "taken",
        overrides=[*other, f"model.tokenizer.run={run}"],
    )
    reused = checkpoint.load(taken.checkpoint).model.tokenizer
    assert torch.equal(reused.encode(frames()).ids, tokenizer.encode(frames()).ids)


def test_the_store_of_clips_holds_tokens_actions_and_tasks(tmp_path):
    data = stored(tmp_path / "data.zarr")
    train("videogpt", data=data, run=tmp_path / "run", overrides=[*TINY, "model.every=2"])
    model = checkpoint.load(tmp_path / "run/best.safetensors").model
    (path,) = (tmp_path / "run/stages").glob("clips-*.zarr")
    with ZarrStore.open(path) as clips, ZarrStore.open(data) as store:
        assert clips.spec.tasks == ("left", "right") and len(clips) == len(store)
        assert [len(clips.episode(i)) + 1 for i in range(6)] == [3, 3, 2, 3, 2, 3]
        made, of = clips.episode(1), store.episode(1)
        second = {key: torch.from_numpy(of.observations[key][None, 2:10]) for key in model.cameras}
        ids = model.tokenizer.encode(second).ids[0]
        assert np.array_equal(made.observations[TOKENS][1], ids.numpy())
        assert np.array_equal(made.observations[FRAMES][1, 0, 1], of.observations["wrist"][2])
        actions = made.observations[ACTIONS][1].reshape(CLIP, SIZE)
        assert not actions[0].any() and np.array_equal(actions[1:], of.actions[2:9])
        assert made.labels == (Label("go right", "right", 0, 2),)


def test_tasks_that_the_data_lack_are_refused(tmp_path):
    data = stored(tmp_path / "data.zarr", labels=False)
    with pytest.raises(ConfigError, match=r"model.prior.tasks: .* name no task; set it to false"):
        train("videogpt", data=data, run=tmp_path / "run", overrides=TINY)
