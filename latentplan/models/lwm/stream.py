"""The stream of LWM: steps of image tokens, proprioception and action, and what follows them.

A step is a block of positions [task | image tokens | proprioception | action]. Each modality has an
embedding and a head of its own, and a loss of its own (LWM, arXiv 2402.08268, section 4 and
appendix: text and vision there). The block of a step attends to itself and to all steps before it;
its image positions predict the image of the next step, and likewise proprioception and action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentplan.data.packing import PADDING, example_weights, position_weights
from latentplan.errors import ConfigError, check_range
from latentplan.models.frame_tokens import TOKENS
from latentplan.models.lwm.transformer import Continuation, LongTransformer, Prefix
from latentplan.nn.blockwise import CHUNK, blockwise
from latentplan.nn.quantizer import FSQCodebook
from latentplan.nn.scaling import ActionScaling, Scaling
from latentplan.types import Batch, Loss, Moments, Spec

PROPRIOCEPTION = "proprioception"  # observation (P,) of a store of streams
TASK, IMAGE, PROPRIO, ACTION = range(4)  # modality ids
WEIGHTING = {"example": example_weights, "position": position_weights}


class Prepared(NamedTuple):
    """The real history of B problems: what all candidates of a solve share."""

    prefix: Prefix  # of all steps but the last
    last: Tensor  # (B, S - 1, width) the last observation, whose action is to be chosen
    task: Tensor | None  # (B, 1, width)


class Predicted(NamedTuple):
    """What follows a step: distributions of the image's tokens, and proprioception (scaled)."""

    tokens: Tensor  # (n, K, ids) probabilities
    proprioception: Tensor  # (n, P)


