"""What every model that gives videos a probability keeps."""

import pytest
import torch

from latentplan import registry
from latentplan.protocols import ActionProposer, Dynamics, SubgoalModel, VideoModel
from latentplan.types import ActionSpec, ArraySpec, Context, Spec

SPEC = Spec({"rgb": ArraySpec((64, 64, 3), "uint8")}, ActionSpec((-1.0,) * 4, (1.0,) * 4))
NAMES = [
    name
    for name in sorted(registry.BUILT_IN["model"])
    if hasattr(registry.get("model", name), "log_prob")
]


@pytest.fixture(params=NAMES)
def model(request):
    torch.manual_seed(0)
    made = registry.get("model", request.param)(SPEC)
    for weight in made.parameters():  # nothing is almost zero, so that what leaks is seen
        weight.data += 0.1 * torch.randn_like(weight)
    return made.eval()


def frames(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (*shape, 64, 64, 3), generator=generator, dtype=torch.uint8)


def test_videoworld_is_one():
    assert "videoworld" in NAMES


def test_log_prob_sees_no_later_frame_and_no_neighbour(model):
    assert isinstance(model, VideoModel)
    stride = model.stride
    video = frames(2, 3 * stride)
    with torch.no_grad():
        found = model.log_prob({"rgb": video})
        assert found.shape == (2, 3 * stride) and found.isfinite().all()
        groups = found.view(2, 3, stride)
        assert (groups[..., -1] < 0).all() and (groups[..., :-1] == 0).all()
        changed = video.clone()
        changed[:, 2 * stride :] = 255 - changed[:, 2 * stride :]
        after = model.log_prob({"rgb": changed})
        torch.testing.assert_close(after[:, : 2 * stride], found[:, : 2 * stride])
        assert not torch.allclose(after[:, 2 * stride :], found[:, 2 * stride :])
        alone = model.log_prob({"rgb": video[1:]})
        torch.testing.assert_close(alone[0], found[1], rtol=1e-4, atol=1e-3)


def test_samples_depend_on_the_generator_alone(model):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return model.sample({"rgb": frames(2, model.stride)}, 2, generator=generator)["rgb"]

    assert draw(0).shape == (2, 2, 64, 64, 3) and draw(0).dtype == torch.uint8
    assert torch.equal(draw(0), draw(0))


def test_latents_are_decoded_to_images_the_same_each_time(model):
    if not isinstance(model, Dynamics):
        pytest.skip("has no latents")
    z = model.encode({"rgb": frames(2, 3)})
    shown = model.decode(z)["rgb"]
    assert shown.shape == (2, 3, 64, 64, 3) and shown.dtype == torch.uint8
    assert torch.equal(shown, model.decode(z)["rgb"])


def past(model, batch):
    latents = model.encode({"rgb": frames(batch, model.context)})
    return Context(latents, torch.zeros(batch, model.context - 1, 4))


def test_it_imagines_where_a_task_leads(model):
    if not isinstance(model, SubgoalModel):
        pytest.skip("does not imagine")
    context = past(model, 2)
    towards = model.subgoal()
    goal = towards(context, 2)
    assert goal.shape == (2, model.latent_dim)
    torch.testing.assert_close(goal, towards(context, 2))
    second = Context(context.latents[1:], context.actions[1:])
    torch.testing.assert_close(towards(second, 2)[0], goal[1])
    shown = model.encode(model.decode(goal[:, None]))
    assert shown.shape == (2, 1, model.latent_dim)


def test_what_it_proposes_is_inside_the_bounds(model):
    if not isinstance(model, ActionProposer):
        pytest.skip("does not propose")
    context = past(model, 1)
    draw = torch.Generator().manual_seed(0)
    actions = model.proposal().sample(context, 3, horizon=6, generator=draw)
    assert actions.shape == (1, 3, 6, 4) and actions.abs().max() <= 1
