"""Joint decoding of a frame: what it conditions on and copies, and how VideoWorld uses it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from moving_square import stored

import latentplan
from latentplan.api.train import train
from latentplan.errors import ConfigError
from latentplan.models.videoworld.frame_prior import FramePrior
from latentplan.models.videoworld.videoworld import VideoWorld
from latentplan.nn.masked_prior import MaskedPrior
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, ArraySpec, Batch, Context, Goal, Spec

SMALL = MaskedPrior.Config(width=16, layers=1, heads=2, draft=2, rounds=0)
CONFIG = FramePrior.Config(channels=8, blocks=1, levels=(3, 3), views=2, prior=SMALL)
SPEC = Spec(
    {"tokens": ArraySpec((32,), "int32"), "hidden": ArraySpec((2, 4), "float16")},
    ActionSpec((-1.0,) * 2, (1.0,) * 2),
)
FEW = [
    *("model.tokenizer.channels=[8]", "model.tokenizer.blocks=0", "model.tokenizer.levels=[3,3]"),
    *("model.ldm.channels=[8]", "model.ldm.levels=[3,3]", "model.ldm.horizon=2"),
    *("model.ldm.decoded=1", "model.ldm.layers=1", "model.ldm.heads=2"),
    *("model.transformer.width=16", "model.transformer.layers=1", "model.transformer.heads=2"),
    *("model.transformer.horizon=2", "model.transformer.context=2", "model.inverse.chunk=2"),
    *("model.transformer.frame_encoder=4", "model.inverse.frame_encoder=4"),
    *("model.inverse.width=16", "model.dynamics.width=16", "model.dynamics.layers=1"),
]
FRAMES = [
    f"model.frame_prior.{each}" for each in (
        "channels=8", "blocks=1", "prior.width=16", "prior.layers=1", "prior.heads=2",
    )
]  # fmt: skip


def quick(*stages: str) -> list[str]:
    return [
        f"training.{stage}.{key}={value}" for stage in stages for key, value in {
            "steps": 2, "batch": 4, "eval_every": 2, "save_every": 2, "warmup": 1, "held_out": 0.3,
        }.items()
    ]  # fmt: skip


@pytest.fixture
def prior() -> FramePrior:
    torch.manual_seed(0)
    made = FramePrior(SPEC, CONFIG)
    for weight in made.parameters():  # nothing is almost zero, so that what leaks is seen
        weight.data += 0.1 * torch.randn_like(weight)
    return made.eval()


def test_the_tokens_of_a_patch_are_adjacent_and_come_back(prior):
    rows = torch.arange(32)[None]
    grouped = prior._grouped(rows)
    assert grouped[0, :8].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]  # 2 x 2 tokens of a 4 x 4 map
    prior.prior.sample = lambda conditions, before, **_: before
    assert torch.equal(prior.sample(rows % 9, torch.zeros(1, 16)), rows % 9)


def test_a_frame_depends_on_the_frame_before_and_on_its_condition(prior):
    before, action = torch.randint(0, 9, (1, 32)), torch.zeros(1, 2)
    conditions = prior.features(before, prior.condition(action=action))
    moved = prior.features(before, prior.condition(action=action + 1))
    assert conditions.shape == (1, 8, 24) and not torch.allclose(conditions, moved)
    other = before.clone()
    other[0, 0] = (other[0, 0] + 1) % 9
    changed = prior.features(other, prior.condition(action=action))
    assert not torch.allclose(conditions[..., :8], changed[..., :8])


def test_a_gate_copies_tokens_of_the_frame_before(prior):
    before = torch.randint(0, 9, (2, 32))
    prior.prior.gate.bias.data += 100
    assert torch.equal(prior.sample(before, prior.condition(action=torch.zeros(2, 2))), before)
    after = prior.rollout(before, torch.zeros(2, 3, 2))
    assert torch.equal(after, before[:, None].expand(-1, 3, -1))


def test_it_learns_what_an_action_and_what_states_change():
    """The next frame is the frame before, shifted by one id where the condition is positive."""
    torch.manual_seed(0)
    prior = FramePrior(SPEC, replace(CONFIG, noise=0.0, own=0.2))
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)

    def frames(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        first = torch.randint(0, 9, (n, 1)).expand(-1, 32)
        sign = torch.randint(0, 2, (n, 2))
        steps = torch.cat([torch.zeros(n, 1, dtype=torch.long), sign.cumsum(1)], dim=1)
        return (first[:, None] + steps[..., None]) % 9, 2.0 * sign - 1

    for _ in range(60):
        tokens, sign = frames(24)
        states = torch.nn.functional.pad(sign, (0, 1))[..., None, None].expand(-1, -1, 2, 4)
        batch = Batch({"tokens": tokens, "hidden": states}, sign[..., None].expand(-1, -1, 2))
        loss = prior.loss(batch)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    tokens, sign = frames(64)
    prior.eval()
    by_action = prior.condition(action=sign[:, :1].expand(-1, 2))
    by_states = prior.condition(states=sign[:, 0, None, None].expand(-1, 2, 4))
    for condition in (by_action, by_states):
        right = prior.sample(tokens[:, 0], condition) == tokens[:, 1]
        assert right.float().mean() > 0.9


def test_a_group_of_tokens_is_masked_and_drawn_together():
    torch.manual_seed(0)
    prior = MaskedPrior(8, vocabulary=5, condition=1, group=4, config=SMALL).eval()
    ids, conditions = torch.randint(0, 5, (3, 8)), torch.zeros(3, 2, 1)
    masked = torch.tensor([[True, False]]).expand(3, -1)
    other = ids.clone()
    other[:, :4] = (ids[:, :4] + 1) % 5
    torch.testing.assert_close(prior(ids, masked, conditions), prior(other, masked, conditions))
    assert prior.sample(conditions).shape == (3, 8)
    assert prior.log_prob(ids, conditions).shape == (3,)
    with pytest.raises(ConfigError, match="MaskedPrior.group: found 3, need a divisor of the 8"):
        MaskedPrior(8, vocabulary=5, condition=1, group=3)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="FramePrior.channels: found 12, need a multiple of 8"):
        FramePrior.Config(channels=12)
    with pytest.raises(ConfigError, match="patch: 32 tokens are not 2 square maps .* of 3"):
        FramePrior(SPEC, replace(CONFIG, patch=3))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a run of VideoWorld, and one that adds joint decoding to it."""
    folder = tmp_path_factory.mktemp("frames")
    data = stored(folder / "data.zarr")
    parts = quick("tokenizer", "ldm", "transformer", "inverse", "dynamics")
    train("videoworld", data=data, run=folder / "base", overrides=[*FEW, *parts])
    added = [f"model.base.run={folder / 'base'}", *FRAMES, *quick("frame_prior")]
    train("videoworld", data=data, run=folder / "joint", overrides=added)
    return folder


