"""VideoWorld as one model: pictures to tokens, codes that look ahead, actions read off them.

Ren et al., arXiv 2501.09781. The parts are trained one after the other by `latentplan train
videoworld` and put together here. It plans both ways: `proposal` generates codes and the actions
that go with them, as the paper's policy does; `rollout` imagines what given actions lead to, for
any planner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.models.videoworld.dynamics import TokenDynamics
from latentplan.models.videoworld.generator import CODES, TASK, TOKENS, Generated, Generator
from latentplan.models.videoworld.inverse import Inverse
from latentplan.models.videoworld.ldm import LDM
from latentplan.nn import pictures
from latentplan.nn.sentences import SIZE
from latentplan.protocols import EpisodeStore
from latentplan.shapes import check
from latentplan.tokenizers.vqvae import VQVAE
from latentplan.types import ArraySpec, Batch, Context, Loss, Spec, Tensors


class VideoWorld(nn.Module):
    """A `protocols.VideoModel` whose latents (D = K d) are the numbers of a frame's tokens."""

    STAGES = ("tokenizer", "ldm", "generator", "inverse", "dynamics")  # trained in this order
    default_policy = "generative"

    @dataclass(frozen=True)
    class Config:
        """The parts. What one part says of another (sizes, tasks) is filled in by `fitted`."""

        images: tuple[str, ...] = ()  # observation keys of the cameras; () for all pictures
        language: bool = False  # whether tasks are the labels' sentences, else their names
        tokenizer: VQVAE.Config = field(default_factory=VQVAE.Config)
        ldm: LDM.Config = field(default_factory=LDM.Config)
        generator: Generator.Config = field(default_factory=Generator.Config)
        inverse: Inverse.Config = field(default_factory=Inverse.Config)
        dynamics: TokenDynamics.Config = field(default_factory=TokenDynamics.Config)

        def __post_init__(self) -> None:
            """Raise ConfigError where the parts do not go together."""
            if self.tokenizer.quantizer != "fsq":
                raise ConfigError(
                    "VideoWorld.tokenizer.quantizer: needs fsq, whose tokens are numbers to plan "
                    f"with, found {self.tokenizer.quantizer!r}"
                )
            check_range(
                "VideoWorld.generator.horizon", self.generator.horizon, 0, self.ldm.horizon
            )

        def fitted(self, spec: Spec, *, tasks: tuple[str, ...] = ()) -> VideoWorld.Config:
            """Return the config with what the data and one part say of another.

            Raises ConfigError where the data have no pictures, or not those of `images`.
            """
            seen = [
                key
                for key, a in spec.observation.items()
                if a.dtype == "uint8" and a.shape[2:] == (3,) and key not in spec.privileged
            ]
            images = self.images or tuple(seen)
            if not images:
                raise ConfigError(
                    "VideoWorld.images: the data have no pictures, only: "
                    f"{', '.join(spec.observation)}; collect or import some with a camera"
                )
            pictures.square("VideoWorld.images", images, spec)
            tokenizer = replace(self.tokenizer, images=images)
            return replace(
                self,
                images=images,
                tokenizer=tokenizer,
                ldm=replace(self.ldm, images=images),
                generator=replace(
                    self.generator,
                    levels=tokenizer.levels,
                    views=len(images),
                    codes=prod(self.ldm.levels),
                    tasks=tasks or self.generator.tasks,
                ),
                dynamics=replace(self.dynamics, levels=tokenizer.levels, views=len(images)),
            )

    def __init__(self, spec: Spec, config: Config | None = None) -> None:
        """Build all parts for the pictures and actions of `spec`."""
        super().__init__()
        c = self.config = (config or self.Config()).fitted(spec)
        self.spec = replace(
            spec, observation={key: spec.observation[key] for key in c.images}, privileged=()
        )
        self.tokenizer, self.ldm = VQVAE(spec, c.tokenizer), LDM(spec, c.ldm)
        tokens = token_spec(self.spec, self.tokenizer, self.ldm)
        sentences = torch.zeros(len(c.generator.tasks), SIZE) if c.language else None
        generator = Generator(tokens, c.generator, sentences=sentences)
        self.inverse = Inverse(tokens, c.inverse, generator=generator)
        self.dynamics = TokenDynamics(tokens, c.dynamics)
        self.context = c.generator.context
        self.latent_dim = self.tokenizer.tokens * len(c.tokenizer.levels)

    @property
    def generator(self) -> Generator:
        """The transformer over frames and codes."""
        return self.inverse.generator

    def encode(self, observations: Tensors) -> Tensor:
        """Return (B, T, D) of pictures (B, T, h, w, 3) uint8: the numbers of their tokens."""
        numbers = self.dynamics.meaning.codes(self.tokenizer.encode(observations))
        return numbers.flatten(2)  # b t (k d)

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """Return the cameras' pictures (B, T, h, w, 3) uint8 of latents (B, T, D)."""
        return self.tokenizer.decode(self.ids(latents))

    def ids(self, latents: Tensor) -> Tensor:
        """Return the tokens (..., K) nearest to latents (..., D)."""
        numbers = rearrange(latents, "... (k d) -> ... k d", k=self.tokenizer.tokens)
        return self.dynamics.meaning.nearest(numbers)

    def prepare(self, context: Context) -> Tensor:
        """Return the last latent (B, D): the token dynamics reads no more."""
        check("VideoWorld.prepare.context", context.latents, "B T D", D=self.latent_dim)
        return context.latents[:, -1]

    def rollout(self, prepared: Tensor, actions: Tensor) -> Tensor:
        """Return (B, N, H, D) after each of the actions (B, N, H, A), from latents (B, D)."""
        size = self.spec.action.size
        check("VideoWorld.rollout.actions", actions, "B N H A", B=len(prepared), A=size)
        return self.dynamics.rollout(prepared, actions)

    def log_prob(self, frames: Tensors, *, task: str = "") -> Tensor:
        """Return the log-probability (B, T) in nats of each frame's tokens, given those before.

        Of at most `context` frames (B, T, h, w, 3) uint8 a camera.
        """
        tokens = self.tokenizer.encode(frames)
        number = self.generator.number(task) if task else 0
        numbers = torch.full((len(tokens),), number, device=tokens.device)
        return self.generator.log_prob(tokens, numbers)

    def illustrate(self, store: EpisodeStore, folder: Path) -> Iterator[tuple[Path, str]]:
        """Draw reconstructions, futures, codes and usage of held-out episodes into a folder."""
        from latentplan.models.videoworld.figures import draw

        return draw(self, store, folder)

    def loss(self, batch: Batch) -> Loss:
        """Return the tokenizer's loss: the parts are trained one after the other, not at once."""
        return self.tokenizer.loss(batch)

    def proposal(
        self, task: str = "", *, temperature: float = 1.0, top_p: float = 0.9
    ) -> CodeProposal:
        """Return the policy of a task as a `protocols.Proposal`; ConfigError for an unknown one.

        Of several candidates the first has the likeliest codes, the others are drawn.
        """
        number = self.generator.number(task) if task else 0
        return CodeProposal(self, number, temperature=temperature, top_p=top_p)

    def subgoal(self, task: str = "") -> Callable[[Context, int], Tensor]:
        """Return what imagines n steps of a task; see `protocols.SubgoalModel`.

        Step by step: the likeliest codes, then the likeliest next frame.
        """
        number = self.generator.number(task) if task else 0
        generator, meaning = self.generator, self.dynamics.meaning

        @torch.no_grad()
        def imagined(context: Context, steps: int) -> Tensor:
            tokens = _without_copies(self.ids(context.latents[:, -self.context :]))
            tasks = torch.full((len(tokens),), number, device=tokens.device)
            for _ in range(steps):
                codes = generator.generate(tokens, tasks).codes[:, 0]
                after = generator.imagine(tokens, codes, tasks)
                tokens = torch.cat([tokens, after[:, None]], dim=1)[:, -self.context :]
            return meaning.codes(tokens[:, -1]).flatten(1)  # b (k d)

        return imagined


