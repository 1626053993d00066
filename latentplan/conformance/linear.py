"""A fast, exact linear model for the checks of planners, objectives and policies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from latentplan import shapes
from latentplan.conformance.data import seeded
from latentplan.errors import ShapeError
from latentplan.types import ActionSpec, ArraySpec, Context, Spec, Tensors

STATE = "state"  # key of the observation, which is also the latent
COUPLING, GAIN = 0.1, 0.3  # size of A minus the identity, and of B


def spec(states: int = 4, actions: int = 2) -> Spec:
    """Return a spec with a state observation and actions in [-1, 1]."""
    bound = (1.0,) * actions
    return Spec({STATE: ArraySpec((states,))}, ActionSpec(tuple(-b for b in bound), bound))


class Linear(nn.Module):
    """Linear dynamics z' = A z + B a, which also propose actions, predict subgoals and read texts.

    Proposals are uniform within the bounds; the subgoal of every task is the origin; every text
    means that all states are 1.
    """

    context = 1

    def __init__(self, spec: Spec, *, dtype: torch.dtype = torch.float32) -> None:
        """Draw A and B with a fixed seed."""
        super().__init__()
        self.spec = spec
        self.latent_dim = size = spec.observation[STATE].shape[0]
        generator, actions = seeded(), spec.action.size
        mix = torch.randn(size, size, generator=generator, dtype=dtype) / size**0.5
        gain = torch.randn(size, actions, generator=generator, dtype=dtype)
        self.A = nn.Parameter(torch.eye(size, dtype=dtype) + COUPLING * mix)
        self.B = nn.Parameter(GAIN * gain)

    def encode(self, observations: Tensors) -> Tensor:
        """Return the states (B, T, D)."""
        shapes.check("Linear.encode", observations[STATE], "B T D", D=self.latent_dim)
        return observations[STATE].to(self.A.dtype)

    def prepare(self, context: Context) -> Tensor:
        """Return the last latent (B, D)."""
        return context.latents[:, -1]

    def rollout(self, prepared: Tensor, actions: Tensor) -> Tensor:
        """Return the latents (B, N, H, D) after each of the actions (B, N, H, A)."""
        latent = prepared[:, None].expand(-1, actions.shape[1], -1)
        latents = []
        for action in actions.unbind(2):
            latent = latent @ self.A.T + action.to(latent) @ self.B.T
            latents.append(latent)
        return torch.stack(latents, dim=2)

    def proposal(self, task: str = "") -> Uniform:
        """Return the same proposal for every task."""
        return Uniform(self.spec.action)

    def subgoal(self, task: str = "") -> Callable[[Context, int], Tensor]:
        """Return a function that returns the origin (B, D)."""
        return lambda context, steps: torch.zeros_like(context.latents[:, -1])

    def describe(self, latents: Tensor) -> Tensor:
        """Return the latents (..., D), which are their own vectors."""
        if latents.shape[-1] != self.latent_dim:
            shape = tuple(latents.shape)
            raise ShapeError(f"Linear.describe: found {shape}, need (..., {self.latent_dim})")
        return latents

    def text_vector(self, text: str) -> Tensor:
        """Return ones (D,)."""
        return torch.ones_like(self.A[0])


class Uniform:
    """A `protocols.Proposal` of uniform actions."""

    def __init__(self, action: ActionSpec) -> None:
        """Take the bounds."""
        self._low, self._high = torch.tensor(action.low), torch.tensor(action.high)

    def sample(self, context: Context, count: int, *, horizon: int, generator: Generator) -> Tensor:
        """Return actions (B, N, H, A), equal for all B."""
        size = (1, count, horizon, len(self._low))
        drawn = self._low + torch.rand(size, generator=generator) * (self._high - self._low)
        return drawn.expand(len(context.latents), -1, -1, -1)
