"""TECO: what each frame depends on, its memory, its training, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from moving_square import FEW, SIDE, SIZE, stored

from latentplan.api.train import train
from latentplan.errors import CheckpointError, ConfigError, ShapeError
from latentplan.models.frame_tokens import TOKENS
from latentplan.models.teco.dynamics import TemporalDynamics, _cells, fitted
from latentplan.models.teco.teco import TECO, token_spec
from latentplan.nn.masked_prior import MaskedPrior
from latentplan.protocols import DecodableDynamics, Staged, TokenModel, VideoModel
from latentplan.tokenizers.vqvae import VQVAE
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, ArraySpec, Batch, Context, Part, Spec

CLIP = 4
SPEC = Spec(
    {"rgb": ArraySpec((SIDE, SIDE, 3), "uint8"), "wrist": ArraySpec((SIDE, SIDE, 3), "uint8")},
    ActionSpec((-1.0,) * SIZE, (1.0,) * SIZE),
)
TOKENIZER = VQVAE.Config(channels=(8,), blocks=0, levels=(3, 3))
PRIOR = MaskedPrior.Config(width=16, layers=1, heads=2, draft=2, revise=2, rounds=1)
DYNAMICS = TemporalDynamics.Config(
    clip=CLIP, context=2, embedding=4, channels=8, codes=16, code_width=4, action_width=4, width=16,
    layers=1, heads=2, prior=PRIOR, drop_loss=0.0, decay=0.8,
)  # fmt: skip
CONFIG = TECO.Config(tokenizer=Part("tokenizer", "vqvae", TOKENIZER), dynamics=DYNAMICS)


@pytest.fixture(scope="module", params=[True, False], ids=["previous", "paper"])
def model(request) -> TECO:
    torch.manual_seed(0)
    made = TECO(SPEC, replace(CONFIG, dynamics=replace(DYNAMICS, previous=request.param)))
    for weight in made.parameters():  # nothing is almost zero, so that what leaks is seen
        weight.data += 0.2 * torch.randn_like(weight)
    return made.eval().requires_grad_(False)


def frames(length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shape = (2, length, SIDE, SIDE, 3)
    return {k: torch.randint(0, 256, shape, generator=draw).byte() for k in SPEC.observation}


def sent(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, length, SIZE, generator=torch.Generator().manual_seed(seed))


def test_it_keeps_the_protocols(model):
    assert all(isinstance(model, each) for each in (VideoModel, DecodableDynamics, TokenModel))
    assert issubclass(TECO, Staged) and model.latent_dim == 2 * 16 * 4


def test_latents_are_tokens_and_back(model):
    ids = model.tokenizer.encode(frames(3)).ids
    z = model.encode(frames(3))
    assert torch.equal(model.ids(z), ids)
    again = model.decode(z + 1e-3)
    assert all(torch.equal(again[k], v) for k, v in model.decode(z).items())


def test_an_action_matters_from_the_frame_on_that_it_leads_to(model):
    video, actions = frames(CLIP), sent(CLIP - 1)
    found = model.log_prob(video, actions=actions)
    for place in range(CLIP - 1):  # actions[place] leads to frame place + 1
        other = actions.clone()
        other[:, place] += 1
        changed = model.log_prob(video, actions=other) != found
        assert not changed[:, : place + 1].any() and changed[:, place + 1 :].all()


def test_the_cache_imagines_what_the_whole_clip_does(model):
    d, ids, actions = model.dynamics, model.tokenizer.encode(frames(CLIP)).ids, sent(CLIP - 1)
    history = d.begin(ids[:, :-1], actions[:, :-1])
    found = d.advance(history, actions[:, -1])
    maps, codes = d.posterior(ids)
    h = d.attend(d.first(maps), codes.vectors, d.embed_actions(actions))[:, -1]
    memory = d.remember(h, ids[:, -2])
    drawn = d.book.vectors(d.prior.sample(_cells(memory), temperature=0.0))
    vectors = drawn.unflatten(1, (d.side, d.side)).movedim(-1, 1)
    torch.testing.assert_close(found, d.decode(memory, vectors, ids[:, -2]), rtol=1e-3, atol=1e-4)
    assert torch.equal(history.tokens[:, :-1], ids[:, :-1]) and history.actions.shape[1] == CLIP - 1


@pytest.mark.parametrize(("given", "steps"), [(1, 2), (2, 7), (CLIP, 1), (9, 2)])
def test_samples_are_as_many_frames_as_asked_for(model, given, steps):
    def draw(seed, **known):
        generator = torch.Generator().manual_seed(seed)
        return model.sample(frames(given), steps, generator=generator, **known)["wrist"]

    actions = sent(given - 1 + steps)
    shown = draw(0, actions=actions)
    assert shown.shape == (2, steps, SIDE, SIDE, 3) and shown.dtype == torch.uint8
    assert torch.equal(shown, draw(0, actions=actions)) and draw(0).shape == shown.shape


def test_rollouts_go_on_where_a_clip_ends(model):
    context = Context(model.encode(frames(3)), sent(2))
    actions = torch.stack([sent(6), sent(6, seed=1)], dim=1)  # b n h a
    prepared = model.prepare(context)
    whole = model.rollout(prepared, actions)
    assert whole.shape == (2, 2, 6, model.latent_dim) and whole.isfinite().all()
    torch.testing.assert_close(model.rollout(prepared, actions[:, :, :4]), whole[:, :, :4])


def batch(seed: int = 0) -> Batch:
    """Return clips whose tokens are those of before, shifted by an action of -1 or 1."""
    draw = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, 9, (8, 32), generator=draw)]
    actions = torch.randint(0, 2, (8, CLIP - 1, 1), generator=draw) * 2 - 1
    for action in actions.unbind(1):
        ids.append(torch.where(action > 0, ids[-1].roll(1, -1), ids[-1].roll(-1, -1)))
    return Batch({TOKENS: torch.stack(ids, dim=1)}, actions.expand(-1, -1, SIZE).float())


@pytest.fixture
def dynamics() -> TemporalDynamics:
    torch.manual_seed(0)
    tokens = token_spec(SPEC, VQVAE(SPEC, TOKENIZER))
    return TemporalDynamics(tokens, fitted(DYNAMICS, vocabulary=9, cameras=2))


def test_its_loss_falls_and_all_weights_learn(dynamics):
    dynamics.config = replace(dynamics.config, action_dropout=0.5)
    optimizer = torch.optim.Adam(dynamics.parameters(), 5e-3)
    losses = []
    for step in range(30):
        loss = dynamics.loss(batch(step))
        optimizer.zero_grad()
        loss.total.backward()
        assert all(w.grad is not None and w.grad.isfinite().all() for w in dynamics.parameters())
        optimizer.step()
        losses.append(float(loss.parts["decoder"]))
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 0.05


def test_drop_loss_computes_prior_and_decoder_for_few_frames(dynamics, monkeypatch):
    counts = []
    decode = dynamics.decode
    monkeypatch.setattr(dynamics, "decode", lambda *a: counts.append(len(a[0])) or decode(*a))
    for share in (0.0, 0.9):
        dynamics.config = replace(dynamics.config, drop_loss=share)
        assert dynamics.loss(batch()).total.isfinite()
    assert counts == [8 * (CLIP - 1), 8]


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"clip": 1}, r"TECO\.dynamics\.clip"),
        ({"context": CLIP}, r"TECO\.dynamics\.context"),
        ({"width": 18}, "width: found 18 and 8 channels"),
        ({"noise": 1.5}, r"TECO\.dynamics\.noise"),
    ],
)
def test_what_dynamics_cannot_be(field, said):
    with pytest.raises(ConfigError, match=said):
        replace(DYNAMICS, **field)


def test_parts_that_do_not_fit_are_refused():
    other = replace(CONFIG, dynamics=replace(DYNAMICS, vocabulary=7))
    with pytest.raises(ConfigError, match="vocabulary: found 7, the tokenizer has 9 ids"):
        TECO(SPEC, other)
    with pytest.raises(ConfigError, match="stride: found 8, and pool 2"):
        TECO(SPEC, replace(CONFIG, dynamics=replace(DYNAMICS, stride=8)))
    with pytest.raises(ConfigError, match="video_vqvae takes 2 observations a token frame, need 1"):
        TECO(SPEC, replace(CONFIG, tokenizer=Part("tokenizer", "video_vqvae")))


def test_bad_input_is_one_line(model):
    with pytest.raises(ShapeError, match="found 5 frames, need 1 to 4, the clip"):
        model.log_prob(frames(5))
    with pytest.raises(ShapeError, match="found 5 frames, need 1 to 4, the clip"):
        model.prepare(Context(model.encode(frames(5)), sent(4)))
    with pytest.raises(ShapeError, match=r"TECO.sample.actions: found shape \(2, 3, 2\)"):
        model.sample(frames(2), 3, actions=sent(3))
    with pytest.raises(ShapeError, match="found NaN or infinite"):
        model.sample(frames(1), 1, actions=sent(1) / 0 * 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teco")
    train("teco", data=stored(folder / "data.zarr"), run=folder / "run", overrides=FEW)
    return folder / "run"


def test_it_trains_with_the_tokenizer_of_a_run(run, tmp_path):
    data = run.parent / "data.zarr"
    done = train(
        "teco", data=data, run=tmp_path / "run", overrides=[*FEW, f"model.tokenizer.run={run}"]
    )
    assert done.steps == 4 and done.figures["dynamics.decoder"] > 0  # the dynamics alone
    a, b = (checkpoint.load(each / "best.safetensors").model for each in (run, tmp_path / "run"))
    given = {"rgb": frames(2)["rgb"]}
    assert torch.equal(a.tokenizer.encode(given).ids, b.tokenizer.encode(given).ids)
    assert b.sample(given, 3, actions=sent(4))["rgb"].shape == (2, 3, SIDE, SIDE, 3)


def test_cameras_keep_their_order_when_it_is_loaded(tmp_path):
    torch.manual_seed(0)
    swapped = replace(SPEC, observation=dict(reversed(SPEC.observation.items())))
    made = TECO(swapped, CONFIG).eval()
    made.tokenizer.position.data.normal_()
    made.tokenizer.camera.data.normal_()
    checkpoint.save(tmp_path / "a.safetensors", made, kind="model", name="teco", step=1, metrics={})
    again = checkpoint.load(tmp_path / "a.safetensors").model
    assert again.cameras == made.cameras == ("wrist", "rgb")
    given = frames(2)
    assert all(torch.equal(v, made.sample(given, 1, temperature=0.0)[k])
               for k, v in again.sample(given, 1, temperature=0.0).items())  # fmt: skip


def test_images_of_another_size_than_the_tokenizers_are_refused(run, tmp_path):
    data = stored(tmp_path / "data.zarr", side=32)
    with pytest.raises(CheckpointError, match="tokenizer observes"):
        overrides = [*FEW, f"model.tokenizer.run={run}"]
        train("teco", data=data, run=tmp_path / "run", overrides=overrides)


def test_rollouts_decode_codes_in_as_many_steps_as_set(model, monkeypatch):
    steps, sample = [], MaskedPrior.sample
    monkeypatch.setattr(
        MaskedPrior, "sample", lambda *a, **k: steps.append(k["draft"]) or sample(*a, **k)
    )
    context, actions = Context(model.encode(frames(2)), sent(1)), sent(2)[:, None]
    model.rollout(model.prepare(context), actions)
    model.sample(frames(2), 1)
    assert steps == [1, 1, None]
    with pytest.raises(ConfigError, match="rollout_draft"):
        replace(CONFIG, rollout_draft=0)