class CodeProposal:
    """Codes generated after what was seen, and the actions that the inverse dynamics reads off."""

    def __init__(
        self, model: VideoWorld, task: int, *, temperature: float, top_p: float
    ) -> None:
        """Take the model, the task's number, and how the codes behind the first are drawn."""
        self.model, self.task = model, task
        self.temperature, self.top_p = temperature, top_p
        self.last: Generated | None = None  # what was generated last, to look at

    @torch.no_grad()
    def sample(
        self, context: Context, count: int, *, horizon: int, generator: torch.Generator
    ) -> Tensor:
        """Return (B, n, H, A) for B contexts; after the chunk the last action is repeated."""
        model = self.model
        inverse = model.inverse
        tokens = _without_copies(model.ids(context.latents[:, -model.context :]))
        task = torch.full((len(tokens),), self.task, device=tokens.device)
        made = model.generator.generate(tokens, task)
        if count > 1:
            drawn = model.generator.generate(
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
            seen = tokens[:, -1].repeat_interleave(made.hidden.shape[1], dim=0)
            read = inverse.read_hidden(made.hidden.flatten(0, 1), seen)
        else:
            codes = made.codes.flatten(0, 1)
            seen, tasks = tokens.repeat_interleave(count, dim=0), task.repeat_interleave(count)
            after = model.generator.imagine(seen, codes, tasks)
            read = inverse.read_frames(seen[:, -1], after, codes)
        chunk = inverse.actions(inverse(read))  # (b n) chunk a
        actions = chunk.view(len(tokens), -1, *chunk.shape[1:])
        missing = horizon - actions.shape[2]
        if missing > 0:
            actions = torch.cat([actions, actions[:, :, -1:].expand(-1, -1, missing, -1)], dim=2)
        return actions[:, :, :horizon]


def _without_copies(tokens: Tensor) -> Tensor:
    """Return frames (B, T, K) without those at the start that the next one repeats.

    Before T frames were seen the first stands for those that are missing; in training there are
    fewer frames then.
    """
    changed = (tokens[:, 1:] != tokens[:, :-1]).any(-1).any(0)  # (T - 1,)
    found = changed.nonzero()
    first = int(found[0]) if len(found) else tokens.shape[1] - 1
    return tokens[:, first:]


def token_spec(spec: Spec, tokenizer: VQVAE, ldm: LDM) -> Spec:
    """Return the spec of a store of tokens: what the generator is trained on."""
    return replace(
        spec,
        observation={
            TOKENS: ArraySpec((tokenizer.tokens,), "int32", "tokens of the frame, all cameras"),
            CODES: ArraySpec((ldm.config.horizon,), "int32", "what changes over the next frames"),
            TASK: ArraySpec((), "int32", "number of the task at hand, 0 for none"),
        },
        privileged=(),
    )
