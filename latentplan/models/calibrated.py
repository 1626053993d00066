"""Calibrated: a dynamics model regressed on the latents of a trained encoder, and its proposals.

A contrastive model predicts a latent that is nearer to the true next one than to others; it need
not be near it, and costs in its latents are then off by as much (the error of `cfm` after one
action is about that of predicting no change). So its encoder is kept, and two networks are trained
on the latents of the whole data set:

- `dynamics`: members that predict the next latents by regression, over several steps;
- `inverse`: a goal-conditioned inverse model, whose samples are candidates for a planner.

Regressing a dynamics model on frozen latents is common practice: DINO-WM (Zhou et al., arXiv
2411.04983, section 3.1). Here the loss is the distance itself, not its square, so that rare large
errors, such as of a missed pick, do not dominate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from latentplan import registry
from latentplan.errors import check_range
from latentplan.models.goal_inverse import GoalInverse, InverseProposal, latent_of_goal
from latentplan.models.latents import (
    LATENTS,
    latent_spec,
    latents_of,
    one_view,
    turn_actions_of,
    turned_pairs_of,
)
from latentplan.nn.mlp import LatentMLP
from latentplan.nn.observations import frames_of, privileged_of
from latentplan.nn.scaling import ActionScaling
from latentplan.nn.symmetry import turn_for_views
from latentplan.protocols import (
    EquivariantEncoder,
    PrivilegedModel,
    SymmetricDynamics,
    Upgradable,
)
from latentplan.shapes import check
from latentplan.types import (
    Batch,
    Context,
    Derived,
    Goal,
    Label,
    Loss,
    Moments,
    Part,
    Parts,
    Spec,
    Stage,
    Tensors,
    Training,
)

REPORTED = (1, 2, 3, 5)  # steps ahead whose error is a held-out figure


class LatentDynamics(nn.Module):
    """Members z' = z + MLP(z, a) on the latents of an encoder; the prediction is their mean.

    One is enough: it plans as well as the mean of three, in two thirds of the time.
    """

    targets: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    scaled: tuple[str, ...] = ()

    @dataclass(frozen=True)
    class Config:
        """The networks, and the loss."""

        members: int = 1  # networks, whose predictions are averaged
        hidden: tuple[int, ...] = (512, 512)  # widths of a member's layers
        ahead: int = 3  # steps unrolled in training

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("LatentDynamics.members", self.members, 1, 100)
            check_range("LatentDynamics.ahead", self.ahead, 1, 100)
            for width in self.hidden:
                check_range("LatentDynamics.hidden", width, 1, 8192)

    def __init__(self, spec: Spec, config: Config | None = None, *, base: Any = None) -> None:
        """Build the members for a store of the latents of `base`, which turns actions for views."""
        super().__init__()
        c = self.config = config or self.Config()
        self.spec, self.window = spec, c.ahead + 1
        self.turn = turn_actions_of(base)
        self.scaling = ActionScaling(spec.action, pairs=turned_pairs_of(base))
        _, size = spec.observation[LATENTS].shape
        self.members = nn.ModuleList(
            LatentMLP(size, spec.action.size, c.hidden) for _ in range(c.members)
        )

    def fit_statistics(self, actions: Moments, observations: Mapping[str, Moments]) -> None:
        """Scale actions by their statistics: see `protocols.Normalised`."""
        self.scaling.fit(actions)

    def unroll(self, z: Tensor, actions: Tensor) -> Tensor:
        """Return latents (B, N, H, d) after each of the actions (B, N, H, A), from z (B, d)."""
        scaled = self.scaling(actions)
        ahead = [member.unroll(z, scaled) for member in self._each()]
        return ahead[0] if len(ahead) == 1 else torch.stack(ahead).mean(0)

    def loss(self, batch: Batch) -> Loss:
        """Return the mean distance of predicted latents to the true ones, 1 to `ahead` steps on.

        Its figures are the same distances as shares of the distance that the latents moved.
        """
        z, actions = one_view(batch, self.turn)
        actions = self.scaling(actions)
        predicted: list[Tensor] = [z] * len(self.members)
        losses, figures = [], {}
        for k in range(1, z.shape[1]):
            predicted = [
                member(each[:, :-1], actions[:, k - 1 :])  # b (t - k) d
                for member, each in zip(self._each(), predicted, strict=True)
            ]
            errors = [(each - z[:, k:]).norm(dim=-1).mean() for each in predicted]
            losses.append(torch.stack(errors).mean())
            if k in REPORTED:
                mean = torch.stack([each.detach() for each in predicted]).mean(0)
                moved = (z[:, k:] - z[:, :-k]).norm(dim=-1).mean()
                figures[f"error_{k}"] = (mean - z[:, k:]).norm(dim=-1).mean() / moved
        return Loss(torch.stack(losses).mean(), figures)

    def _each(self) -> Sequence[LatentMLP]:
        return cast(Sequence[LatentMLP], self.members)


class Calibrated(nn.Module):
    """A `protocols.Dynamics` of an encoder, a regressed dynamics and a goal-conditioned inverse.

    An `ActionProposer` for goals that are observations. Latents are those of the encoder.
    """

    context = 1
    default_planner = "beam"

    @dataclass(frozen=True)
    class Config:
        """The three networks."""

        base: Part = Part("model", "cfm")  # trained first, or {run: RUN}; its encoder is kept
        dynamics: LatentDynamics.Config = LatentDynamics.Config()  # regressed on its latents
        inverse: GoalInverse.Config = GoalInverse.Config()  # proposes actions

    @dataclass(frozen=True)
    class Training:
        """How each network is trained."""

        base: Training = field(
            default=Training(
                steps=4000, batch=32, window=9, warmup=100, final_rate=0.02, weight_decay=1e-4
            )
        )
        dynamics: Training = field(
            default=Training(steps=4000, batch=128, learning_rate=7e-4, weight_decay=1e-2)
        )
        inverse: Training = field(
            default=Training(steps=4000, batch=384, learning_rate=7e-4, weight_decay=1e-2)
        )

    def __init__(
        self,
        spec: Spec,
        config: Config | None = None,
        *,
        base: Any = None,
        dynamics: LatentDynamics | None = None,
        inverse: GoalInverse | None = None,
    ) -> None:
        """Put the networks together, or build those that are not given."""
        super().__init__()
        c = self.config = config or self.Config()
        self.base = base or _base(spec, c)
        self.privileged = privileged_of(self.base)
        self.spec = self.base.spec
        of_latents = latent_spec(spec, self.base)
        self.dynamics = dynamics or LatentDynamics(of_latents, c.dynamics, base=self.base)
        self.inverse = inverse or GoalInverse(of_latents, c.inverse, base=self.base)
        self.views = self.base.views if isinstance(self.base, EquivariantEncoder) else 1
        self.latent_dim, self.frames = int(self.base.latent_dim), frames_of(self.base)

    @classmethod
    def stages(
        cls, config: Config, *, training: Calibrated.Training, spec: Spec, labels: Sequence[Label]
    ) -> Sequence[Stage | Derived]:
        """Return the encoder's model, the store of its latents, and the networks on them."""
        return [
            Stage.of_part(
                "base",
                config.base,
                lambda spec, parts: _base(spec, config),
                training.base,
                privileged=_privileged(config.base.name),
            ),
            Derived(
                LATENTS,
                lambda spec, parts: latent_spec(spec, parts["base"]),
                lambda episodes, parts: latents_of(episodes, parts["base"]),
                parts=("base",),
                rows=256,
            ),
            _on_latents(
                "dynamics", LatentDynamics, config.dynamics, training.dynamics, steps="ahead"
            ),
            _on_latents("inverse", GoalInverse, config.inverse, training.inverse, steps="steps"),
        ]

    @classmethod
    def upgraded(cls, config: Mapping[str, Any], spec: Spec) -> tuple[Mapping[str, Any], Spec]:
        """Return what a checkpoint states in today's words: see `protocols.Upgradable`."""
        base = dict(config["base"])
        model = registry.get("model", base["name"])
        if not isinstance(model, Upgradable):
            return config, spec
        part = {key: base.pop(key) for key in ("name", "run") if key in base}
        values, spec = model.upgraded(base, spec)
        return {**config, "base": {**part, **values}}, spec

    @classmethod
    def assemble(
        cls, config: Config, *, spec: Spec, labels: Sequence[Label], parts: Parts
    ) -> Calibrated:
        """Return the model of its trained networks."""
        return cls(spec, config, **parts)

    def encode(self, observations: Tensors) -> Tensor:
        """Return the encoder's latents (B, T, D)."""
        latents: Tensor = self.base.encode(observations)
        return latents

    def prepare(self, context: Context) -> Tensor:
        """Return the last latent of every view (B v, d)."""
        check("Calibrated.prepare.context", context.latents, "B T D", D=self.latent_dim)
        return rearrange(context.latents[:, -1], "b (v d) -> (b v) d", v=self.views)

    def rollout(self, prepared: Tensor, actions: Tensor) -> Tensor:
        """Return (B, N, H, D) after each of the actions (B, N, H, A), from latents (B v, d)."""
        v, size = self.views, self.spec.action.size
        check("Calibrated.rollout.actions", actions, "B N H A", B=len(prepared) // v, A=size)
        if v > 1:
            actions = turn_for_views(actions, v, self.base.turn_actions)
        latents = self.dynamics.unroll(prepared, actions)
        return rearrange(latents, "(b v) n h d -> b n h (v d)", v=v)

    def equivalents(self, latents: Tensor) -> Tensor:
        """Return the latents (S, ..., D) that describe the same states, as the encoder says."""
        if isinstance(self.base, SymmetricDynamics):
            return self.base.equivalents(latents)
        return latents[None]

    def proposal(self, goal: Goal) -> InverseProposal:
        """Return actions towards a goal observation, the likeliest first.

        Raises ConfigError for a goal without one.
        """
        latent = latent_of_goal(self, goal, name="calibrated")
        goals = self.equivalents(latent)[:, : self.latent_dim // self.views]
        return InverseProposal(self.inverse, goals)


def _on_latents(
    name: str, learner: Any, config: Any, training: Training, *, steps: str
) -> Stage:
    """Return the stage of a learner of latents, in windows of as many steps as a field says."""
    return Stage(
        name,
        lambda spec, parts: learner(spec, config, base=parts["base"]),
        config,
        training,
        data=LATENTS,
        parts=("base",),
        window=getattr(config, steps) + 1,
        window_from=f"model.{name}.{steps}",
    )


def _privileged(name: str) -> tuple[str, ...]:
    model = registry.get("model", name)
    return model.privileged if isinstance(model, PrivilegedModel) else ()


def _base(spec: Spec, config: Calibrated.Config) -> Any:
    """Return an untrained encoder with its model."""
    return registry.get("model", config.base.name)(spec, config.base.config)
