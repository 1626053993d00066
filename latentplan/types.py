"""The values that cross seams: frozen dataclasses, no behaviour beyond checks and JSON.

Axes, here and everywhere: B batch, T past, H horizon, N candidates, D latent, A action,
C h w image. torch is imported for type checkers only, so that commands start fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from latentplan import budget
from latentplan.errors import ConfigError, ShapeError, StoreError, check_range

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = np.ndarray[Any, Any]
Observation: TypeAlias = Mapping[str, Array]  # what the sensors give at one instant, by name
Tensors: TypeAlias = Mapping[str, "Tensor"]  # observations stacked to (B, T, ...)
DTYPES = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)))
DTYPES += ("float16", "float32", "float64")  # of observations
AXES = 8  # of an observation, at most


@dataclass(frozen=True)
class ArraySpec:
    """Shape, dtype name and meaning (with the unit) of one observation array, without B and T."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    meaning: str = ""


@dataclass(frozen=True)
class Convention:
    """How an action moves an arm: what must agree before data, models and envs are mixed.

    An action is the arm's numbers, then the gripper's. `data/conventions.py` converts.
    """

    control: str  # ee_pose, ee_delta, joint_position, joint_delta, joint_velocity, joint_torque
    rotation: str = ""  # euler_xyz, rotvec, quaternion_xyzw, quaternion_wxyz, rotation_6d; ee_*
    frame: str = ""  # that ee_* refers to: world, base, tool
    position_unit: float = 1.0  # metres (ee_*) or rad (joint_*) that a 1 stands for
    rotation_unit: float = 1.0  # rad that a 1 stands for; euler_xyz and rotvec alone
    gripper: str = ""  # close_is_-1, close_is_+1 (the other sign opens), open_is_1 (0 closes)


@dataclass(frozen=True)
class ActionSpec:
    """Bounds of an action and what its numbers mean."""

    low: tuple[float, ...]  # (A,)
    high: tuple[float, ...]  # (A,)
    meaning: str = ""  # for instance "pick x, y (1 = 0.3 m), drag x, y (1 = 0.1 m)"
    convention: Convention | None = None  # of an arm's action

    @property
    def size(self) -> int:
        """A, the number of action dimensions."""
        return len(self.low)


@dataclass(frozen=True)
class PickSpec:
    """How an action's first two numbers point into a picture.

    The action's (x, y) in [-1, 1] are picture coordinates: x to the right, y up, +-1 at the
    outer edges of the picture. The object is what lies within the colour range, as a camera
    would segment it (CFM does the same; cfm/sample_trajectories in the paper's terms).
    """

    image: str  # observation key of a (h, w, 3) uint8 picture
    low: tuple[int, int, int]  # smallest red, green, blue of the object
    high: tuple[int, int, int] = (255, 255, 255)  # largest


@dataclass(frozen=True)
class PlanarSpec:
    """Which numbers of an action are vectors in the plane that a camera looks straight down on.

    If the image and these vectors turn or flip together, so does what follows; the other numbers
    of the action, such as heights, stay as they are.
    """

    image: str  # observation key of a (h, w, 3) uint8 picture
    pairs: tuple[tuple[int, int], ...]  # indices of (x to the right, y up) in the picture


