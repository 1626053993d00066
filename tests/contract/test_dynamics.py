"""What every registered model keeps: shapes, seeds, gradients, rows that do not mix."""

import pytest
import torch

from latentplan import registry
from latentplan.errors import ShapeError
from latentplan.protocols import Dynamics
from latentplan.types import ActionSpec, ArraySpec, Context, Spec

MODELS = [
    name
    for name in sorted(registry.BUILT_IN["model"])
    if hasattr(registry.get("model", name), "rollout")  # VideoGPT, for one, has no actions
]
SPEC = Spec(
    observation={"rgb": ArraySpec((64, 64, 3), "uint8")}, action=ActionSpec((-1.0,) * 4, (1.0,) * 4)
)


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return registry.get("model", request.param)(SPEC).eval()


def pictures(*shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (*shape, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return {"rgb": x}


def actions(*shape):
    return torch.rand(*shape, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1


def rollout(model, latents, actions):
    past = torch.zeros(len(latents), latents.shape[1] - 1, 4)
    return model.rollout(model.prepare(Context(latents, past)), actions)


def test_shapes(model):
    assert isinstance(model, Dynamics)
    z = model.encode(pictures(2, 3))
    assert z.shape == (2, 3, model.latent_dim)
    context = z[:, -model.context :]
    assert rollout(model, context, actions(2, 5, 4)).shape == (2, 5, 4, model.latent_dim)


def test_a_problem_does_not_depend_on_its_neighbours(model):
    context = model.encode(pictures(3, model.context))
    both = rollout(model, context, actions(3, 5, 2))
    for b in range(3):
        one = model.encode({"rgb": pictures(3, model.context)["rgb"][b : b + 1]})
        alone = rollout(model, one, actions(3, 5, 2)[b : b + 1, 1:2])
        torch.testing.assert_close(alone[0, 0], both[b, 1], rtol=1e-4, atol=1e-5)


def test_a_rollout_sees_no_later_action(model):
    context = model.encode(pictures(1, model.context))
    a = actions(1, 1, 4)
    changed = a.clone()
    changed[:, :, 2:] *= -1
    left, right = rollout(model, context, a), rollout(model, context, changed)
    torch.testing.assert_close(left[:, :, :2], right[:, :, :2])
    assert not torch.allclose(left[:, :, 2:], right[:, :, 2:])


def test_wrong_shapes_are_named(model):
    context = model.encode(pictures(1, model.context))
    with pytest.raises(ShapeError, match="actions"):
        rollout(model, context, torch.zeros(1, 2, 3, 5))
    with pytest.raises(ShapeError, match="context"):
        rollout(model, context[..., :-1], actions(1, 2, 3))
    with pytest.raises(ShapeError):
        model.encode({"rgb": pictures(1, 1)["rgb"][0]})
