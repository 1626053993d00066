"""A latent dynamics on ElasticTok's tokens, whose rollouts cost as little as a planner asks for.

A frame is the numbers of its tokens (finite scalar quantization), of which early ones carry what
matters most (ElasticTok, Yan et al., arXiv 2410.08368). A transformer attends to the first k of
them and to the action, and predicts their change. In training k is random, so that one network
serves every k, as the tokenizer does; the paper has no dynamics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.models.frame_tokens import (
    TOKENS,
    build_tokenizer,
    of_cameras,
    ordered,
    token_spec,
    tokenizer_stage,
    tokens_of,
)
from latentplan.nn.quantizer import FSQCodebook
from latentplan.nn.scaling import ActionScaling
from latentplan.nn.transformer import Transformer
from latentplan.protocols import ScalarTokenizer
from latentplan.shapes import check
from latentplan.types import (
    Batch,
    Context,
    Derived,
    Episode,
    Label,
    Loss,
    Moments,
    Part,
    Parts,
    Spec,
    Stage,
    Tensors,
    Tokens,
    Training,
)


class PrefixDynamics(nn.Module):
    """The change of the first tokens of a frame under an action, for any number of tokens.

    Tokens after the first k of a camera are neither read nor predicted.
    """

    targets: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    scaled: tuple[str, ...] = ()

    @dataclass(frozen=True)
    class Config:
        """The transformer, and which prefixes it is trained on."""

        width: int = 96  # of the transformer
        layers: int = 3  # of the transformer
        heads: int = 4  # of its attention
        ahead: int = 3  # actions that training rolls out
        min_tokens: int = 4  # fewest tokens of a camera in training; the most are all

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            for name in ("width", "layers", "heads", "ahead", "min_tokens"):
                check_range(f"Elastic.dynamics.{name}", getattr(self, name), 1)
            if self.width % (2 * self.heads):
                raise ConfigError(
                    f"Elastic.dynamics.width: {self.width} is not a multiple of 2 "
                    f"heads={2 * self.heads}"
                )

    def __init__(self, spec: Spec, config: Config, *, levels: Sequence[int], cameras: int) -> None:
        """Build it for a store of tokens (K,) of so many cameras and FSQ levels."""
        super().__init__()
        c = self.config = config
        self.spec, self.window, self.cameras = spec, c.ahead + 1, cameras
        self.slots = spec.observation[TOKENS].shape[0] // cameras
        if c.min_tokens > self.slots:
            raise ConfigError(
                f"Elastic.dynamics.min_tokens: {c.min_tokens} is more than the {self.slots} tokens "
                "of a camera"
            )
        self.codebook = FSQCodebook(tuple(levels))
        self.numbers = len(levels)
        self.scaling = ActionScaling(spec.action)
        self.action = nn.Linear(spec.action.size, c.width)
        self.embed = nn.Linear(self.numbers, c.width)
        self.place = nn.Parameter(0.02 * torch.randn(cameras, self.slots, c.width))
        self.body = Transformer(c.width, layers=c.layers, heads=c.heads, causal=False)
        self.out = nn.Linear(c.width, self.numbers)
        nn.init.normal_(self.out.weight, std=1e-3)  # a still scene is almost right from the start
        nn.init.zeros_(self.out.bias)

    def fit_statistics(self, actions: Moments, observations: Mapping[str, Moments]) -> None:
        """Scale actions by their statistics: see `protocols.Normalised`."""
        self.scaling.fit(actions)

    def codes(self, ids: Tensor) -> Tensor:
        """Return the numbers (..., cameras, slots, d) in [-1, 1] of ids (..., K)."""
        codes = self.codebook.codes(ids.long())
        cells: Tensor = rearrange(codes, "... (v s) d -> ... v s d", v=self.cameras)
        return cells

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        """Return the next z (n, cameras, k, d), given z and scaled actions (n, A)."""
        tokens = self.embed(z) + self.place[:, : z.shape[2]]
        x = torch.cat([self.action(action)[:, None], tokens.flatten(1, 2)], dim=1)
        change: Tensor = self.out(self.body(x)[:, 1:])
        return z + change.view_as(z)

    def unroll(self, z: Tensor, actions: Tensor) -> Tensor:
        """Return (n, H, cameras, k, d) after each of the scaled actions (n, H, A)."""
        after = []
        for action in actions.unbind(1):
            z = self(z, action)
            after.append(z)
        return torch.stack(after, dim=1)

    def loss(self, batch: Batch) -> Loss:
        """Return the squared error of predicted prefixes, one random length a batch.

        In evaluation it is the mean over the shortest, the longest and one between. Part `change`:
        the error as a share of that of a prediction that nothing moves.
        """
        z = self.codes(batch.observations[TOKENS])  # b t v s d
        actions, least = self.scaling(batch.actions), self.config.min_tokens
        lengths = [least, (least + self.slots) // 2, self.slots]
        if self.training:
            lengths = [int(torch.randint(least, self.slots + 1, ()))]
        errors, changes = [], []
        for k in lengths:
            first, after = z[:, 0, :, :k], z[:, 1:, :, :k]
            errors.append((self.unroll(first, actions) - after).square().mean())
            changes.append((first[:, None] - after).square().mean())
        error, change = torch.stack(errors).mean(), torch.stack(changes).mean()
        return Loss(error, {"change": error.detach() / change.clamp_min(1e-9)})


class Elastic(nn.Module):
    """A `protocols.ElasticDynamics`: a tokenizer of single frames, then dynamics on its tokens.

    A latent (D = K d) has the numbers of a frame's K tokens, expected ones after a rollout.
    """

    context = 1

    @dataclass(frozen=True)
    class Config:
        """The two networks."""

        images: tuple[str, ...] = ()  # observation keys of the cameras; () for all images
        tokenizer: Part = Part("tokenizer", "elastictok")  # by FSQ, of single frames
        dynamics: PrefixDynamics.Config = PrefixDynamics.Config()  # over its tokens

        def observed(self, spec: Spec) -> Spec:
            """Return the spec of the cameras alone; ConfigError if the data do not have them."""
            return of_cameras("Elastic.images", self.images, spec)

    @dataclass(frozen=True)
    class Training:
        """How each network is trained."""

        tokenizer: Training = field(default=Training(batch=16, learning_rate=2e-3, clip=1.0))
        dynamics: Training = field(
            default=Training(batch=32, learning_rate=2e-3, clip=1.0, weight_decay=1e-2)
        )

    def __init__(
        self,
        spec: Spec,
        config: Config | None = None,
        *,
        tokenizer: Any = None,
        dynamics: PrefixDynamics | None = None,
    ) -> None:
        """Put the networks together, or build those that are not given."""
        super().__init__()
        c = ordered(config or self.Config(), tokenizer)
        self.spec = c.observed(spec)
        c = self.config = replace(c, images=tuple(self.spec.observation))
        self.tokenizer = tokenizer or build_tokenizer("Elastic", c.tokenizer, self.spec)
        tokens = token_spec(self.spec, self.tokenizer)
        self.dynamics = dynamics or _dynamics(tokens, self.tokenizer, c)
        self.tokens = self.dynamics.slots
        self.latent_dim = self.tokenizer.tokens * self.dynamics.numbers

    @classmethod
    def stages(
        cls, config: Config, *, training: Elastic.Training, spec: Spec, labels: Sequence[Label]
    ) -> Sequence[Stage | Derived]:
        """Return the tokenizer, the store of tokenized frames, and the dynamics."""
        seen = config.observed(spec)
        return [
            tokenizer_stage("Elastic", config.tokenizer, seen, training.tokenizer),
            Derived(  # whose few codes of many are no collapse: no `codebooks`
                "tokens",
                lambda _, parts: token_spec(seen, parts["tokenizer"]),
                lambda episodes, parts: [_tokenized(each, parts["tokenizer"]) for each in episodes],
                {"images": list(seen.observation)},
                parts=("tokenizer",),
            ),
            Stage(
                "dynamics",
                lambda spec, parts: _dynamics(spec, parts["tokenizer"], config),
                config.dynamics,
                training.dynamics,
                data="tokens",
                parts=("tokenizer",),
                window=config.dynamics.ahead + 1,
                window_from="model.dynamics.ahead",
            ),
        ]

    @classmethod
    def assemble(
        cls, config: Config, *, spec: Spec, labels: Sequence[Label], parts: Parts
    ) -> Elastic:
        """Return the model of its trained networks."""
        return cls(spec, config, tokenizer=parts["tokenizer"], dynamics=parts["dynamics"])

    def encode(self, observations: Tensors) -> Tensor:
        """Return latents (B, T, D) of images (B, T, h, w, 3) uint8."""
        seen = {key: observations[key] for key in self.spec.observation}
        return self.dynamics.codes(self.tokenizer.encode(seen).ids).flatten(2)

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """Return the cameras' images (B, T, h, w, 3) uint8 of latents (B, T, D)."""
        check("Elastic.latents", latents, "B T D", D=self.latent_dim)
        codes = rearrange(latents, "b t (k d) -> b t k d", d=self.dynamics.numbers)
        decoded: dict[str, Tensor] = self.tokenizer.decode(
            Tokens(self.dynamics.codebook.nearest(codes))
        )
        return decoded

    def prepare(self, context: Context) -> tuple[Tensor, int]:
        """Return the last latent (B, D), of which rollouts predict all tokens."""
        return self.prepare_prefix(context, self.tokens)

    def prepare_prefix(self, context: Context, tokens: int) -> tuple[Tensor, int]:
        """Return the last latent (B, D), and how many of its tokens a rollout predicts."""
        check("Elastic.prepare.context", context.latents, "B T D", D=self.latent_dim)
        check_range("Elastic.prepare.tokens", tokens, 1, self.tokens)
        return context.latents[:, -1], tokens

    def rollout(self, prepared: tuple[Tensor, int], actions: Tensor) -> Tensor:
        """Return (B, N, H, D) after each of the actions (B, N, H, A); later tokens stay."""
        z, k = prepared
        (b, n, h, _), d = actions.shape, self.dynamics
        check("Elastic.rollout.actions", actions, "B N H A", B=len(z), A=self.spec.action.size)
        frame = rearrange(z, "b (v s d) -> b v s d", v=d.cameras, d=d.numbers)
        first = frame[:, :, :k].repeat_interleave(n, dim=0)
        after = d.unroll(first, d.scaling(actions).flatten(0, 1))
        after = rearrange(after, "(b n) h v k d -> b n h v k d", b=b)
        rest = frame[:, None, None, :, k:].expand(-1, n, h, -1, -1, -1)
        return torch.cat([after, rest], dim=-2).flatten(3)


def _tokenized(episode: Episode, tokenizer: Any) -> Episode:
    """Return an episode of tokens, with the same actions and labels."""
    return replace(episode, observations={TOKENS: tokens_of(episode, tokenizer)})


def _dynamics(spec: Spec, tokenizer: Any, config: Elastic.Config) -> PrefixDynamics:
    """Return untrained dynamics for a store of tokens; ConfigError for tokens without numbers."""
    levels = tokenizer.levels if isinstance(tokenizer, ScalarTokenizer) else ()
    if not levels:
        raise ConfigError(
            f"Elastic.tokenizer: {config.tokenizer.name} has tokens without numbers, need one by "
            "finite scalar quantization, such as elastictok"
        )
    cameras = len(tokenizer.spec.observation)
    return PrefixDynamics(spec, config.dynamics, levels=levels, cameras=cameras)
