"""The toy problem of the planner benchmark: a network of random weights, and reachable goals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentplan.nn.mlp import LatentMLP
from latentplan.objectives.goal import GoalDistance, LatentDistance
from latentplan.planning.spaces import Box
from latentplan.types import ActionSpec, ArraySpec, Batch, Context, Loss, Spec, Tensors

LATENT, ACTION, HIDDEN = 32, 4, (256, 256)
BOUND = 2.0  # of an action: twice the std of planners without bounds


class RandomMLP(nn.Module):
    """Dynamics z' = MLP(z, a) with random weights and an identity encoder."""

    context, latent_dim = 1, LATENT

    def __init__(self, seed: int) -> None:
        """Draw weights that preserve the variance of activations."""
        super().__init__()
        self.spec = Spec(
            observation={"state": ArraySpec((LATENT,))},
            action=ActionSpec((-BOUND,) * ACTION, (BOUND,) * ACTION),
        )
        self.dynamics = LatentMLP(LATENT, ACTION, HIDDEN, residual=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                inputs = weight.shape[1] if weight.ndim == 2 else 100
                drawn = torch.randn(weight.shape, generator=generator)
                weight.copy_(drawn * (2 / inputs) ** 0.5)
            self.dynamics.action.weight.mul_((ACTION / (LATENT + ACTION)) ** 0.5)
            self.dynamics.state.weight.mul_((LATENT / (LATENT + ACTION)) ** 0.5)
            list(self.dynamics.rest.parameters())[-2].mul_(0.5**0.5)
        first = nn.Linear(LATENT + ACTION, HIDDEN[0])
        first.weight.data = torch.cat([self.dynamics.state.weight, self.dynamics.action.weight], 1)
        first.bias = self.dynamics.state.bias
        self.plain = nn.Sequential(first, nn.ReLU(), *self.dynamics.rest)
        self.requires_grad_(False)

    def step(self, z: Tensor, action: Tensor) -> Tensor:
        """Return z' for z (..., D) and actions (..., A), in a straightforward implementation."""
        after: Tensor = self.plain(torch.cat([z, action], dim=-1))
        return after

    def encode(self, observations: Tensors) -> Tensor:
        """Return the state unchanged."""
        return observations["state"]

    def prepare(self, context: Context) -> Tensor:
        """Return the last latent (B, D)."""
        return context.latents[:, -1]

    def rollout(self, prepared: Tensor, actions: Tensor) -> Tensor:
        """Return the latents (B, N, H, D) after each of the actions (B, N, H, A)."""
        return self.dynamics.unroll(prepared, actions)

    def loss(self, batch: Batch) -> Loss:
        """Return the mean squared error of the next latent."""
        latents = self.encode(batch.observations)
        error = self.step(latents[:, :-1], batch.actions) - latents[:, 1:]
        total = error.square().mean()
        return Loss(total, {"prediction": total.detach()})


class Toy:
    """B problems with one network; `become` replaces the problems in place."""

    def __init__(self, *, batch: int, horizon: int, seed: int = 0, device: str = "cpu") -> None:
        """Draw the weights of `seed` and the problems number 0."""
        self.model = RandomMLP(seed).to(device)
        self.horizon = horizon
        self.start = torch.zeros(batch, LATENT, device=device)  # (B, D)
        self.goal = torch.zeros(batch, LATENT, device=device)
        self.become(0)

    @property
    def objective(self) -> LatentDistance:
        """The mean over the horizon of the squared distance to the goal."""
        return LatentDistance(self.goal, GoalDistance.Config(power=2, reduce="mean"))

    def context(self, dtype: torch.dtype = torch.float32) -> Context:
        """Return the starts as a context of one latent."""
        latents = self.start[:, None].to(dtype)
        return Context(latents, latents.new_zeros(len(latents), 0, ACTION))

    @property
    def space(self) -> Box:
        """The box of actions."""
        limit = self.start.new_full((ACTION,), BOUND)
        return Box(-limit, limit, problems=len(self.start))

    @torch.no_grad()
    def become(self, number: int) -> None:
        """Draw the problems of a number: starts, and goals reached by random actions from there."""
        batch, device = len(self.start), self.start.device
        generator = torch.Generator().manual_seed(number)
        z = torch.randn(batch, LATENT, generator=generator).to(device)
        # Starts follow twenty random actions, so that they are states that the network reaches.
        drawn = torch.randn(batch, 1, 20 + self.horizon, ACTION, generator=generator)
        path = self.model.rollout(z, drawn.clamp(-BOUND, BOUND).to(device))[:, 0]
        self.start.copy_(path[:, 19])
        self.goal.copy_(path[:, -1])

    @torch.no_grad()
    def move(self, actions: Tensor) -> None:
        """Execute the first of actions (B, H, A)."""
        self.start.copy_(self.model.rollout(self.start, actions[:, None])[:, 0, 0])

    @torch.no_grad()
    def cost(self, actions: Tensor) -> float:
        """Return the mean cost of actions (B, H, A) by the model in float32."""
        candidates = actions[:, None].to(self.start)
        latents = self.model.rollout(self.start, candidates)
        return float(self.objective(latents, candidates).mean())
