"""VideoWorld's parts: what each may see, what is the same with a cache, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentplan.errors import ConfigError, ShapeError
from latentplan.models.videoworld.dynamics import TokenDynamics
from latentplan.models.videoworld.ldm import LDM, Motion
from latentplan.models.videoworld.video_transformer import VideoTransformer, choose
from latentplan.models.videoworld.videoworld import VideoWorld
from latentplan.nn.quantizer import FSQCodebook, Quantizer, Whitening, usage
from latentplan.nn.transformer import Cache, Transformer
from latentplan.tokenizers.vqvae import VQVAE
from latentplan.types import ActionSpec, ArraySpec, Batch, Context, Convention, Goal, Part, Spec

PICTURE = ArraySpec((32, 32, 3), "uint8")
SPEC = Spec(
    {"rgb_a": PICTURE, "rgb_b": PICTURE, "robot_obs": ArraySpec((15,))},
    ActionSpec(
        (-1.0,) * 7, (1.0,) * 7, convention=Convention("ee_delta", gripper="close_is_-1")
    ),
)
KEYS = ("rgb_a", "rgb_b")
CONFIG = VideoWorld.Config(
    tokenizer=Part("tokenizer", "vqvae", VQVAE.Config(channels=(8, 16), levels=(4, 3, 3))),
    ldm=LDM.Config(channels=(16,), heads=2, layers=1, horizon=3, decoded=2, levels=(3, 3)),
    transformer=VideoTransformer.Config(context=3, horizon=3, width=32, layers=2, heads=2),
    inverse=VideoWorld.Config().inverse.__class__(chunk=3, width=16),
)


FINE = VQVAE.Config(patch=2, channels=(8,), levels=(4, 3, 3), background=True)


def pictures(*shape, seed=0):
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 256, (2, *shape, 32, 32, 3), dtype=np.uint8)
    return dict(zip(KEYS, map(torch.from_numpy, made), strict=True))


@pytest.fixture(params=["plain", "fine"])
def model(request):
    torch.manual_seed(0)
    config = CONFIG
    if request.param == "fine":  # 16 x 16 tokens, codes of motion: as the preset for two cores
        config = replace(
            config,
            tokenizer=replace(config.tokenizer, config=FINE),
            ldm=replace(config.ldm, motion=1.0, whiten=True),
            transformer=replace(config.transformer, tokens_per_position=16),
            dynamics=replace(config.dynamics, patch=2),
        )
    made = VideoWorld(SPEC, config.fitted(SPEC, tasks=("close_drawer", "open_drawer")))
    for weight in made.parameters():  # nothing is almost zero, so that what leaks is seen
        weight.data += 0.1 * torch.randn_like(weight)
    return made.eval()


def test_ids_and_the_numbers_they_stand_for_are_those_of_the_quantizer():
    levels = (4, 3, 5)
    numbers, quantizer = FSQCodebook(levels), Quantizer(8, levels=levels)
    ids = torch.arange(60)
    torch.testing.assert_close(numbers.codes(ids), quantizer.book.implicit_codebook)
    assert torch.equal(numbers.nearest(numbers.codes(ids) + 0.05), ids)
    assert numbers.nearest(torch.full((3,), 9.0)) == 59


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_a_quantizer_gives_back_the_vectors_of_its_ids(kind):
    torch.manual_seed(0)
    quantizer = Quantizer(8, levels=(4, 4), kind=kind)
    x = torch.randn(40, 5, 8, requires_grad=True)
    quantizer(x).vectors.sum().backward()  # a learned book begins with what it sees first
    assert x.grad.any()
    quantizer.eval()
    found = quantizer(x)
    assert found.ids.shape == (40, 5) and 0 <= found.ids.min() and found.ids.max() < 16
    torch.testing.assert_close(quantizer.vectors(found.ids), found.vectors, rtol=1e-4, atol=1e-5)


def test_codes_are_in_use_from_the_first_step_on():
    torch.manual_seed(0)
    quantizer = Quantizer(8, levels=(4, 4, 4))
    nearly_alike = 3 + 0.01 * torch.randn(1000, 8)
    assert usage(quantizer(nearly_alike).ids, 64)["usage"] > 0.5


def test_whitened_numbers_do_not_say_the_same():
    torch.manual_seed(0)
    mixing = torch.tensor([[1.0, -0.9, 0.0], [0.0, 0.5, 0.0], [0.3, 0.0, 0.8]])
    x = 3 + torch.randn(4000, 3) @ mixing
    whitening = Whitening(3)
    torch.testing.assert_close(torch.cov(whitening(x).T), torch.eye(3), atol=0.02, rtol=0)
    for _ in range(200):
        whitening(x)
    seen = whitening.eval()(x)  # by what was seen in training
    torch.testing.assert_close(torch.cov(seen.T), torch.eye(3), atol=0.02, rtol=0)
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=0.02, rtol=0)
    assert torch.equal(whitening(x[:5]), seen[:5])  # whatever else is in the batch
    assert whitening.train()(torch.ones(8, 3)).isfinite().all()


def test_codes_are_asked_for_shift_and_growth_of_the_pictures():
    motion = Motion(8, views=2)
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shown = F.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(-1, 1)
    near = [F.interpolate(shown[..., t:-t, t:-t], size=(32, 32), mode="area") for t in (8, 10, 12)]
    moved = [shown[..., 16:48, 16 - 2 * t : 48 - 2 * t] for t in range(3)]  # 2 pixels to the right
    clip = torch.stack([torch.stack(each, dim=1) for each in (moved, near)], dim=2)
    missed = {}
    with torch.no_grad():
        motion.linear.weight.zero_()
        motion.linear.bias.zero_()
        for right in (2.0, 0.0, -2.0):
            motion.linear.bias[0] = right
            missed[right] = motion(torch.zeros(1, 2, 8), clip, grid=8)
        motion.linear.bias[5] = 0.8  # pixels outwards on the mean: 48 pixels, then 44, become 32
        grown = motion(torch.zeros(1, 2, 8), clip, grid=8)
    assert (missed[0.0] <= 1).all() and missed[0.0][1] == pytest.approx(1)
    assert missed[2.0][0] < missed[0.0][0] - 0.25 and missed[-2.0][0] > 1.5
    assert grown[1] < missed[0.0][1] - 0.25 and grown[0] == missed[-2.0][0]


def test_the_mean_picture_shows_where_a_tokenizer_lets_it():
    torch.manual_seed(0)
    tokenizer = VQVAE(SPEC, VQVAE.Config(channels=(8, 16), background=True))
    seen = pictures(16, 2)
    for _ in range(20):
        tokenizer.loss(Batch(seen, torch.zeros(16, 1, 7)))
    mean = seen["rgb_b"][:, 0].float().mean(0)
    last = tokenizer.decoder[-2]  # before the shuffle: 4 numbers a pixel, the last lets it show
    shows = last.bias.data.view(4, -1)[3]
    last.weight.data.mul_(0.01)
    tokens = tokenizer.eval().encode(seen)
    shows.fill_(-20)
    shown = tokenizer.decode(tokens)["rgb_b"][3, 1].float()
    torch.testing.assert_close(shown, mean, atol=2, rtol=0)
    shows.fill_(20)
    assert (tokenizer.decode(tokens)["rgb_b"][3, 1].float() - mean).abs().mean() > 5


def test_dynamics_of_patches_keep_every_token_in_its_place():
    spec = token_spec(SPEC, side=4)
    dynamics = TokenDynamics(spec, TokenDynamics.Config(levels=(3, 5), views=2, patch=2, width=40))
    z = torch.randn(3, 32 * 2)
    with torch.no_grad():  # a transformer that changes nothing, in front of an identity
        torch.nn.init.eye_(dynamics.frame.weight)
        dynamics.frame.bias.zero_(), dynamics.position.zero_(), dynamics.head.bias.zero_()
        dynamics.body = torch.nn.Identity()
        dynamics.head.weight.zero_()
        for cell in range(4):  # the first logit of both numbers of a token says these themselves
            dynamics.head.weight[8 * cell, 2 * cell] = 1
            dynamics.head.weight[8 * cell + 3, 2 * cell + 1] = 1
        first, second = dynamics(z, torch.zeros(3, 7))
    torch.testing.assert_close(torch.stack([first[..., 0], second[..., 0]], -1).flatten(1), z)
    assert dynamics.position.shape[0] == 9
    # A position is 2 x 2 tokens of one camera: the first, its neighbours to the right and below.
    at = torch.zeros(1, 32, 2)
    at[0, [0, 1, 4, 5], 0] = 1
    seen = []
    dynamics.frame.register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    dynamics(at.flatten(1), torch.zeros(1, 7))
    assert seen[0][0, 0].sum() == 4 and seen[0][0, 1:].sum() == 0
    with pytest.raises(ConfigError, match="patch: 32 tokens are not 2 square maps .* of 3"):
        TokenDynamics(spec, TokenDynamics.Config(views=2, patch=3))


def token_spec(spec, *, side):
    """Return the spec of a store of tokens of two cameras."""
    tokens = ArraySpec((2 * side**2,), "int32")
    return replace(spec, observation={"tokens": tokens}, privileged=())


def test_usage_counts_codes():
    found = usage(torch.tensor([0, 0, 1, 1]), 8)
    assert found["usage"] == 0.25
    torch.testing.assert_close(found["perplexity"], torch.tensor(2.0))


def test_a_transformer_does_not_look_ahead_and_goes_on_from_a_cache():
    torch.manual_seed(0)
    body = Transformer(32, layers=2, heads=2).eval()
    x = torch.randn(2, 12, 32)
    whole = body(x)
    changed = x.clone()
    changed[:, 7:] += 1
    torch.testing.assert_close(body(changed)[:, :7], whole[:, :7])
    assert not torch.allclose(body(changed)[:, 7:], whole[:, 7:])
    cache = Cache(body, 2, 12)
    parts = [body(part, cache) for part in x.split([5, 1, 4, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_code_h_sees_frames_up_to_h_alone(model):
    ldm = model.ldm
    clip = pictures(4, 4)
    codes = ldm._features(ldm._clip(clip))
    before = _asked(ldm, codes)
    for h in range(1, 4):
        changed = {k: v.clone() for k, v in clip.items()}
        for v in changed.values():
            v[:, h] = 255 - v[:, h]
        after = _asked(ldm, ldm._features(ldm._clip(changed)))
        torch.testing.assert_close(after[:, : h - 1], before[:, : h - 1])
        assert not torch.allclose(after[:, h - 1 :], before[:, h - 1 :])


def _asked(ldm, maps):
    """Return the features before quantization, which may change while the code does not."""
    seen = []
    handle = ldm.quantizer.register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    ldm._quantize(maps)
    handle.remove()
    return seen[0]


def test_frame_h_is_reconstructed_from_the_first_frame_and_codes_up_to_h(model):
    clip = pictures(2, 4)
    codes = torch.zeros(2, 3, dtype=torch.long)
    decoded = model.ldm.decode(clip, codes)
    assert decoded["rgb_a"].shape == (2, 3, 32, 32, 3)
    later = {k: torch.cat([v[:, :1], 255 - v[:, 1:]], dim=1) for k, v in clip.items()}
    assert torch.equal(model.ldm.decode(later, codes)["rgb_b"], decoded["rgb_b"])
    other = codes.clone()
    other[:, 1] = 8
    changed = model.ldm.decode(clip, other)["rgb_a"]
    assert torch.equal(changed[:, 0], decoded["rgb_a"][:, 0])
    assert not torch.equal(changed[:, 1:], decoded["rgb_a"][:, 1:])


def test_behind_the_end_of_a_clip_there_is_nothing(model):
    with pytest.raises(ConfigError, match="LDM.horizon: 3 codes .* need windows of 4"):
        model.ldm.encode(pictures(1, 3))


def test_generation_is_the_same_with_and_without_the_cache(model):
    tokens, task = _context(model)
    for temperature in (0.0, 1.0):
        made = [
            model.transformer.generate(
                tokens,
                task,
                count=3,
                temperature=temperature,
                top_p=0.9,
                generator=torch.Generator().manual_seed(4),
                cached=cached,
            )
            for cached in (True, False)
        ]
        assert torch.equal(made[0].codes, made[1].codes)
        torch.testing.assert_close(made[0].hidden, made[1].hidden, rtol=1e-4, atol=1e-4)
    assert made[0].codes.shape == (2, 3, 3) and made[0].hidden.shape == (2, 3, 4, 32)


def test_what_was_generated_is_what_is_read_of_known_codes(model):
    tokens, task = _context(model)
    made = model.transformer.generate(tokens, task)
    hidden = model.transformer.plan_states(tokens, made.codes[:, 0], task)
    torch.testing.assert_close(hidden, made.hidden[:, 0], rtol=1e-4, atol=1e-4)


def test_the_task_and_the_frames_decide_and_not_the_neighbour(model):
    tokens, task = _context(model)
    made = model.transformer.generate(tokens, task).hidden
    alone = model.transformer.generate(tokens[1:], task[1:]).hidden
    torch.testing.assert_close(alone[0], made[1], rtol=1e-4, atol=1e-4)
    other = model.transformer.generate(tokens, 3 - task).hidden
    assert not torch.allclose(other, made)


def test_imagining_draws_the_likeliest_tokens(model):
    tokens, task = _context(model)
    codes = model.transformer.generate(tokens, task).codes[:, 0]
    after = model.transformer.imagine(tokens, codes, task)
    assert after.shape == (2, model.tokenizer.tokens)
    assert (after < model.tokenizer.vocabulary).all()
    assert torch.equal(after, model.transformer.imagine(tokens, codes, task, cached=False))


def test_without_codes_the_state_is_the_one_that_says_the_next_frame():
    config = replace(CONFIG, transformer=replace(CONFIG.transformer, horizon=0, context=2))
    transformer = VideoWorld(SPEC, config.fitted(SPEC)).eval().transformer
    tokens = torch.randint(36, (2, 1, transformer.tokens))
    task = torch.zeros(2, dtype=torch.long)
    made = transformer.generate(tokens, task)
    assert made.codes.shape == (2, 1, 0)
    logits = transformer._token_logits(made.hidden[:, 0])
    said = logits[..., : transformer.config.vocabulary].argmax(-1)
    after = transformer.imagine(tokens, made.codes[:, 0], task)
    assert torch.equal(said, after[:, : transformer.config.tokens_per_position])


def test_log_prob_sums_to_one_over_the_first_token(model):
    tokens, task = _context(model)
    first = model.transformer.log_prob(tokens, task)
    assert first.shape == (2, 3) and (first < 0).all()
    few = replace(model.transformer.config, levels=(3,), views=1, codes=2, tokens_per_position=1)
    spec = replace(
        model.transformer.spec,
        observation={**model.transformer.spec.observation, "tokens": ArraySpec((1,), "int32")},
    )
    small = VideoTransformer(spec, few).eval()
    every = torch.arange(3)[:, None, None]  # all frames of one token there are
    share = small.log_prob(every, torch.zeros(3, dtype=torch.long)).exp()
    assert 0.1 < share.sum() <= 1 + 1e-5  # the rest is for codes and the end, until it is trained


def test_choose_keeps_to_the_nucleus():
    logits = torch.tensor([[2.0, 1.9, -1.0, -1.0]]).expand(500, -1)
    generator = torch.Generator().manual_seed(0)
    assert set(choose(logits, 0.0).tolist()) == {0}
    assert set(choose(logits, 1.0, top_p=0.8, generator=generator).tolist()) == {0, 1}
    assert len(set(choose(logits, 1.0, generator=generator).tolist())) == 4


@pytest.mark.parametrize("reads", ["hidden", "frames"])
def test_a_proposal_gives_actions_inside_the_bounds(reads):
    config = replace(CONFIG, inverse=replace(CONFIG.inverse, reads=reads))
    torch.manual_seed(0)
    model = VideoWorld(SPEC, config.fitted(SPEC, tasks=("push",))).eval()
    context = Context(model.encode(pictures(2, 3)), torch.zeros(2, 2, 7))
    proposal = model.proposal(Goal(text="push"), temperature=1.0)
    actions = proposal.sample(context, 5, horizon=4, generator=torch.Generator().manual_seed(0))
    assert actions.shape == (2, 5, 4, 7)
    assert actions.abs().max() <= 1
    assert set(actions[..., -1].unique().tolist()) <= {-1.0, 1.0}
    torch.testing.assert_close(actions[:, :, 3], actions[:, :, 2])  # behind the chunk of 3


def test_latents_are_tokens_and_come_back(model):
    z = model.encode(pictures(2, 3))
    assert z.shape == (2, 3, model.latent_dim)
    assert torch.equal(model.ids(z), model.tokenizer.encode(pictures(2, 3)).ids)
    assert model.decode(z)["rgb_b"].shape == (2, 3, 32, 32, 3)


def learn(network, batch):
    """Train on one batch, and return the last loss; it must have fallen."""
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        torch.manual_seed(0)
        loss = network.loss(batch)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(loss.total.item())
    assert losses[-1] < 0.9 * losses[0]
    torch.manual_seed(0)
    whole = network.loss(batch).total
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):  # as the presets for a GPU are trained
        half = network.loss(batch).total
    half.backward()
    assert half.item() == pytest.approx(whole.item(), rel=0.1)
    return loss


@pytest.mark.slow_with("fine-ldm")
@pytest.mark.parametrize("part", ["tokenizer", "ldm"])
def test_parts_learn_one_batch(model, part):
    network = getattr(model, part).train()
    plain = {k: v[:, :, :1, :1].expand(v.shape) for k, v in pictures(4, 4).items()}
    batch = Batch(plain, torch.zeros(4, 3, 7))  # noise would not fit into the tokens
    loss = learn(network, batch)
    assert {"usage", "perplexity", "psnr"} <= loss.parts.keys()


@pytest.mark.slow_with("fine-dynamics", "fine-transformer")
@pytest.mark.parametrize("part", ["transformer", "inverse", "dynamics"])
def test_parts_learn_tokens(model, part):
    network = getattr(model, part).train()
    network.requires_grad_(True)
    rng = np.random.default_rng(0)
    k = model.tokenizer.tokens
    batch = Batch(
        {
            "tokens": torch.from_numpy(rng.integers(0, 36, (8, 6, k))),
            "codes": torch.from_numpy(rng.integers(0, 9, (8, 6, 3))),
            "task": torch.ones(8, 6, dtype=torch.long),
            "hidden": torch.randn(8, 6, model.transformer.config.horizon + 1, 32).half(),
        },
        torch.from_numpy(rng.uniform(-1, 1, (8, 5, 7)).astype(np.float32)),
    )
    if part == "transformer":
        first = {key: v[:, :3] for key, v in batch.observations.items()}
        batch = Batch(first, batch.actions[:, :2])
    loss = learn(network, batch)
    assert all(value.isfinite() for value in loss.parts.values())


def test_the_frame_encoder_trains_on_all_of_a_batch_and_the_transformer_on_a_part():
    few = replace(CONFIG.transformer, transformer_batch_fraction=0.25)
    config = replace(CONFIG, transformer=few)
    transformer = VideoWorld(SPEC, config.fitted(SPEC)).transformer.requires_grad_(True)
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, 36, (8, 3, transformer.tokens)))
    codes = torch.from_numpy(rng.integers(0, 9, (8, 3, 3)))
    seen = {"tokens": tokens, "codes": codes, "task": torch.zeros(8, 3, dtype=torch.long)}
    other = tokens.clone()
    other[2:] = (other[2:] + 1) % 36  # all but a quarter
    parts = []
    for each in (seen, seen | {"tokens": other}):
        torch.manual_seed(0)
        parts.append(transformer.train().loss(Batch(each, torch.zeros(8, 2, 7))).parts)
    assert parts[0]["codes"] == parts[1]["codes"]
    assert parts[0]["frames"] == parts[1]["frames"]
    assert parts[0]["frame_encoder"] != parts[1]["frame_encoder"]
    whole = [
        transformer.eval().loss(Batch(each, torch.zeros(8, 2, 7))).parts["codes"]
        for each in (seen, seen | {"tokens": other})
    ]
    assert whole[0] != whole[1]  # held out, nothing is left out
    learn(transformer.train(), Batch(seen, torch.zeros(8, 2, 7)))


def test_held_out_codes_are_said_without_those_of_past_frames(model):
    tokens, task = _context(model)
    actions = torch.zeros(len(tokens), tokens.shape[1] - 1, 7)

    def of_codes(codes):
        seen = {"tokens": tokens, "codes": codes, "task": task[:, None].expand(tokens.shape[:2])}
        return model.transformer.loss(Batch(seen, actions)).parts["codes"]

    codes = torch.randint(9, (*tokens.shape[:2], 3), generator=torch.Generator().manual_seed(0))

    def other(frames, places):
        changed = codes.clone()
        changed[:, frames, places] = (codes[:, frames, places] + 1) % 9
        return changed

    every, first = slice(None), slice(0, 1)
    past, last, behind = slice(0, -1), slice(-1, None), slice(1, None)
    assert of_codes(other(past, behind)) == of_codes(codes)
    assert of_codes(other(past, first)) != of_codes(codes)  # said of the frames so far
    assert of_codes(other(last, every)) != of_codes(codes)


def test_an_unknown_task_names_the_known(model):
    with pytest.raises(ConfigError, match="'push'.*close_drawer, open_drawer"):
        model.proposal(Goal(text="push"))


def test_more_frames_than_it_was_trained_on_are_refused(model):
    tokens = torch.zeros(1, 4, model.tokenizer.tokens, dtype=torch.long)
    with pytest.raises(ShapeError, match="4 frames"):
        model.transformer.generate(tokens, torch.zeros(1, dtype=torch.long))


def test_pictures_of_two_sizes_are_refused():
    spec = replace(SPEC, observation={**SPEC.observation, "rgb_b": ArraySpec((16, 16, 3), "uint8")})
    with pytest.raises(ConfigError, match=r"\[16, 32\] pixels"):
        VideoWorld(spec, CONFIG)


def _context(model):
    return model.tokenizer.encode(pictures(2, 3)).ids, torch.tensor([1, 2])


def test_the_codes_of_a_video_are_those_of_its_clips(model):
    video = pictures(5)
    clips = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 4], [3, 4, 4, 4], [4, 4, 4, 4]])
    wanted = model.ldm.quantize_clip({key: value[clips] for key, value in video.items()})
    assert torch.equal(model.ldm.encode_video(video), wanted)
    parts = [model.ldm.encode_video(video, rows=slice(*ends)) for ends in ((0, 2), (2, 9))]
    assert torch.equal(torch.cat(parts), wanted)
