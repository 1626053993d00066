"""POVT: a video model of objects, whose boxes the user may set.

Patch-based Object-centric Video Transformer (Yan, Okumura, James, Abbeel, arXiv 2206.04003). Two
stages: a tokenizer of single frames, chosen by name or from a run, and `prior.py` over its tokens
and the boxes of objects. A frame is imagined in two steps: where the objects are, then the tokens.
Tokens attend to few frames, objects to more. Differs: see `prior.py`; boxes are found by colour,
where the paper has annotations or a tracker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from latentplan.errors import ConfigError, ShapeError, check_range
from latentplan.models.frame_tokens import (
    FRAMES,
    TOKENS,
    build_tokenizer,
    of_cameras,
    token_spec,
    token_store,
    tokenizer_stage,
)
from latentplan.models.povt.boxes import (
    SYMBOLS,
    ColourBoxes,
    boxes_of,
    check_boxes,
    glimpses,
    symbols,
)
from latentplan.models.povt.prior import BOXES, GLIMPSES, ObjectPrior, Video, nothing
from latentplan.nn import images
from latentplan.shapes import check
from latentplan.types import (
    ArraySpec,
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

COLOURS = ((220, 40, 40), (40, 180, 70), (40, 70, 220))  # red, green, blue


class POVT(nn.Module):
    """A `protocols.VideoModel`: tokenizer, then prior. It takes no actions: boxes control it.

    It observes one camera. The probability of a frame is that of its boxes and tokens together.
    """

    stride = 1  # frames that have one probability together

    @dataclass(frozen=True)
    class Config:
        """The camera, its objects, and the two networks."""

        image: str = ""  # observation key of the camera; "" for the first image
        colours: tuple[tuple[int, ...], ...] = COLOURS  # shades of each object: r, g, b, r, g, ...
        background: tuple[int, ...] = ()  # shades that are no object's: r, g, b, r, g, b, ...
        tolerance: float = 90.0  # largest distance of a pixel from a shade, of 0 to 255
        least: int = 4  # least pixels of an object that is seen
        tokenizer: Part = Part("tokenizer", "vqvae")  # of single frames
        prior: ObjectPrior.Config = field(default_factory=ObjectPrior.Config)  # of boxes and tokens

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("POVT.tolerance", self.tolerance, 1.0)
            check_range("POVT.least", self.least, 1)
            self.boxes()

        def boxes(self) -> ColourBoxes:
            """Return what finds boxes; ConfigError if a colour is none."""
            return ColourBoxes(
                self.colours, self.background, tolerance=self.tolerance, least=self.least
            )

        def observed(self, spec: Spec) -> Spec:
            """Return the spec of the camera alone; ConfigError if the data do not have it."""
            chosen = (self.image,) if self.image else ()
            key = images.keys("POVT.image", chosen, spec)[0]
            return of_cameras("POVT.image", [key], spec)

    @dataclass(frozen=True)
    class Training:
        """How each network is trained."""

        tokenizer: Training = field(default=Training(batch=24, learning_rate=3e-3, clip=1.0))
        prior: Training = field(default=Training(batch=8, learning_rate=1e-3, clip=1.0))

    def __init__(
        self,
        spec: Spec,
        config: Config | None = None,
        *,
        tokenizer: Any = None,
        prior: ObjectPrior | None = None,
    ) -> None:
        """Put the networks together, or build those that are not given."""
        super().__init__()
        c = config or self.Config()
        self.spec = c.observed(spec)
        (self.image,) = self.spec.observation
        c = self.config = replace(c, image=self.image)
        self.tokenizer = tokenizer or build_tokenizer("POVT", c.tokenizer, self.spec)
        self.prior = prior or _prior(object_spec(self.spec, self.tokenizer, c), self.tokenizer, c)
        self.find = c.boxes()

    @classmethod
    def stages(
        cls, config: Config, *, training: POVT.Training, spec: Spec, labels: Sequence[Label]
    ) -> Sequence[Stage | Derived]:
        """Return the tokenizer, the store of tokens, boxes and glimpses, and the prior."""
        seen, p = config.observed(spec), config.prior
        found = {"colours": config.colours, "background": config.background, "bins": p.bins}
        found |= {"tolerance": config.tolerance, "least": config.least, "glimpse": p.glimpse}
        return [
            tokenizer_stage("POVT", config.tokenizer, seen, training.tokenizer),
            token_store(
                "objects",
                lambda tokenizer: object_spec(seen, tokenizer, config),
                lambda episode, tokenizer: objects_of(episode, tokenizer, config),
                of={"images": list(seen.observation), **found},
            ),
            Stage(
                "prior",
                lambda spec, parts: _prior(spec, parts["tokenizer"], config),
                config.prior,
                training.prior,
                data="objects",
                parts=("tokenizer",),
                window=config.prior.clip,
                window_from="model.prior.memory",
            ),
        ]

    @classmethod
    def assemble(cls, config: Config, *, spec: Spec, labels: Sequence[Label], parts: Parts) -> POVT:
        """Return the model of its trained networks."""
        return cls(spec, config, tokenizer=parts["tokenizer"], prior=parts["prior"])

    def boxes(self, frames: Tensors) -> Tensor:
        """Return the boxes (B, T, n, 4) in images (B, T, h, w, 3) uint8: x, y, width, height.

        Shares of the image, of the centre; zeros of an object that cannot be seen.
        """
        return self.find(frames[self.image])  # type: ignore[no-any-return]

    def log_prob(
        self, frames: Tensors, *, actions: Tensor | None = None, task: Tensor | None = None
    ) -> Tensor:
        """Return the log-probability (B, T) in nats of each frame's boxes and tokens.

        Of at most a clip of frames (B, T, h, w, 3) uint8.
        """
        boxes, tokens = self.log_probs(frames)
        return boxes + tokens

    def log_probs(self, frames: Tensors) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities (B, T): of boxes, and of the tokens given the boxes."""
        video = self._video(frames)
        length, clip = video.tokens.shape[1], self.prior.config.clip
        if length > clip:
            raise ShapeError(
                f"POVT.log_prob: found {length} frames, need 1 to {clip}, the clip that it was "
                "trained on; give the last ones"
            )
        return self.prior.log_prob(video)

    @torch.no_grad()
    def sample(
        self,
        frames: Tensors,
        steps: int,
        *,
        actions: Tensor | None = None,
        task: Tensor | None = None,
        boxes: Tensor | None = None,
        commanded: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return the next frames (B, steps, h, w, 3) uint8.

        Of more frames than the memory the last are used. `boxes` (B, steps, n, 4), see `boxes()`,
        put the first n objects there instead of where the model would; with `commanded`
        (B, steps, n) bool those that are True.
        """
        check_range("POVT.sample: steps", steps, 1)
        last = self.prior.config.memory
        video = self._video({self.image: frames[self.image][:, -last:]})
        orders = self._orders(boxes, commanded, batch=len(video.tokens), steps=steps)
        shown = []
        for step in range(steps):
            order, given = (None, None) if orders is None else (each[:, step] for each in orders)
            drawn: dict[str, Any] = {"temperature": temperature, "generator": generator}
            found, ids = self.prior.draw(video, boxes=order, commanded=given, **drawn)
            frame = self.tokenizer.decode(Tokens(ids[:, None]))[self.image]
            shown.append(frame)
            new = self._seen(ids[:, None], frame, found[:, None])
            pairs = zip(video, new, strict=True)
            video = Video(*(torch.cat(pair, dim=1)[:, -last:] for pair in pairs))
        return {self.image: torch.cat(shown, dim=1)}

    def _orders(
        self, boxes: Tensor | None, commanded: Tensor | None, *, batch: int, steps: int
    ) -> tuple[Tensor, Tensor] | None:
        """Return commanded boxes as symbols (B, steps, slots, 5), and which are (B, steps, slots).

        Raises ShapeError for boxes that are not in the image, or of more objects than there are.
        """
        if boxes is None:
            return None
        slots = self.prior.slots
        check_boxes("POVT.sample.boxes", boxes, batch=batch, steps=steps, slots=slots)
        n = boxes.shape[2]
        given = boxes.new_ones(batch, steps, n, dtype=torch.bool)
        if commanded is not None:
            sizes = {"B": batch, "steps": steps, "n": n}
            check("POVT.sample.commanded", commanded, "B steps n", **sizes)
            given = commanded
        padding = (0, 0, 0, slots - n)
        return (
            nn.functional.pad(symbols(boxes, self.prior.config.bins), padding),
            nn.functional.pad(given, padding[2:]),
        )

    def _video(self, frames: Tensors) -> Video:
        """Return frames (B, T, h, w, 3) as the prior reads them; ShapeError if there are none."""
        seen = frames[self.image]
        height, width, _ = self.spec.observation[self.image].shape
        check(f"POVT.frames[{self.image!r}]", seen, "B T h w c", h=height, w=width, c=3)
        if not seen.shape[1]:
            raise ShapeError("POVT.frames: found a clip of 0 frames, need at least 1")
        tokens = self.tokenizer.encode({self.image: seen})
        decoded = self.tokenizer.decode(tokens)[self.image] if self.prior.slots else seen
        return self._seen(tokens.ids, decoded, symbols(self.find(seen), self.prior.config.bins))

    def _seen(self, ids: Tensor, decoded: Tensor, boxes: Tensor) -> Video:
        """Return frames of tokens (B, T, K), decoded images, and symbols of boxes (B, T, n, 5)."""
        if not self.prior.slots:
            return nothing(ids)
        c = self.prior.config
        return Video(ids, boxes, glimpses(decoded, boxes_of(boxes, c.bins), c.glimpse))


def object_spec(spec: Spec, tokenizer: Any, config: POVT.Config) -> Spec:
    """Return the spec of a store of tokens, and of the boxes and glimpses of objects if any."""
    n, g = len(config.colours), config.prior.glimpse
    objects = {
        BOXES: ArraySpec((n, SYMBOLS), "uint8", "seen, x, y, width, height in bins"),
        GLIMPSES: ArraySpec((n, g, g, 3), "uint8", "what is in each box, reconstructed"),
    }
    return token_spec(spec, tokenizer, objects if n else {})


@torch.no_grad()
def objects_of(episode: Episode, tokenizer: Any, config: POVT.Config) -> Episode:
    """Return an episode of tokens, boxes and glimpses, with the same actions and labels."""
    (image,) = tokenizer.spec.observation
    device = next(tokenizer.parameters()).device
    find, frames, p = config.boxes().to(device), episode.observations[image], config.prior
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(frames), FRAMES):
        some = torch.from_numpy(frames[start : start + FRAMES])[None].to(device)
        tokens = tokenizer.encode({image: some})
        seen = {TOKENS: tokens.ids.int()}
        if config.colours:
            boxes = symbols(find(some), p.bins)
            decoded = tokenizer.decode(tokens)[image]
            seen[BOXES] = boxes.to(torch.uint8)
            seen[GLIMPSES] = glimpses(decoded, boxes_of(boxes, p.bins), p.glimpse)
        for key, each in seen.items():
            found.setdefault(key, []).append(each[0].cpu())
    whole = {key: torch.cat(parts).numpy() for key, parts in found.items()}
    return replace(episode, observations=whole)


def _prior(spec: Spec, tokenizer: Any, config: POVT.Config) -> ObjectPrior:
    """Return an untrained prior; ConfigError if its config is for another vocabulary."""
    found = config.prior.vocabulary
    if found not in (0, tokenizer.vocabulary):
        raise ConfigError(
            f"POVT.prior.vocabulary: found {found}, the tokenizer has {tokenizer.vocabulary} ids; "
            "leave it out, or take the tokenizer that the prior was trained with"
        )
    return ObjectPrior(spec, replace(config.prior, vocabulary=tokenizer.vocabulary))
