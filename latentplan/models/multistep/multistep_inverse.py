"""Multi-step inverse: a policy for goal images, trained on tokens of demonstrations by hindsight.

Two stages: a tokenizer of single frames, chosen by name or from a run, and `network.py` over its
tokens and the vectors beside them, such as proprioception. On frozen tokens an epoch costs a tenth
of one on images. The policy generates the likeliest action towards the goal; planners can verify
its proposals by the latent dynamics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from latentplan.errors import ConfigError
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
from latentplan.models.goal_inverse import InverseProposal, latent_of_goal
from latentplan.models.multistep.network import MultistepNetwork
from latentplan.shapes import check
from latentplan.types import (
    Context,
    Derived,
    Episode,
    Goal,
    Label,
    Part,
    Parts,
    Spec,
    Stage,
    Tensors,
    Training,
)


class MultistepInverse(nn.Module):
    """A `protocols.Dynamics` and `ActionProposer` for goals that are observations."""

    context = 1
    default_policy = "generative"

    @dataclass(frozen=True)
    class Config:
        """The two networks, and what they observe."""

        images: tuple[str, ...] = ()  # observation keys of the cameras; () for all images
        vectors: tuple[str, ...] | None = None  # keys of vectors; None for all public ones
        tokenizer: Part = Part("tokenizer", "vqvae")  # of single frames
        network: MultistepNetwork.Config = MultistepNetwork.Config()  # encoder, inverse, dynamics

        def observed(self, spec: Spec) -> Spec:
            """Return the spec of what is read; ConfigError if the data do not have it."""
            cameras = of_cameras("MultistepInverse.images", self.images, spec).observation
            public = [key for key in spec.observation if key not in spec.privileged]
            flat = tuple(key for key in public if len(spec.observation[key].shape) == 1)
            vectors = flat if self.vectors is None else self.vectors
            for key in vectors:
                if key not in flat:
                    known = ", ".join(flat) or "none"
                    raise ConfigError(
                        f"MultistepInverse.vectors: no vector {key!r}; the data have: {known}"
                    )
            seen = {**cameras, **{key: spec.observation[key] for key in vectors}}
            return replace(spec, observation=seen, privileged=(), planar=None)

    @dataclass(frozen=True)
    class Training:
        """How each network is trained."""

        tokenizer: Training = field(default=Training(batch=24, learning_rate=3e-3, clip=1.0))
        network: Training = field(
            default=Training(
                steps=1500, batch=12, warmup=50, clip=5.0, weight_decay=1e-2
            )
        )

    def __init__(
        self,
        spec: Spec,
        config: Config | None = None,
        *,
        tokenizer: Any = None,
        network: MultistepNetwork | None = None,
    ) -> None:
        """Put the networks together, or build those that are not given."""
        super().__init__()
        c = ordered(config or self.Config(), tokenizer)
        self.spec = c.observed(spec)
        cameras = of_cameras("MultistepInverse.images", c.images, self.spec)
        keys = tuple(cameras.observation)
        self.vectors = tuple(key for key in self.spec.observation if key not in keys)
        c = self.config = replace(c, images=keys, vectors=self.vectors)
        self.tokenizer = tokenizer or build_tokenizer("MultistepInverse", c.tokenizer, cameras)
        tokens = _token_spec(self.spec, self.tokenizer)
        self.network = network or _network(tokens, c, self.tokenizer)
        self.latent_dim = c.network.latent

    @classmethod
    def stages(
        cls,
        config: Config,
        *,
        training: MultistepInverse.Training,
        spec: Spec,
        labels: Sequence[Label],
    ) -> Sequence[Stage | Derived]:
        """Return the tokenizer, the store of tokens and vectors, and the network on them."""
        seen = config.observed(spec)
        cameras = of_cameras("MultistepInverse.images", config.images, seen)
        return [
            tokenizer_stage("MultistepInverse", config.tokenizer, cameras, training.tokenizer),
            token_store(
                "tokens",
                lambda tokenizer: _token_spec(seen, tokenizer),
                lambda episode, tokenizer: _tokenized(episode, seen, tokenizer),
                of={"observations": list(seen.observation)},
            ),
            Stage(
                "network",
                lambda spec, parts: _network(spec, config, parts["tokenizer"]),
                config.network,
                training.network,
                data="tokens",
                parts=("tokenizer",),
            ),
        ]

    @classmethod
    def assemble(
        cls, config: Config, *, spec: Spec, labels: Sequence[Label], parts: Parts
    ) -> MultistepInverse:
        """Return the model of its trained networks."""
        return cls(spec, config, tokenizer=parts["tokenizer"], network=parts["network"])

    def encode(self, observations: Tensors) -> Tensor:
        """Return latents (B, T, D) of images (B, T, h, w, 3) uint8 and vectors (B, T, n)."""
        seen = {key: observations[key] for key in self.tokenizer.spec.observation}
        ids = self.tokenizer.encode(seen).ids
        vectors = {key: observations[key] for key in self.vectors}
        return self.network.encode({TOKENS: ids, **vectors})

    def prepare(self, context: Context) -> Tensor:
        """Return the last latent (B, D)."""
        check("MultistepInverse.prepare.context", context.latents, "B T D", D=self.latent_dim)
        return context.latents[:, -1]

    def rollout(self, prepared: Tensor, actions: Tensor) -> Tensor:
        """Return (B, N, H, D) after each of the actions (B, N, H, A), from latents (B, D)."""
        size = self.spec.action.size
        check("MultistepInverse.rollout.actions", actions, "B N H A", B=len(prepared), A=size)
        return self.network.dynamics.unroll(prepared, self.network.scaling(actions))

    def proposal(self, goal: Goal) -> InverseProposal:
        """Return actions towards a goal observation, the likeliest first.

        Raises ConfigError for a goal without one.
        """
        latent = latent_of_goal(self, goal, name="multistep_inverse")
        return InverseProposal(self.network.inverse, latent[None])


def _token_spec(spec: Spec, tokenizer: Any) -> Spec:
    """Return the spec of a store of tokens and the vectors of `spec`."""
    vectors = {key: a for key, a in spec.observation.items() if len(a.shape) == 1}
    return token_spec(spec, tokenizer, vectors)


def _tokenized(episode: Episode, spec: Spec, tokenizer: Any) -> Episode:
    """Return an episode of tokens and vectors, with the same actions and labels."""
    vectors = {
        key: episode.observations[key] for key, a in spec.observation.items() if len(a.shape) == 1
    }
    return replace(episode, observations={TOKENS: tokens_of(episode, tokenizer), **vectors})


def _network(spec: Spec, config: MultistepInverse.Config, tokenizer: Any) -> MultistepNetwork:
    """Return an untrained network for a store of tokens."""
    sizes = {"cameras": len(tokenizer.spec.observation), "vocabulary": tokenizer.vocabulary}
    return MultistepNetwork(spec, config.network, **sizes)
