"""Goals by hindsight in packed rows, and the multi-step inverse model that is trained on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from latentplan.errors import ConfigError
from latentplan.models.frame_tokens import TOKENS
from latentplan.models.goal_inverse import GoalInverse, remaining
from latentplan.models.latents import LATENTS
from latentplan.models.multistep.multistep_inverse import MultistepInverse
from latentplan.models.multistep.network import MultistepNetwork
from latentplan.protocols import PackedLearner
from latentplan.tokenizers.vqvae import VQVAE
from latentplan.types import ActionSpec, ArraySpec, Batch, Part, Spec

LATENT_SPEC = Spec({LATENTS: ArraySpec((1, 2))}, ActionSpec((-1.0, -1.0), (1.0, 1.0)))
# Tokens of a 4 x 4 map of one camera, and the position of the gripper.
TOKEN_SPEC = Spec(
    {TOKENS: ArraySpec((16,), "int32"), "robot_obs": ArraySpec((2,))},
    ActionSpec((-1.0, -1.0), (1.0, 1.0)),
)
SMALL = MultistepNetwork.Config(
    latent=8,
    channels=(8,),
    widths=(16,),
    hidden=(16,),
    dropout=0.0,
    row=8,
    inverse=GoalInverse.Config(steps=7, hidden=(64,), components=2, hide=0.5),
)


def test_what_remains_of_a_segment_ends_with_it_and_padding_has_none():
    segments = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 1, 1, 1, 1, 1]])
    found = remaining(segments, torch.zeros(2, 6, 3))
    assert found.tolist() == [[2, 1, 0, 1, 0, 0], [0, 4, 3, 2, 1, 0]]
    assert remaining(None, torch.zeros(2, 3, 1)).tolist() == [[2, 1, 0]] * 2


def test_an_inverse_model_is_packed_only_with_goals_of_whole_episodes():
    assert not isinstance(GoalInverse(LATENT_SPEC), PackedLearner)
    whole = GoalInverse(LATENT_SPEC, GoalInverse.Config(episodes=True))
    assert isinstance(whole, PackedLearner) and whole.reads == ("segments",)


def test_actions_and_goals_of_other_segments_are_not_trained_on():
    torch.manual_seed(0)
    model = GoalInverse(LATENT_SPEC, GoalInverse.Config(hidden=(8,), components=2, episodes=True))
    segments = torch.tensor([[0, 0, 0, 1, 1, -1, -1]]).expand(16, -1)
    z, actions = torch.randn(16, 7, 1, 2), torch.rand(16, 6, 2)
    z[:, 5:], actions[:, [2, 4, 5]] = torch.nan, torch.nan  # padding, and between segments
    assert model.loss(Batch({LATENTS: z}, actions, segments=segments)).total.isfinite()
    z[:, 3:5] = torch.nan
    assert model.loss(Batch({LATENTS: z}, actions, segments=segments)).total.isnan()


def test_the_last_latent_is_the_goal_of_the_share_that_is_set():
    torch.manual_seed(0)
    seen = []

    class Recorded(GoalInverse):
        def log_prob(self, z, goal, steps, actions):
            seen.append(goal[:, 0] - z[:, 0])
            return super().log_prob(z, goal, steps, actions)

    z = torch.arange(20.0)[None, :, None].expand(50, 20, 2)
    for final in (0.0, 1.0):
        config = GoalInverse.Config(hidden=(8,), components=2, episodes=True, final=final)
        Recorded(LATENT_SPEC, config).hindsight(z, torch.rand(50, 19, 2), segments=None, goals=2)
    left = 19 - torch.arange(19.0).expand(50, 19).flatten().repeat(2)
    assert (seen[1] == left).all()
    assert (seen[0] >= 1).all() and (seen[0] <= left).all()
    assert (seen[0] / left).mean() == pytest.approx(0.6, abs=0.1)  # uniform


def reaching(rows: int) -> Batch:
    """Return rows in which a marked token is where the gripper goes, in steps of at most 1."""
    cell = torch.randint(0, 16, (rows,))
    target = torch.stack([cell % 4, cell // 4], dim=1).float()
    at, path, actions = 4 * torch.rand(rows, 2), [], []
    for _ in range(8):
        path.append(at)
        actions.append((target - at).clamp(-1, 1))
        at = at + actions[-1]
    tokens = torch.nn.functional.one_hot(cell, 16)[:, None].expand(-1, 8, -1)
    observations = {TOKENS: tokens, "robot_obs": torch.stack(path, dim=1)}
    return Batch(observations, torch.stack(actions[:-1], dim=1))


def test_the_policy_reaches_goals_several_actions_away():
    torch.manual_seed(0)
    model = MultistepNetwork(TOKEN_SPEC, SMALL, cameras=1, vocabulary=2)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(120):
        loss = model.loss(reaching(32)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    batch = reaching(64)
    with torch.no_grad():
        z = model.encode(batch.observations)
        unknown, draw = torch.zeros(1, dtype=torch.long), torch.Generator()
        found = model.inverse.propose(z[:, 0], z[:, -1], unknown, generator=draw)[:, 0]
    wrong = (found - batch.actions[:, 0]).norm(dim=1).mean()
    assert wrong < 0.4 * batch.actions[:, 0].norm(dim=1).mean()


def test_latents_have_mean_0_and_variance_1():
    model = MultistepNetwork(TOKEN_SPEC, SMALL, cameras=1, vocabulary=2)
    z = model.encode(reaching(4).observations)
    torch.testing.assert_close(z.mean(-1), torch.zeros(4, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(-1, correction=0), torch.ones(4, 8), atol=1e-2, rtol=0)


def test_a_map_that_the_convolutions_leave_nothing_of_is_refused():
    with pytest.raises(ConfigError, match="MultistepInverse.channels: 3 halvings of 16 tokens"):
        config = replace(SMALL, channels=(8, 8, 8))
        MultistepNetwork(TOKEN_SPEC, config, cameras=1, vocabulary=2)


def test_a_vector_that_is_none_is_refused_by_name():
    spec = Spec(
        {"rgb": ArraySpec((64, 64, 3), "uint8"), "robot_obs": ArraySpec((2,))},
        ActionSpec((-1.0,), (1.0,)),
    )
    with pytest.raises(ConfigError, match="vectors: no vector 'rgb'; the data have: robot_obs"):
        MultistepInverse.Config(vectors=("rgb",)).observed(spec)
    assert list(MultistepInverse.Config(vectors=()).observed(spec).observation) == ["rgb"]
    assert list(MultistepInverse.Config().observed(spec).observation) == ["rgb", "robot_obs"]


def test_cameras_have_the_order_of_the_tokenizer_that_is_given():
    images = {key: ArraySpec((32, 32, 3), "uint8") for key in ("rgb_static", "rgb_gripper")}
    spec = Spec(images, ActionSpec((-1.0,), (1.0,)))
    turned = Spec(dict(reversed(images.items())), spec.action)
    small = VQVAE.Config(patch=4, channels=(16,))
    config = MultistepInverse.Config(tokenizer=Part("tokenizer", "vqvae", small), network=SMALL)
    model = MultistepInverse(spec, config, tokenizer=VQVAE(turned, small))
    assert model.config.images == ("rgb_gripper", "rgb_static")
    assert MultistepInverse(spec, model.config).tokenizer.images == model.config.images
