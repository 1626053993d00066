"""VideoWorld as one model: frame tokens, codes of the future, actions from inverse dynamics.

Ren et al., arXiv 2501.09781. `stages` trains the parts one after the other; `assemble` joins them
here. It plans in two ways: `proposal` generates codes and their actions, as the paper's policy
does; `rollout` predicts the latents after given actions, for any planner. With a `frame_prior`, the
tokens of an imagined frame are decoded jointly, in rollouts, videos and subgoals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from latentplan import registry
from latentplan.errors import ConfigError, check_range
from latentplan.models.videoworld.dynamics import TokenDynamics
from latentplan.models.videoworld.frame_prior import FramePrior
from latentplan.models.videoworld.inverse_dynamics import InverseDynamics
from latentplan.models.videoworld.ldm import LDM
from latentplan.models.videoworld.stages import (
    StageTraining,
    declare,
    task_names,
    token_spec,
    with_states,
)
from latentplan.models.videoworld.video_transformer import Generated, VideoTransformer
from latentplan.nn import images
from latentplan.nn.sentences import SIZE
from latentplan.protocols import EpisodeStore, ScalarTokenizer
from latentplan.shapes import check
from latentplan.types import (
    Context,
    Derived,
    Goal,
    Label,
    Part,
    Parts,
    Spec,
    Stage,
    Tensors,
    Tokens,
)


class VideoWorld(nn.Module):
    """A `protocols.VideoModel` whose latents (D = K d) are the numbers of a frame's tokens."""

    Training = StageTraining  # how each part is trained
    default_policy = "generative"
    stride = 1  # frames that have one probability together

    @dataclass(frozen=True)
    class Config:
        """The parts; `fitted` fills in sizes and tasks, from the data and the other parts."""

        images: tuple[str, ...] = ()  # observation keys of the cameras; () for all images
        language: bool = False  # whether tasks are the labels' sentences, else their names
        tokenizer: Part = Part("tokenizer", "vqvae")  # a ScalarTokenizer
        ldm: LDM.Config = field(default_factory=LDM.Config)  # the latent dynamics model
        ldm_run: str = ""  # run of VideoWorld whose frozen latent dynamics model is used
        transformer: VideoTransformer.Config = field(
            default_factory=VideoTransformer.Config
        )  # codes and next frames
        inverse: InverseDynamics.Config = field(
            default_factory=InverseDynamics.Config
        )  # from codes to actions
        dynamics: TokenDynamics.Config = field(
            default_factory=TokenDynamics.Config
        )  # from an action to the next frame, for planners
        frame_prior: FramePrior.Config = field(
            default_factory=FramePrior.Config
        )  # joint decoding of the next frame; with it, also for planners
        base: Part = Part("model")  # {run: RUN}: a VideoWorld to which a frame prior is added

        def __post_init__(self) -> None:
            """Raise ConfigError if the parts do not fit each other."""
            check_range(
                "VideoWorld.transformer.horizon", self.transformer.horizon, 0, self.ldm.horizon
            )

        def observed(self, spec: Spec) -> Spec:
            """Return the spec of the cameras alone; ConfigError if the data do not have them."""
            cameras = images.keys("VideoWorld.images", self.images, spec)
            images.square("VideoWorld.images", cameras, spec)
            seen = {key: spec.observation[key] for key in cameras}
            return replace(spec, observation=seen, privileged=())

        def fitted(self, spec: Spec, *, tasks: tuple[str, ...] = ()) -> VideoWorld.Config:
            """Return the config with the sizes and names that the data and other parts determine.

            Raises ConfigError if the data have no images, or not those of `images`, or the
            tokenizer's tokens are not numbers.
            """
            seen = self.observed(spec)
            cameras = tuple(seen.observation)
            tokenizer = registry.build(self.tokenizer, seen)
            if not isinstance(tokenizer, ScalarTokenizer) or not tokenizer.levels:
                raise ConfigError(
                    f"VideoWorld.tokenizer: {self.tokenizer.name} gives no tokens that are numbers "
                    "to plan with; take one of finite scalar quantization (quantizer=fsq)"
                )
            if tokenizer.stride != 1:
                raise ConfigError(
                    f"VideoWorld.tokenizer: {self.tokenizer.name} takes {tokenizer.stride} "
                    "observations a token frame, need 1"
                )
            of_tokens: dict[str, Any] = {"levels": tokenizer.levels, "views": len(cameras)}
            joint = self.frame_prior
            return replace(
                self,
                images=cameras,
                tokenizer=replace(self.tokenizer, config=tokenizer.config),
                ldm=replace(self.ldm, images=cameras),
                transformer=replace(
                    self.transformer,
                    **of_tokens,
                    codes=prod(self.ldm.levels),
                    tasks=tasks or self.transformer.tasks,
                ),
                dynamics=replace(self.dynamics, **of_tokens),
                frame_prior=replace(joint, **of_tokens) if joint.channels else joint,
            )

        def on_base(self) -> VideoWorld.Config:
            """Return the config of the base with the `frame_prior` of this one.

            Raises ConfigError if the base is no VideoWorld, or the `frame_prior` has no network.
            """
            other = self.base.config
            if not isinstance(other, VideoWorld.Config):
                raise ConfigError(
                    f"VideoWorld.base: found {self.base.name!r}, need a run of VideoWorld; set "
                    "model.base.run"
                )
            if not self.frame_prior.channels:
                raise ConfigError(
                    "VideoWorld.frame_prior.channels: found 0, need some to add to a base; set "
                    "model.frame_prior.channels=64"
                )
            of = other.transformer
            prior = replace(self.frame_prior, levels=of.levels, views=of.views)
            return replace(other, frame_prior=prior)

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build all parts for the images and actions of `spec`."""
        super().__init__()
        c = self.config = (config or self.Config()).fitted(spec)
        self.spec = c.observed(spec)
        self.tokenizer = registry.build(c.tokenizer, self.spec)
        self.ldm = LDM(self.spec, c.ldm)
        tokens = token_spec(self.spec, self.tokenizer, self.ldm)
        sentences = torch.zeros(len(c.transformer.tasks), SIZE) if c.language else None
        transformer = VideoTransformer(tokens, c.transformer, sentences=sentences)
        self.inverse = InverseDynamics(tokens, c.inverse, transformer=transformer)
        self.dynamics = TokenDynamics(tokens, c.dynamics)
        self.frame_prior: FramePrior | None = None
        if c.frame_prior.channels:
            self.frame_prior = FramePrior(with_states(tokens, c.transformer), c.frame_prior)
        self.context = c.transformer.context
        self.latent_dim = self.tokenizer.tokens * len(self.tokenizer.levels)

    @classmethod
    def stages(
        cls, config: Config, *, training: StageTraining, spec: Spec, labels: Sequence[Label]
    ) -> tuple[Stage | Derived, ...]:
        """Return what to train: see `protocols.Staged`."""
        return declare(config, training=training, spec=spec, labels=labels)

    @classmethod
    def assemble(
        cls, config: Config, *, spec: Spec, labels: Sequence[Label], parts: Parts
    ) -> VideoWorld:
        """Return the model of its trained parts."""
        base = parts.get("base")
        if base is None:
            tasks = task_names(labels, language=config.language)
            model = cls(spec, config.fitted(spec, tasks=tasks))
        else:
            model = cls(spec, config.on_base())
        for name in ("tokenizer", "ldm", "inverse", "dynamics"):
            setattr(model, name, parts[name] if base is None else getattr(base, name))
        model.frame_prior = parts.get("frame_prior")
        return model

    @property
    def transformer(self) -> VideoTransformer:
        """The transformer over frames and codes."""
        return self.inverse.transformer

    def encode(self, observations: Tensors) -> Tensor:
        """Return (B, T, D) of images (B, T, h, w, 3) uint8: the numbers of their tokens."""
        numbers = self.dynamics.codebook.codes(self.tokenizer.encode(observations).ids)
        return numbers.flatten(2)  # b t (k d)

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """Return the cameras' images (B, T, h, w, 3) uint8 of latents (B, T, D)."""
        decoded: dict[str, Tensor] = self.tokenizer.decode(Tokens(self.ids(latents)))
        return decoded

    def ids(self, latents: Tensor) -> Tensor:
        """Return the tokens (..., K) nearest to latents (..., D)."""
        numbers = rearrange(latents, "... (k d) -> ... k d", k=self.tokenizer.tokens)
        return self.dynamics.codebook.nearest(numbers)

    def prepare(self, context: Context) -> Tensor:
        """Return the last latent (B, D), all that the token dynamics reads."""
        check("VideoWorld.prepare.context", context.latents, "B T D", D=self.latent_dim)
        return context.latents[:, -1]

    def rollout(self, prepared: Tensor, actions: Tensor) -> Tensor:
        """Return (B, N, H, D) after each of the actions (B, N, H, A), from latents (B, D).

        With a `frame_prior` these are the likeliest tokens' numbers, which have no gradient to the
        actions.
        """
        size = self.spec.action.size
        check("VideoWorld.rollout.actions", actions, "B N H A", B=len(prepared), A=size)
        if self.frame_prior is None:
            return self.dynamics.rollout(prepared, actions)
        b, n = actions.shape[:2]
        tokens = self.ids(prepared).repeat_interleave(n, dim=0)
        after = self.frame_prior.rollout(tokens, actions.flatten(0, 1))  # (b n) h k
        return rearrange(self.dynamics.codebook.codes(after), "(b n) h k d -> b n h (k d)", b=b)

    def log_prob(
        self, frames: Tensors, *, actions: Tensor | None = None, task: Tensor | None = None
    ) -> Tensor:
        """Return the log-probability (B, T) in nats of each frame's tokens, given those before.

        Of at most `context` frames (B, T, h, w, 3) uint8 a camera.
        """
        tokens = self.tokenizer.encode(frames).ids
        task = tokens.new_zeros(len(tokens)) if task is None else task
        return self.transformer.log_prob(tokens, task)

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
        """Return the next frames (B, steps, h, w, 3) uint8 a camera, each after codes of its own.

        They are conditioned on the task, if one is given, not on actions.
        """
        tokens = self.tokenizer.encode(frames).ids
        task = tokens.new_zeros(len(tokens)) if task is None else task
        for _ in range(steps):
            after = self._next(tokens, task, temperature=temperature, generator=generator)
            tokens = torch.cat([tokens, after[:, None]], dim=1)
        decoded: dict[str, Tensor] = self.tokenizer.decode(Tokens(tokens[:, -steps:]))
        return decoded

    def _next(self, tokens: Tensor, task: Tensor, **drawn: Any) -> Tensor:
        """Return the tokens (B, K) that follow frames (B, T, K), after codes of their own."""
        tokens = tokens[:, -self.context :]
        codes = self.transformer.generate(tokens, task, **drawn).codes[:, 0]
        prior = self.frame_prior
        if prior is None:
            return self.transformer.imagine(tokens, codes, task, **drawn)
        states = self.transformer.plan_states(tokens, codes, task)
        return prior.sample(tokens[:, -1], prior.condition(states=states), **drawn)

    def illustrate(self, store: EpisodeStore, folder: Path) -> Iterator[tuple[Path, str]]:
        """Draw reconstructions, futures, codes and usage of held-out episodes into a folder."""
        from latentplan.models.videoworld.figures import draw

        return draw(self, store, folder)


    def proposal(
        self, goal: Goal, *, temperature: float = 1.0, top_p: float = 0.9
    ) -> CodeProposal:
        """Return the policy of the goal's text as a `protocols.Proposal`; of no text, of any task.

        Raises ConfigError for an unknown task.

        The first candidate has the likeliest codes; the others are sampled.
        """
        task_id = self.transformer.task_id(goal.text) if goal.text else 0
        return CodeProposal(self, task_id, temperature=temperature, top_p=top_p)

    def subgoal(self, task: str = "") -> Callable[[Context, int], Tensor]:
        """Return a predictor of the latent n steps into a task; see `protocols.SubgoalModel`.

        Each step takes the likeliest codes, then the likeliest next frame.
        """
        task_id = self.transformer.task_id(task) if task else 0
        codebook = self.dynamics.codebook

        @torch.no_grad()
        def imagined(context: Context, steps: int) -> Tensor:
            tokens = _without_copies(self.ids(context.latents[:, -self.context :]))
            tasks = torch.full((len(tokens),), task_id, device=tokens.device)
            for _ in range(steps):
                after = self._next(tokens, tasks)
                tokens = torch.cat([tokens, after[:, None]], dim=1)[:, -self.context :]
            return codebook.codes(tokens[:, -1]).flatten(1)  # b (k d)

        return imagined


