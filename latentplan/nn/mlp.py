"""z' = MLP(z, a), or z + MLP(z, a): written for training, and unrolled for planning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class LatentMLP(nn.Module):
    """A latent dynamics of linear layers with ReLU between them.

    The first layer is two, so that in `forward` z's half runs once for all actions of a z.
    """

    def __init__(
        self, latent: int, action: int, hidden: tuple[int, ...], *, residual: bool = True
    ) -> None:
        """Make the layers; with `residual` they give the change of z."""
        super().__init__()
        self.latent, self.residual = latent, residual
        self.state = nn.Linear(latent, hidden[0])
        self.action = nn.Linear(action, hidden[0], bias=False)
        self.rest = mlp(hidden, latent)

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        """Return z' of z (..., D) and actions (..., A), whose leading axes broadcast."""
        out: Tensor = self.rest(F.relu(self.state(z) + self.action(action)))
        return z + out if self.residual else out

    def unroll(self, z: Tensor, actions: Tensor) -> Tensor:
        """Return latents (B, N, H, D) after each of the actions (B, N, H, A), from z (B, D).

        Without gradients it runs in buffers: a step is one matrix product a layer with its bias,
        the ReLU in place, and the new latent written beside the next action.
        """
        if torch.is_grad_enabled():
            return self._plain(z, actions)
        problems, count, horizon, size = actions.shape
        width, rows = self.latent, problems * count
        # [z | a] of every step: the last layer of one writes into the first layer's input of the next
        x = z.new_empty(horizon + 1, rows, width + size)
        x[:horizon, :, width:] = rearrange(actions, "b n h a -> h (b n) a")
        x[0].view(problems, count, -1)[..., :width] = z[:, None]
        first = torch.cat([self.state.weight, self.action.weight], dim=1)
        linear = [layer for layer in self.rest if isinstance(layer, nn.Linear)]
        weights = [first.T, *(layer.weight.T for layer in linear)]
        biases = [self.state.bias, *(layer.bias for layer in linear)]
        between = [z.new_empty(rows, weight.shape[1]) for weight in weights[:-1]]
        for now, after in zip(x[:-1], x[1:, :, :width], strict=True):
            h = now
            for bias, weight, out in zip(biases, weights, between, strict=False):
                h = torch.addmm(bias, h, weight, out=out).relu_()
            torch.addmm(biases[-1], h, weights[-1], out=after)
            if self.residual:
                after += now[:, :width]
        return rearrange(x[1:, :, :width], "h (b n) d -> b n h d", b=problems)

    def _plain(self, z: Tensor, actions: Tensor) -> Tensor:
        now, latents = z[:, None], []
        for action in actions.unbind(2):
            now = self(now, action)
            latents.append(now)
        return torch.stack(latents, dim=2)


def mlp(hidden: tuple[int, ...], out: int) -> nn.Sequential:
    """Return linear layers from hidden[0] to `out` with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in zip(hidden, hidden[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], out))