@dataclass(frozen=True)
class Spec:
    """What a data set, an env or a model was made with: learnt at run time, never a config key."""

    observation: Mapping[str, ArraySpec]
    action: ActionSpec
    env: str = ""  # registry name of the env that made it
    privileged: tuple[str, ...] = ()  # simulator truth, for metrics and oracles alone
    pick: PickSpec | None = None  # where actions point into a picture, if they do
    dt: float | None = None  # s between observations; None where an action takes its time
    tasks: tuple[str, ...] = ()  # of the labels, sorted; a task id is the index + 1, 0 is none
    planar: PlanarSpec | None = None  # vectors in the plane of a camera above, if there are any

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` is the inverse."""
        return {
            "observation": {
                k: {"shape": list(a.shape), "dtype": a.dtype, "meaning": a.meaning}
                for k, a in self.observation.items()
            },
            "action": {
                "low": list(self.action.low),
                "high": list(self.action.high),
                "meaning": self.action.meaning,
                **(
                    {"convention": asdict(self.action.convention)} if self.action.convention else {}
                ),
            },
            "env": self.env,
            "privileged": list(self.privileged),
            "pick": None
            if self.pick is None
            else {
                "image": self.pick.image,
                "low": list(self.pick.low),
                "high": list(self.pick.high),
            },
            "dt": self.dt,
            **({"tasks": list(self.tasks)} if self.tasks else {}),
            **(
                {"planar": None if self.planar is None else asdict(self.planar)}
                if self.planar != _implied_planar(self.env, picks=self.pick is not None)
                else {}
            ),
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Spec:
        """Return the Spec that `to_json` described; StoreError, which names the field, if none.

        Raises BudgetError if a row of it is larger than the budget.
        """
        from latentplan import schema

        found = schema.from_values(Spec, values, where="spec", error=StoreError)
        for where, fault in _faults(found):
            raise StoreError(f"spec.{where}: {fault}")
        if "planar" in values:
            return found
        return replace(found, planar=_implied_planar(found.env, picks=found.pick is not None))


def _faults(spec: Spec) -> Iterator[tuple[str, str]]:
    """Yield what a spec from a file says that cannot be: the field, and what is wrong with it."""
    for key, array in spec.observation.items():
        where = f"observation.{key}"
        if array.dtype not in DTYPES:
            yield f"{where}.dtype", f"found {array.dtype!r}, known: {', '.join(DTYPES)}"
        if len(array.shape) > AXES or min(array.shape, default=0) < 0:
            yield f"{where}.shape", f"found {array.shape}, need at most {AXES} sizes from 0 on"
        size = prod(array.shape) * np.dtype(array.dtype).itemsize
        budget.claim(f"spec.{where}.shape", bytes=size)
    low, high = spec.action.low, spec.action.high
    if not low or len(low) != len(high):
        yield "action", f"found {len(low)} lower and {len(high)} upper bounds, need as many"
    for i, (least, most) in enumerate(zip(low, high, strict=True)):
        if least > most:
            yield f"action.low.{i}", f"found {least} above the upper bound {most}"
    arm = spec.action.convention
    if arm is not None and min(arm.position_unit, arm.rotation_unit) <= 0:
        found = f"{arm.position_unit} and {arm.rotation_unit}"
        yield "action.convention", f"found units {found}, need some above 0"
    if spec.dt is not None and spec.dt <= 0:
        yield "dt", f"found {spec.dt}, need s above 0"
    if spec.pick is not None and not all(0 <= c <= 255 for c in spec.pick.low + spec.pick.high):
        yield "pick", f"found colours {spec.pick.low} to {spec.pick.high}, need 0 to 255"
    pairs = () if spec.planar is None else spec.planar.pairs
    indices = [index for pair in pairs for index in pair]
    if len(set(indices)) != len(indices) or not set(indices) <= set(range(len(low))):
        yield (
            "planar.pairs",
            f"found {pairs}, need different indices of the {len(low)} numbers of an action",
        )


def _implied_planar(env: str, *, picks: bool) -> PlanarSpec | None:
    """Return what the JSON of rope and cloth leaves out, as it did before `Spec.planar`."""
    if env not in ("rope", "cloth"):
        return None
    return PlanarSpec("rgb", ((0, 1), (2, 3)) if picks else ((0, 1),))


class Step(NamedTuple):
    """What `Env.step` returns: gymnasium's five values, named."""

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


@dataclass(frozen=True)
class Label:
    """What happens in a part of an episode, in words; parts may overlap."""

    text: str  # as one would say it: "open the drawer"
    task: str = ""  # its name: "open_drawer"
    start: int = 0  # first observation of the part
    stop: int = -1  # its last observation, included; -1: the episode's last


@dataclass(frozen=True)
class Episode:
    """One real episode of L actions and L + 1 observations."""

    observations: Mapping[str, Array]  # each (L + 1, ...)
    actions: Array  # (L, A) float32; actions[t] leads from observation t to t + 1
    rewards: Array  # (L,) float32
    terminated: bool = False
    truncated: bool = False
    seed: int = -1  # what the episode was made from; -1 unknown
    info: Mapping[str, float] = field(default_factory=dict)  # by name: what was drawn for it, ...
    labels: tuple[Label, ...] = ()  # what happens in it

    def __post_init__(self) -> None:
        """Raise ShapeError where the lengths do not fit together."""
        steps = len(self.actions)
        if self.actions.ndim != 2 or steps < 1:
            raise ShapeError(f"Episode.actions: got shape {self.actions.shape}, need (L >= 1, A)")
        if len(self.rewards) != steps:
            raise ShapeError(f"Episode.rewards: got {len(self.rewards)} for {steps} actions")
        for key, value in self.observations.items():
            if len(value) != steps + 1:
                raise ShapeError(
                    f"Episode.observations[{key!r}]: got {len(value)} rows for {steps} actions, "
                    f"need {steps + 1}"
                )

    def __len__(self) -> int:
        """Return L, the number of actions."""
        return len(self.actions)


@dataclass(frozen=True)
class Batch:
    """Training windows: T observations with the T - 1 actions between them."""

    observations: Tensors  # each (B, T, ...); images stay uint8 (B, T, h, w, 3)
    actions: Tensor  # (B, T - 1, A) float32
    # The rest is filled for a learner that reads it, else None.
    rewards: Tensor | None = None  # (B, T - 1) float32
    task: Tensor | None = None  # (B, T) int64 task ids: index in Spec.tasks plus 1, 0 for none
    segments: Tensor | None = None  # (B, T) int64; rows of one number are of one episode
    targets: Tensors = field(default_factory=dict)  # privileged, (B, T, ...): Learner.targets


@dataclass(frozen=True)
class Tokens:
    """Observations as discrete tokens."""

    ids: Tensor  # (B, T / stride, K) int64
    mask: Tensor | None = None  # (B, T / stride, K) bool, True for tokens in use; None for all


@dataclass(frozen=True)
class Context:
    """What a model plans from."""

    latents: Tensor  # (B, T, D)
    actions: Tensor  # (B, T - 1, A), sent between them
    task: Tensor | None = None  # (B,) int64 task ids, 0 for none
    memory: Tensor | None = None  # (B, M, ...), retrieved


@dataclass(frozen=True)
class Goal:
    """What to reach, in the form that the user has; an objective says which forms it takes."""

    observation: Observation | None = None  # with the model's keys
    text: str = ""  # an instruction, or a task's name
    mask: Array | None = None  # (h, w) bool: where the object should be in the image
    keypoints: Array | None = None  # (K, 2 or 3), where its keypoints should be


@dataclass(frozen=True)
class Loss:
    """What a training step minimises, and its parts for the curves (detached scalars)."""

    total: Tensor  # ()
    parts: Mapping[str, Tensor]  # each ()


@dataclass(frozen=True)
class Part:
    """A config field that another class fills: `{name: REGISTERED, ...}` or `{run: RUN}`.

    With `name`, a registry name or a preset of `kind`, the other keys are fields of that class's
    Config. With `run` the part is that of a trained run and stays as it is (frozen).
    """

    kind: str  # registry kind: tokenizer, model, ...; no key
    name: str = ""  # registry name
    config: Any = None  # filled Config of the class; None for its defaults
    run: str = ""  # run folder, checkpoint file or shipped name


@dataclass(frozen=True)
class Training:
    """How a network is trained."""

    steps: int = 10_000  # of the optimizer
    batch: int = 128  # windows a step
    window: int = 0  # observations a window; 0: the fewest that the learner needs
    learning_rate: float = 1e-3  # highest, reached after the warm-up
    final_rate: float = 0.01  # share of learning_rate left at the last step
    warmup: int = 200  # steps over which the rate rises from 0
    weight_decay: float = 1e-6  # AdamW's: a share of each weight per step and rate
    clip: float = 20.0  # largest norm of the gradient
    ema: float = 0.0  # decay a step of averaged weights, which are then evaluated and kept; 0 off
    precision: str = "float32"  # or "bfloat16": forward pass under autocast, weights stay float32
    compile: bool = False  # torch.compile of the loss
    held_out: float = 0.1  # share of the episodes that are never trained on
    log_every: int = 50  # steps between points of the training curve
    eval_every: int = 500  # steps between held-out figures
    save_every: int = 500  # steps between saves, each of which a resume can continue from

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
    """A network to train, as a model declares it; `training/stages.py` executes it.

    It has a folder of its own, named by a digest of all that it depends on: a stage that is done
    is not repeated, and one with other settings is made beside it.
    """

    name: str  # unique in the model
    build: Callable[[Spec, Parts], Any]  # public spec of its store, `parts` -> protocols.Learner
    config: Any = None  # dataclass or JSON values that `build` depends on
    training: Training = Training()
    data: str = ""  # the Derived that it is trained on; "": the run's store
    parts: tuple[str, ...] = ()  # earlier stages that `build` or the loss needs, frozen
    share: float = 1.0  # of the training episodes
    window: int = 0  # observations of the run's data that its windows need, checked at the start
    window_from: str = ""  # the config key that decides `window`, for the error
    kind: str = "part"  # registry kind of the network, if it has one
    registered: str = ""  # registry name of the network, if it has one
    run: str = ""  # trained run whose network of this name or kind is used as it is


@dataclass(frozen=True)
class Derived:
    """A store made of another, episode by episode, as a model declares it.

    `make` gets a few episodes at a time, since networks are fast on many frames, and returns one
    for each. The store is made once and continues after a kill.
    """

    name: str  # unique in the model
    spec: Callable[[Spec, Parts], Spec]  # spec of the store that it is made of, parts -> its own
    make: Callable[[Sequence[Episode], Parts], Iterable[Episode]]
    config: Any = None  # dataclass or JSON values that `make` depends on
    data: str = ""  # the Derived that it is made of; "": the run's store
    parts: tuple[str, ...] = ()  # stages whose networks `spec` and `make` need
    rows: int = 1  # observations given to `make` at a time, in whole episodes
    # Observation key -> the part whose `vocabulary` its ids are below: training stops if few are
    # in use (a collapsed code book).
    codebooks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a planner returns, and what was reached."""

    actions: Tensor  # (B, H, A), allowed by the space
    cost: Tensor  # (B,), of these actions; low is good
    violation: Tensor | None = None  # (B,), 0 where the constraints hold; None without any
    elites: Tensor | None = None  # (B, K, H, A), good ones: the next solve may start there too
    iterations: int = 1  # rounds done
    complete: bool = True  # False where the deadline came before the last round
    milliseconds: float = float("nan")  # that it took


@dataclass(frozen=True)
class Progress:
    """How far a long call has come; `on_progress` receives one after every unit of work."""

    task: str  # what is being done: "collect rope", "train tokenizer"; a new name is a new task
    unit: str  # what is counted: "episodes", "steps", "trials"
    done: int  # units, those of an earlier call that this one continues included
    total: int  # units
    figures: Mapping[str, float | str] = field(default_factory=dict)  # such as the loss, by name


OnProgress: TypeAlias = Callable[[Progress], None]