class Stream(nn.Module):
    """A transformer that predicts the next step of a stream; a part of LWM.

    Its spec is that of a store of streams: `tokens` (K,) ids, and `proprioception` (P,) if there is
    any. It is trained on packed rows of `context` steps.
    """

    packed = True
    targets: tuple[str, ...] = ()

    @dataclass(frozen=True)
    class Config:
        """The network; LWM sets `context` and `theta` from its curriculum, and the tokenizer's."""

        vocabulary: int = 256  # the tokenizer's
        levels: tuple[int, ...] = ()  # of a tokenizer by finite scalar quantization
        code: int = 8  # numbers of a token in a latent, if the tokenizer has no levels
        context: int = 16  # steps that it is trained on
        theta: float = 1e4  # base of the rotary frequencies
        tasks: bool = False  # whether each step begins with the task
        width: int = 96  # of the transformer
        layers: int = 3  # of the transformer
        heads: int = 4  # of its attention
        chunk: int = CHUNK  # positions of a chunk in blockwise attention and feed-forward
        image_weight: float = 1.0  # of the loss in nats a token
        proprioception_weight: float = 0.5  # of the squared error of scaled numbers
        action_weight: float = 0.1  # of the same of the next action
        weighting: str = "example"  # of positions in packed rows; "position" is naive packing

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            for name in ("vocabulary", "code", "width", "layers", "heads", "chunk"):
                check_range(f"Stream.{name}", getattr(self, name), 1)
            check_range("Stream.context", self.context, 3)
            check_range("Stream.theta", self.theta, 1.0)
            for name in ("image_weight", "proprioception_weight", "action_weight"):
                check_range(f"Stream.{name}", getattr(self, name), 0.0)
            if self.width % (2 * self.heads):
                raise ConfigError(
                    f"Stream.width: found {self.width}, need a multiple of 2 heads="
                    f"{2 * self.heads}"
                )
            if self.weighting not in WEIGHTING:
                raise ConfigError(
                    f"Stream.weighting: found {self.weighting!r}, need {' or '.join(WEIGHTING)}"
                )

    def __init__(
        self, spec: Spec, config: Config | None = None, *, start: Stream | None = None
    ) -> None:
        """Build the network for a store of streams, with the weights of `start` if it is given."""
        super().__init__()
        c = self.config = config or self.Config()
        self.spec, self.window = spec, c.context
        self.reads = ("segments", "task") if c.tasks else ("segments",)
        (self.tokens,) = spec.observation[TOKENS].shape  # K
        proprio = spec.observation.get(PROPRIOCEPTION)
        self.numbers = proprio.shape[0] if proprio else 0  # P
        modalities = [TASK] * c.tasks + [IMAGE] * self.tokens + [PROPRIO] * bool(self.numbers)
        self.block = len(modalities) + 1  # S, positions of a step
        self.images = slice(int(c.tasks), int(c.tasks) + self.tokens)  # positions in a step
        self.modalities: Tensor
        self.register_buffer("modalities", torch.tensor([*modalities, ACTION]), persistent=False)
        self.modality = nn.Embedding(4, c.width)
        self.place = nn.Parameter(0.02 * torch.randn(self.tokens, c.width))  # in the image
        self.embed = nn.Embedding(c.vocabulary + 1, c.width)  # the last: a token not in use
        self.image_head = nn.Linear(c.width, c.vocabulary + 1)
        self.task = nn.Embedding(len(spec.tasks) + 1, c.width) if c.tasks else None  # first: none
        self.action_scaling = ActionScaling(spec.action)
        self.action = nn.Linear(spec.action.size, c.width)
        self.action_head = nn.Linear(c.width, spec.action.size)
        self.scaling = Scaling(max(self.numbers, 1))
        if self.numbers:
            self.proprio = nn.Linear(self.numbers, c.width)
            self.proprio_head = nn.Linear(c.width, self.numbers)
        self.body = LongTransformer(
            c.width,
            layers=c.layers,
            heads=c.heads,
            block=self.block,
            theta=c.theta,
            chunk=c.chunk,
        )
        for layer in (self.embed, self.image_head, self.modality, self.task):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
        self.codes: Tensor  # (vocabulary + 1, d) the numbers of each token in a latent
        self.register_buffer("codes", codes(c))
        if start is not None:
            self.load_state_dict(start.state_dict())

    @property
    def scaled(self) -> tuple[str, ...]:
        """The observations that are scaled by their statistics: see `protocols.Normalised`."""
        return (PROPRIOCEPTION,) if self.numbers else ()

    def fit_statistics(self, actions: Moments, observations: Mapping[str, Moments]) -> None:
        """Scale actions and proprioception by their statistics."""
        self.action_scaling.fit(actions)
        for key in self.scaled:
            self.scaling.fit(observations[key])

    def loss(self, batch: Batch) -> Loss:
        """Return the losses of the next step's modalities, each a mean over packed examples."""
        c, segments = self.config, batch.segments
        assert segments is not None  # as `reads` states
        tokens = batch.observations[TOKENS].long()
        proprio = self._scaled(batch.observations.get(PROPRIOCEPTION))
        task = batch.task if self.task is not None else None
        out = self(tokens, proprio, batch.actions, task=task, segments=segments)
        weigh = WEIGHTING[c.weighting]
        pairs = _within(segments)  # a step and the next are of one example
        weights = weigh(pairs)
        nats = self._nats(out[:, :-1, self.images], tokens[:, 1:]).mean(-1)
        image = (weights * nats).sum()
        parts = {"image": image.detach()}
        total = c.image_weight * image
        if proprio is not None:
            found = self.proprio_head(out[:, :-1, -2])
            error = (weights * (found - proprio[:, 1:]).square().mean(-1)).sum()
            parts["proprioception"] = error.detach()
            total = total + c.proprioception_weight * error
        found = self.action_head(out[:, :-2, -1])
        wanted = self.action_scaling(batch.actions)[:, 1:]
        error = (weigh(_within(pairs)) * (found - wanted).square().mean(-1)).sum()
        parts["action"] = error.detach()
        return Loss(total + c.action_weight * error, parts)

    def forward(
        self,
        tokens: Tensor,
        proprio: Tensor | None,
        actions: Tensor,
        *,
        task: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states (B, T, S, width) of streams of T steps.

        `tokens` (B, T, K), `proprio` (B, T, P) scaled, `actions` (B, T - 1 or T, A), `task` and
        `segments` (B, T).
        """
        x = self.steps(tokens, proprio, actions, task=task)
        if segments is not None:
            segments = segments.repeat_interleave(self.block, dim=1)
        hidden: Tensor = self.body(rearrange(x, "b t s c -> b (t s) c"), segments)
        return rearrange(hidden, "b (t s) c -> b t s c", s=self.block)

    def steps(
        self, tokens: Tensor, proprio: Tensor | None, actions: Tensor, *, task: Tensor | None = None
    ) -> Tensor:
        """Return the embedded steps (B, T, S, width); a last action that is missing is 0."""
        known = None
        if self.task is not None:
            ids = torch.zeros_like(tokens[..., 0]) if task is None else task
            known = self.task(ids)[..., None, :]
        seen = self._observation(self.embed(tokens), proprio, known)
        actions = F.pad(actions, (0, 0, 0, tokens.shape[1] - actions.shape[1]))
        return torch.cat([seen, self._action(actions)], dim=-2)

    def prepare(
        self,
        tokens: Tensor,
        proprio: Tensor | None,
        actions: Tensor,
        *,
        task: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Prepared:
        """Return the cached history of steps as in `forward`, up to the action after the last.

        Nothing attends to the steps that are `hidden` (B, T); `task` (B,).
        """
        b, t = tokens.shape[:2]
        ids = None if task is None else task[:, None].expand(b, t)
        x = self.steps(tokens, proprio, actions, task=ids)
        if hidden is None:
            hidden = torch.zeros(b, t, dtype=torch.bool, device=x.device)
        positions = hidden[:, :-1].repeat_interleave(self.block, dim=1)
        prefix = self.body.prefix(x[:, :-1].flatten(1, 2), positions)
        known = None
        if self.task is not None:
            known = self.task(tokens.new_zeros(b) if task is None else task)[:, None]
        return Prepared(prefix, x[:, -1, :-1], known)

    def rollout(self, prepared: Prepared, actions: Tensor) -> list[Predicted]:
        """Return what follows each of H actions (B, N, H, A), for the B N candidates.

        Instead of drawn tokens, the next step reads their expected embedding.
        """
        n, c = actions.shape[1], self.config
        continuation = Continuation(prepared.prefix, n, c.chunk)
        now, task = prepared.last.repeat_interleave(n, dim=0), prepared.task
        if task is not None:
            task = task.repeat_interleave(n, dim=0)
        after = []
        for action in rearrange(actions, "b n h a -> (b n) h a").unbind(1):
            x = torch.cat([now, self._action(action)], dim=1)
            after.append(self.predicted(self.body.extend(x, continuation)))
            seen = after[-1].tokens @ self.embed.weight
            proprio = after[-1].proprioception if self.numbers else None
            now = self._observation(seen, proprio, task)
        return after

    def predicted(self, hidden: Tensor) -> Predicted:
        """Return what follows a step, of its hidden states (n, S, width)."""
        tokens = self.image_head(hidden[:, self.images]).softmax(-1)
        if not self.numbers:
            return Predicted(tokens, hidden[:, 0, :0])
        return Predicted(tokens, self.proprio_head(hidden[:, -2]))

    def _observation(
        self, images: Tensor, proprio: Tensor | None, task: Tensor | None
    ) -> Tensor:
        """Return (..., S - 1, width) of embedded tokens (..., K, width), P numbers and a task."""
        parts = [] if task is None else [task]
        parts.append(images + self.place)
        if proprio is not None:
            parts.append(self.proprio(proprio)[..., None, :])
        seen: Tensor = torch.cat(parts, dim=-2) + self.modality(self.modalities[:-1])
        return seen

    def _action(self, actions: Tensor) -> Tensor:
        """Return (..., 1, width) of actions (..., A)."""
        embedded = self.action(self.action_scaling(actions)) + self.modality(self.modalities[-1])
        return embedded.unsqueeze(-2)  # type: ignore[no-any-return]

    def _scaled(self, proprio: Tensor | None) -> Tensor | None:
        if proprio is None:
            return None
        scaled: Tensor = self.scaling(proprio)
        return scaled

    def _nats(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the cross-entropy (B, T, K) of tokens, a chunk of logits at a time."""

        def nats(states: Tensor, ids: Tensor) -> Tensor:
            return F.cross_entropy(self.image_head(states).float(), ids, reduction="none")

        flat = blockwise(
            nats, hidden.flatten(0, 2), tokens.flatten(), chunk=8 * self.config.chunk, dim=0
        )
        return flat.view(tokens.shape)


def codes(config: Stream.Config) -> Tensor:
    """Return the numbers (vocabulary + 1, d) of each token in a latent, the last of one not in use.

    Those of finite scalar quantization; else random directions, which are about as far from each
    other, so that a distance counts the tokens that differ.
    """
    c = config
    with torch.device("cpu"):  # also if the network is built on the meta device
        if c.levels:
            known = FSQCodebook(c.levels).codes(torch.arange(c.vocabulary))
            return torch.cat([known, known.new_full((1, len(c.levels)), 2.0)])
        seeded = torch.Generator().manual_seed(0)
        return F.normalize(torch.randn(c.vocabulary + 1, c.code, generator=seeded), dim=-1)


def _within(segments: Tensor) -> Tensor:
    """Return the id (B, T - 1) of each position whose next is of the same example; else padding."""
    same = segments[:, 1:] == segments[:, :-1]
    return segments[:, :-1].masked_fill(~same, PADDING)
