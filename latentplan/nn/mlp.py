"""z' = MLP(z, a), or z + MLP(z, a): written for training, and unrolled for planning."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LatentMLP(nn.Module):
    """A latent dynamics of linear layers with ReLU between them.

    The first layer is two, so that in `forward` z's half runs once for all actions of a z.
    """

    def __init__(
        self, latent: int, action: int, hidden: tuple[int, ...], *, residual: bool = True
    ) -> None:
        """Make the layers; with `residual` they predict the change of z."""
        super().__init__()
        self.latent, self.residual = latent, residual
        self.state = nn.Linear(latent, hidden[0])
        self.action = nn.Linear(action, hidden[0], bias=False)
        self.rest = mlp(hidden, latent)
        rest = [layer for layer in self.rest if isinstance(layer, nn.Linear)]
        self._linear = (self.state, self.action, rest)
        self._seen: list[tuple[int, torch.dtype, int]] = []  # which weights are laid out
        self._laid_out: list[Tensor] = []

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        """Return z' of z (..., D) and actions (..., A), whose leading axes broadcast."""
        out: Tensor = self.rest(F.relu(self.state(z) + self.action(action)))
        return z + out if self.residual else out

    def unroll(self, z: Tensor, actions: Tensor) -> Tensor:
        """Return latents (B, N, H, D) after each of the actions (B, N, H, A), from z (B, D).

        With frozen weights, as in planning, a step is one matrix product a layer with its bias, the
        ReLU in place, and the new latent written beside the next action; gradients with respect
        to z and actions go the same way back.
        """
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            return self._plain(z, actions)
        weights, biases = self._layers()
        if torch.is_grad_enabled():
            latents: Tensor = _Unroll.apply(  # type: ignore[no-untyped-call]
                z, actions, weights, biases, self.residual
            )
            return latents
        return _unroll(z, actions, weights, biases, residual=self.residual, keep=False)[0]

    def _layers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return weights (in, out), the first layer's of [z | a], and biases.

        On a CPU frozen weights are laid out in this order, which its products read a tenth faster,
        once for as long as they stay the same. Those in training are not kept: a fused optimizer
        changes them without a new version.
        """
        state, action, rest = self._linear
        biases: list[Tensor] = [state.bias, *(layer.bias for layer in rest)]
        given = [state.weight, action.weight, *(layer.weight for layer in rest)]
        if given[0].is_cuda or given[0].is_inference():
            first = torch.cat(given[:2], dim=1)
            return [first.T, *(weight.T for weight in given[2:])], biases
        seen = [(weight.data_ptr(), weight.dtype, weight._version) for weight in given]
        if seen != self._seen or any(weight.requires_grad for weight in given):
            with torch.no_grad():
                first = torch.cat(given[:2], dim=1)
                self._laid_out = [w.T.contiguous() for w in (first, *given[2:])]
            self._seen = seen
        return self._laid_out, biases

    def _plain(self, z: Tensor, actions: Tensor) -> Tensor:
        now, latents = z[:, None], []
        for action in actions.unbind(2):
            now = self(now, action)
            latents.append(now)
        return torch.stack(latents, dim=2)


def _unroll(
    z: Tensor,
    actions: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    *,
    residual: bool,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Return the latents, and the outputs (H, rows, width) of the hidden layers if `keep`.

    Weights are (in, out), the first layer's of [z | a].
    """
    problems, count, horizon, size = actions.shape
    width, rows = z.shape[1], problems * count
    # [z | a] of every step: the last layer of one writes into the input of the next.
    x = z.new_empty(horizon + 1, rows, width + size)
    x[:horizon, :, width:] = actions.permute(2, 0, 1, 3).reshape(horizon, rows, size)
    x[0].view(problems, count, -1)[..., :width] = z[:, None]
    # Without a way back all steps share a buffer.
    kept = [z.new_empty(horizon if keep else 1, rows, len(bias)) for bias in biases[:-1]]
    hidden = [
        (bias, weight, out.unbind() if keep else out.unbind() * horizon)
        for bias, weight, out in zip(biases, weights, kept, strict=False)
    ]
    bias, weight = biases[-1], weights[-1]
    latents = x[1:, :, :width].unbind()
    for step, (now, after) in enumerate(zip(x.unbind(), latents, strict=False)):
        h = now
        for inner_bias, inner, out in hidden:
            h = torch.addmm(inner_bias, h, inner, out=out[step]).relu_()
        torch.addmm(bias, h, weight, out=after)
        if residual:
            after += now[:, :width]
    found = x.view(horizon + 1, problems, count, -1)[1:, ..., :width]
    return found.permute(1, 2, 0, 3), kept


class _Unroll(torch.autograd.Function):
    """`_unroll` with its way back to z and actions; the weights get no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        actions: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        residual: bool,
    ) -> Tensor:
        latents, ctx.kept = _unroll(z, actions, weights, biases, residual=residual, keep=True)
        ctx.weights, ctx.residual, ctx.shape = weights, residual, actions.shape
        return latents

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        problems, count, horizon, size = ctx.shape
        width = slope.shape[-1]
        given = slope.permute(2, 0, 1, 3).reshape(horizon, problems * count, width)
        to_actions = slope.new_empty(horizon, problems * count, size)
        to_z = torch.zeros_like(given[0])
        for step in reversed(range(horizon)):
            after = given[step] + to_z
            back = after
            for weight, h in zip(reversed(ctx.weights[1:]), reversed(ctx.kept), strict=True):
                back = torch.ops.aten.threshold_backward(back @ weight.T, h[step], 0)
            to_x = back @ ctx.weights[0].T
            to_actions[step] = to_x[:, width:]
            to_z = to_x[:, :width] + after if ctx.residual else to_x[:, :width]
        to_actions = to_actions.view(horizon, problems, count, size).permute(1, 2, 0, 3)
        return to_z.view(problems, count, width).sum(1), to_actions, None, None, None


def mlp(hidden: tuple[int, ...], out: int) -> nn.Sequential:
    """Return linear layers from hidden[0] to `out` with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in zip(hidden, hidden[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], out))
