from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from latentplan.nn.mlp import LatentMLP

each_kind = pytest.mark.parametrize("residual", [True, False])


def made(residual, hidden=(16, 12)):
    torch.manual_seed(0)
    model = LatentMLP(5, 3, hidden, residual=residual).double()
    return model, torch.randn(2, 5).double(), torch.randn(2, 4, 6, 3).double()


def step_by_step(model, z, actions):
    now, latents = z[:, None], []
    for action in actions.unbind(2):
        now = model(now, action)
        latents.append(now)
    return torch.stack(latents, 2)


@each_kind
@pytest.mark.parametrize("hidden", [(16,), (16, 12), (8, 8, 8)])
def test_unrolled_is_step_by_step(residual, hidden):
    model, z, actions = made(residual, hidden)
    expected = step_by_step(model, z, actions)
    torch.testing.assert_close(model.unroll(z, actions), expected)
    with torch.no_grad():
        torch.testing.assert_close(model.unroll(z, actions), expected)
    torch.testing.assert_close(model.requires_grad_(False).unroll(z, actions), expected)


@each_kind
def test_gradients_of_frozen_weights_go_to_start_and_actions(residual):
    model, z, actions = made(residual)
    model.requires_grad_(False)
    z.requires_grad_()
    actions.requires_grad_()
    assert torch.autograd.gradcheck(model.unroll, (z, actions))


@each_kind
def test_gradients_reach_weights_in_training(residual):
    model, z, actions = made(residual)
    model.unroll(z, actions).square().sum().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    step_by_step(model, z, actions).square().sum().backward()
    for one, other in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)


@each_kind
def test_a_later_rollout_changes_no_earlier_one(residual):
    model, z, actions = made(residual)
    model.requires_grad_(False)
    first = model.unroll(z, actions)
    kept = first.clone()
    model.unroll(-z, -actions)
    assert torch.equal(first, kept)
    actions.requires_grad_()
    one = model.unroll(z, actions).sum()
    other = model.unroll(-z, -actions.detach()).sum()
    (slope,) = torch.autograd.grad(one, actions)
    torch.testing.assert_close(
        slope, torch.autograd.grad(step_by_step(model, z, actions).sum(), actions)[0]
    )
    assert other.isfinite()


def test_weights_that_change_in_place_or_are_copied_are_the_ones_used():
    model, z, actions = made(True)
    model.requires_grad_(False)
    model.unroll(z, actions)
    twin = deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5)
    torch.testing.assert_close(model.unroll(z, actions), step_by_step(model, z, actions))
    assert not torch.allclose(model.unroll(z, actions), twin.unroll(z, actions))
    torch.testing.assert_close(twin.unroll(z, actions), step_by_step(twin, z, actions))
    model.load_state_dict(twin.state_dict())
    torch.testing.assert_close(model.unroll(z, actions), twin.unroll(z, actions))
    model.float()
    single = model.unroll(z.float(), actions.float())
    torch.testing.assert_close(single, twin.unroll(z, actions).float())
    with torch.inference_mode():
        torch.testing.assert_close(model.unroll(z.float(), actions.float()), single)
