"""Training: its settings, and the parts, stages and derived stores that a model declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from latentplan.errors import ConfigError, check_range
from latentplan.types.episodes import Episode
from latentplan.types.specs import Spec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """The loss of a training step, and its parts for the curves (detached scalars)."""

    total: Tensor  # ()
    parts: Mapping[str, Tensor]  # each ()


@dataclass(frozen=True)
class Part:
    """A config field that selects a component: `{name: REGISTERED, ...}` or `{run: RUN}`.

    With `name`, a registered name or a preset of `kind`, the other keys are fields of that class's
    Config. With `run`, the component is that of a trained run, with frozen weights.
    """

    kind: str  # registry kind such as tokenizer or model; not a key
    name: str = ""  # registry name
    config: Any = None  # filled Config of the class; None for its defaults
    run: str = ""  # run folder, checkpoint file or shipped name


@dataclass(frozen=True)
class Training:
    """The settings of a network's training."""

    steps: int = 10_000  # optimizer steps
    batch: int = 128  # windows per step
    window: int = 0  # observations per window; 0 for the least that the learner needs
    learning_rate: float = 1e-3  # largest, reached after the warm-up
    final_rate: float = 0.01  # learning rate of the last step, as a share of learning_rate
    warmup: int = 200  # steps over which the learning rate rises from 0
    weight_decay: float = 1e-6  # of AdamW
    clip: float = 20.0  # largest norm of the gradient
    ema: float = 0.0  # decay per step of averaged weights, which are evaluated and saved; 0 for off
    precision: str = "float32"  # or "bfloat16": forward pass under autocast, weights stay float32
    compile: bool = False  # torch.compile of the loss
    held_out: float = 0.1  # share of the episodes that are not trained on
    log_every: int = 50  # steps between points of the training curve
    eval_every: int = 500  # steps between held-out figures
    save_every: int = 500  # steps between saves, from which a run can resume

    def __post_init__(self) -> None:
        """Raise ConfigError if a value is out of range."""
        for name in ("steps", "log_every", "eval_every", "save_every"):
            check_range(f"Training.{name}", getattr(self, name), 1)
        check_range("Training.batch", self.batch, 2)
        check_range("Training.window", self.window, 0)
        check_range("Training.learning_rate", self.learning_rate, 0.0, 1.0)
        check_range("Training.final_rate", self.final_rate, 0.0, 1.0)
        check_range("Training.warmup", self.warmup, 0)
        check_range("Training.weight_decay", self.weight_decay, 0.0)
        check_range("Training.clip", self.clip, 0.0)
        check_range("Training.ema", self.ema, 0.0, 0.999999)
        check_range("Training.held_out", self.held_out, 0.001, 0.9)
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(
                f"Training.precision: found {self.precision!r}, need float32 or bfloat16"
            )


Parts: TypeAlias = Mapping[str, Any]  # trained networks by the names of their stages


@dataclass(frozen=True)
class Stage:
    """The declaration of a network to train, which `training/stages.py` executes.

    A stage has its own folder, named by a digest of everything that it depends on. A finished stage
    is reused, and one with other settings is trained beside it.
    """

    name: str  # unique in the model
    build: Callable[[Spec, Parts], Any]  # (public spec of its store, parts) -> protocols.Learner
    config: Any = None  # dataclass or JSON values that `build` depends on
    training: Training = Training()
    data: str = ""  # the Derived that it is trained on; "": the run's store
    parts: tuple[str, ...] = ()  # earlier stages that `build` or the loss needs, frozen
    share: float = 1.0  # share of the training episodes that is used
    window: int = 0  # least number of observations of an episode in the run's data
    window_from: str = ""  # config key that determines `window`, for the error
    kind: str = "part"  # registry kind of the network, if it has one
    registered: str = ""  # registry name of the network, if it has one
    run: str = ""  # trained run whose network of this name or kind is used, frozen
    privileged: tuple[str, ...] = ()  # keys of a PrivilegedModel, which its spec then has

    @classmethod
    def of_part(
        cls,
        name: str,
        part: Part,
        build: Callable[[Spec, Parts], Any],
        training: Training,
        *,
        config: Any = None,
        privileged: tuple[str, ...] = (),
    ) -> Stage:
        """Return the stage of a network that a config names: one to train, or that of a run.

        `config` is what `build` depends on, if that is more than the part.
        """
        return cls(
            name,
            build,
            part if config is None else config,
            training,
            kind=part.kind,
            registered=part.name,
            run=part.run,
            privileged=privileged,
        )


@dataclass(frozen=True)
class Derived:
    """The declaration of a store that is computed from another, episode by episode.

    `make` maps several episodes at a time, since networks are fast on many frames, and returns one
    for each. The store is made once and continues after a kill.
    """

    name: str  # unique in the model
    spec: Callable[[Spec, Parts], Spec]  # (spec of the input store, parts) -> spec of this store
    make: Callable[[Sequence[Episode], Parts], Iterable[Episode]]
    config: Any = None  # dataclass or JSON values that `make` depends on
    data: str = ""  # the Derived that it is made of; "": the run's store
    parts: tuple[str, ...] = ()  # stages whose networks `spec` and `make` need
    rows: int = 1  # observations per call of `make`, in whole episodes
    # Observation key of ids -> the part with their `vocabulary`. Training stops if few are in use
    # (codebook collapse).
    codebooks: Mapping[str, str] = field(default_factory=dict)
