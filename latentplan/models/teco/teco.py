"""TECO: a world model that imagines video under actions, and keeps what left the view.

Temporally Consistent Transformer (Yan, Hafner, James, Abbeel, arXiv 2210.02396). Two stages: a
tokenizer of single frames, chosen by name or from a run, and `dynamics.py` over its tokens. It
samples and scores video, and rolls out actions for a planner. Differs: see `dynamics.py`; and the
paper does not plan. Latents are the embeddings of a frame's tokens, expected ones of imagined
frames, so that a distance between them is smooth in what is uncertain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ShapeError, check_range
from latentplan.models.frame_tokens import (
    TOKENS,
    build_tokenizer,
    of_cameras,
    ordered,
    token_spec,
    token_store,
    tokenizer_stage,
    tokens_of,
)
from latentplan.models.teco.dynamics import TemporalDynamics, fitted
from latentplan.models.teco.layers import History
from latentplan.shapes import check
from latentplan.types import (
    Context,
    Derived,
    Episode,
    Label,
    Part,
    Parts,
    Spec,
    Stage,
    Tensors,
    Tokens,
    Training,
)

NEAREST = 4096  # latents of tokens compared with all embeddings at a time


class TECO(nn.Module):
    """A `protocols.VideoModel` and `protocols.Dynamics`: tokenizer, then dynamics.

    A latent (D = K d) has the embeddings of the K tokens of a frame. The first frame is given.
    """

    stride = 1  # frames that have one probability together

    @dataclass(frozen=True)
    class Config:
        """The two networks."""

        images: tuple[str, ...] = ()  # observation keys of the cameras; () for all images
        tokenizer: Part = Part("tokenizer", "vqvae")  # of single frames
        dynamics: TemporalDynamics.Config = field(
            default_factory=TemporalDynamics.Config
        )  # over its tokens
        rollout_draft: int = 1  # steps in which a planner's rollouts decode the codes of a frame

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("TECO.rollout_draft", self.rollout_draft, 1)

        def observed(self, spec: Spec) -> Spec:
            """Return the spec of the cameras alone; ConfigError if the data do not have them."""
            return of_cameras("TECO.images", self.images, spec)

    @dataclass(frozen=True)
    class Training:
        """How each network is trained."""

        tokenizer: Training = field(default=Training(batch=24, learning_rate=3e-3, clip=1.0))
        dynamics: Training = field(
            default=Training(batch=32, learning_rate=1e-4, clip=1.0, weight_decay=1e-5)
        )

    def __init__(
        self,
        spec: Spec,
        config: Config | None = None,
        *,
        tokenizer: Any = None,
        dynamics: TemporalDynamics | None = None,
    ) -> None:
        """Put the networks together, or build those that are not given."""
        super().__init__()
        c = ordered(config or self.Config(), tokenizer)
        self.spec = c.observed(spec)
        self.cameras = tuple(self.spec.observation)
        c = self.config = replace(c, images=self.cameras)  # in this order when it is loaded
        self.tokenizer = tokenizer or build_tokenizer("TECO", c.tokenizer, self.spec)
        tokens = token_spec(self.spec, self.tokenizer)
        self.dynamics = dynamics or _dynamics(tokens, self.tokenizer, c)
        self.context = c.dynamics.context
        self.latent_dim = self.dynamics.tokens * c.dynamics.embedding

    @classmethod
    def stages(
        cls, config: Config, *, training: TECO.Training, spec: Spec, labels: Sequence[Label]
    ) -> Sequence[Stage | Derived]:
        """Return the tokenizer, the store of tokenized frames, and the dynamics."""
        seen = config.observed(spec)
        return [
            tokenizer_stage("TECO", config.tokenizer, seen, training.tokenizer),
            token_store(
                "tokens",
                lambda tokenizer: token_spec(seen, tokenizer),
                tokenized,
                of={"images": list(seen.observation)},
            ),
            Stage(
                "dynamics",
                lambda spec, parts: _dynamics(spec, parts["tokenizer"], config),
                config.dynamics,
                training.dynamics,
                data="tokens",
                parts=("tokenizer",),
                window=config.dynamics.clip,
                window_from="model.dynamics.clip",
            ),
        ]

    @classmethod
    def assemble(cls, config: Config, *, spec: Spec, labels: Sequence[Label], parts: Parts) -> TECO:
        """Return the model of its trained networks."""
        return cls(spec, config, tokenizer=parts["tokenizer"], dynamics=parts["dynamics"])

    def encode(self, observations: Tensors) -> Tensor:
        """Return latents (B, T, D) of images (B, T, h, w, 3) uint8."""
        found: Tensor = self.dynamics.embed(self.tokenizer.encode(self._seen(observations)).ids)
        return found.flatten(2)

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """Return the cameras' images (B, T, h, w, 3) uint8 of latents (B, T, D)."""
        decoded: dict[str, Tensor] = self.tokenizer.decode(Tokens(self.ids(latents)))
        return decoded

    def ids(self, latents: Tensor) -> Tensor:
        """Return the tokens (B, T, K) whose embeddings are nearest to latents (B, T, D)."""
        check("TECO.latents", latents, "B T D", D=self.latent_dim)
        table = self.dynamics.embed.weight
        flat = rearrange(latents, "b t (k d) -> (b t k) d", d=table.shape[1])
        parts = torch.split(flat, NEAREST)
        near = [torch.cdist(some, table).argmin(-1) for some in parts]
        return torch.cat(near).view(*latents.shape[:2], -1)

    def prepare(self, context: Context) -> History:
        """Return the history of a context, at most a clip long, which all rollouts share."""
        self._check_length("TECO.prepare.context", context.latents.shape[1])
        return self.dynamics.begin(self.ids(context.latents), context.actions)

    @torch.no_grad()
    def rollout(self, prepared: History, actions: Tensor) -> Tensor:
        """Return (B, N, H, D) after each of the actions (B, N, H, A): the likeliest codes.

        They are decoded in `rollout_draft` steps, without the revision of `sample`.
        """
        size = self.spec.action.size
        check("TECO.rollout.actions", actions, "B N H A", B=len(prepared.tokens), A=size)
        b, n = actions.shape[:2]
        history, after = prepared.repeat(n), []
        for action in actions.flatten(0, 1).unbind(1):
            logits = self.dynamics.advance(history, action, draft=self.config.rollout_draft)
            after.append((logits.softmax(-1) @ self.dynamics.embed.weight).flatten(1))
        return rearrange(torch.stack(after, dim=1), "(b n) h d -> b n h d", b=b)

    def log_prob(
        self, frames: Tensors, *, actions: Tensor | None = None, task: Tensor | None = None
    ) -> Tensor:
        """Return a lower bound (B, T) of the log-probability in nats of each frame's tokens.

        At most a clip of frames (B, T, h, w, 3) uint8 a camera, and the actions (B, T - 1, A).
        """
        ids = self.tokenizer.encode(self._seen(frames)).ids
        self._check_length("TECO.log_prob", ids.shape[1])
        if actions is not None:
            self._check_actions("TECO.log_prob", actions, ids.shape[1] - 1)
        return self.dynamics.log_prob(ids, actions)

    @torch.no_grad()
    def sample(
        self,
        frames: Tensors,
        steps: int,
        *,
        actions: Tensor | None = None,
        task: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return the next frames (B, steps, h, w, 3) uint8 a camera.

        Of more frames than a clip the last are used. `actions` (B, T - 1 + steps, A), unless the
        model shall imagine any. The temperature is that of the codes; decoded tokens are the
        likeliest.
        """
        check_range("TECO.sample: steps", steps, 1)
        d = self.dynamics
        ids = self.tokenizer.encode(self._seen(frames)).ids
        given = ids.shape[1]
        if actions is not None:
            self._check_actions("TECO.sample", actions, given - 1 + steps)
        first = max(0, given - d.config.clip)
        sent = None if actions is None else actions[:, first : given - 1]
        history = d.begin(ids[:, first:], sent)
        shown = []
        for step in range(steps):
            action = None if actions is None else actions[:, given - 1 + step]
            d.advance(history, action, temperature=temperature, generator=generator)
            shown.append(history.tokens[:, -1])
        decoded: dict[str, Tensor] = self.tokenizer.decode(Tokens(torch.stack(shown, dim=1)))
        return decoded

    def _seen(self, observations: Tensors) -> Tensors:
        """Return the cameras' images."""
        return {key: observations[key] for key in self.cameras}

    def _check_length(self, where: str, length: int) -> None:
        """Raise ShapeError for a context that is longer than what training attended to."""
        clip = self.config.dynamics.clip
        if not 1 <= length <= clip:
            raise ShapeError(
                f"{where}: found {length} frames, need 1 to {clip}, the clip that it was trained "
                "on; give the last ones"
            )

    def _check_actions(self, where: str, actions: Tensor, count: int) -> None:
        """Raise ShapeError unless there are `count` actions, all finite."""
        check(f"{where}.actions", actions, "B n A", n=count, A=self.spec.action.size)
        if actions.device.type == "cpu" and not bool(actions.isfinite().all()):
            raise ShapeError(f"{where}.actions: found NaN or infinite numbers, need finite ones")


def tokenized(episode: Episode, tokenizer: Any) -> Episode:
    """Return an episode of tokens, with the same actions and labels."""
    return replace(episode, observations={TOKENS: tokens_of(episode, tokenizer)})


def _dynamics(spec: Spec, tokenizer: Any, config: TECO.Config) -> TemporalDynamics:
    """Return untrained dynamics for a store of tokens."""
    sizes = {"vocabulary": tokenizer.vocabulary, "cameras": len(tokenizer.spec.observation)}
    return TemporalDynamics(spec, fitted(config.dynamics, **sizes))