class CodeProposal:
    """A proposal: codes generated after the context, and their actions by inverse dynamics."""

    def __init__(
        self, model: VideoWorld, task: int, *, temperature: float, top_p: float
    ) -> None:
        """Take the model, the task id, and how all candidates but the first are sampled."""
        self.model, self.task = model, task
        self.temperature, self.top_p = temperature, top_p
        self.last: Generated | None = None  # the newest generation, for inspection

    @torch.no_grad()
    def sample(
        self, context: Context, count: int, *, horizon: int, generator: torch.Generator
    ) -> Tensor:
        """Return (B, n, H, A) for B contexts; after the chunk the last action is repeated."""
        model = self.model
        inverse = model.inverse
        tokens = _without_copies(model.ids(context.latents[:, -model.context :]))
        task = torch.full((len(tokens),), self.task, device=tokens.device)
        made = model.transformer.generate(tokens, task)
        if count > 1:
            drawn = model.transformer.generate(
                tokens,
                task,
                count=count - 1,
                temperature=self.temperature,
                top_p=self.top_p,
                generator=generator,
            )
            made = Generated(*(torch.cat(two, dim=1) for two in zip(made, drawn, strict=True)))
        self.last = made
        if inverse.config.reads == "hidden":
            last = tokens[:, -1].repeat_interleave(made.hidden.shape[1], dim=0)
            features = inverse.read_hidden(made.hidden.flatten(0, 1), last)
        else:
            codes = made.codes.flatten(0, 1)
            frames, tasks = tokens.repeat_interleave(count, dim=0), task.repeat_interleave(count)
            after = model.transformer.imagine(frames, codes, tasks)
            features = inverse.read_frames(frames[:, -1], after, codes)
        chunk = inverse.actions(inverse(features))  # (b n) chunk a
        actions = chunk.view(len(tokens), -1, *chunk.shape[1:])
        missing = horizon - actions.shape[2]
        if missing > 0:
            actions = torch.cat([actions, actions[:, :, -1:].expand(-1, -1, missing, -1)], dim=2)
        return actions[:, :, :horizon]


def _without_copies(tokens: Tensor) -> Tensor:
    """Return frames (B, T, K) without copies of the first at the start.

    A context of fewer than T observations is padded with copies of the first; training windows at
    the start of an episode are shorter instead.
    """
    changed = (tokens[:, 1:] != tokens[:, :-1]).any(-1).any(0)  # (T - 1,)
    return tokens[:, int((~changed).cumprod(0).sum()) :]  # the index of the first change