def test_it_is_added_to_a_trained_run_whose_policy_stays(runs):
    base, joint = (
        checkpoint.load(checkpoint.find(runs / name)).model for name in ("base", "joint")
    )
    assert base.frame_prior is None and isinstance(joint.frame_prior, FramePrior)
    assert joint.config == replace(base.config, frame_prior=joint.config.frame_prior)
    for name, weight in base.state_dict().items():
        assert torch.equal(joint.state_dict()[name], weight)
    assert {path.name.split("-")[0] for path in (runs / "joint/stages").iterdir()} == {
        "tokens", "frame_states", "frame_prior",
    }  # fmt: skip
    images = {"rgb": np.random.default_rng(0).integers(0, 256, (2, 2, 16, 16, 3), np.uint8)}
    latents = base.encode({key: torch.from_numpy(each) for key, each in images.items()})
    context = Context(latents, torch.zeros(2, 1, 2))
    drawn = [
        model.proposal(Goal()).sample(
            context, 3, horizon=2, generator=torch.Generator().manual_seed(0)
        )
        for model in (base, joint)
    ]
    assert torch.equal(*drawn)


def test_rollouts_videos_and_subgoals_are_decoded_jointly(runs):
    model = checkpoint.load(checkpoint.find(runs / "joint")).model
    shown = {"rgb": torch.randint(0, 256, (2, 2, 16, 16, 3), dtype=torch.uint8)}
    latents = model.encode(shown)
    model.frame_prior.prior.gate.bias.data += 100  # copies whatever it is given
    context = Context(latents, torch.zeros(2, 1, 2))
    after = model.rollout(model.prepare(context), torch.zeros(2, 3, 4, 2))
    assert torch.equal(after, latents[:, -1, None, None].expand(-1, 3, 4, -1))
    last = model.decode(latents)["rgb"][:, -1:]
    assert torch.equal(model.sample(shown, 2)["rgb"], last.expand(-1, 2, -1, -1, -1))
    assert torch.equal(model.subgoal()(context, 2), latents[:, -1])


def test_a_base_that_is_none_and_no_network_are_refused(runs, tmp_path):
    data = runs / "data.zarr"
    with pytest.raises(ConfigError, match=r"VideoWorld.frame_prior.channels: found 0, need some"):
        train("videoworld", data=data, run=tmp_path / "a", overrides=[f"base.run={runs / 'base'}"])
    with pytest.raises(ConfigError, match="VideoWorld.base: found 'cfm', need a run"):
        train("videoworld", data=data, run=tmp_path / "b", overrides=["base.name=cfm", *FRAMES])
    assert latentplan.load(runs / "joint").model.config.frame_prior.views == 1
    assert VideoWorld.Config().frame_prior.channels == 0
