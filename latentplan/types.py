"""The values that components exchange: frozen dataclasses with checks and JSON, nothing else.

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
Observation: TypeAlias = Mapping[str, Array]  # sensor readings at one time, by name
Tensors: TypeAlias = Mapping[str, "Tensor"]  # observations (B, T, ...) by name
DTYPES = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)))
DTYPES += ("float16", "float32", "float64")  # allowed dtypes of observations
AXES = 8  # most axes of an observation


@dataclass(frozen=True)
class ArraySpec:
    """Shape without B and T, dtype name, and meaning with the unit of one observation."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    meaning: str = ""


@dataclass(frozen=True)
class Convention:
    """The convention of an arm's action, which must agree before data, models and envs are mixed.

    An action has the numbers of the arm, followed by that of the gripper. `data/conventions.py`
    converts between conventions.
    """

    control: str  # ee_pose, ee_delta, joint_position, joint_delta, joint_velocity, joint_torque
    rotation: str = ""  # euler_xyz, rotvec, quaternion_xyzw, quaternion_wxyz, rotation_6d; ee_*
    frame: str = ""  # reference frame of ee_*: world, base, tool
    position_unit: float = 1.0  # metres (ee_*) or rad (joint_*) per 1
    rotation_unit: float = 1.0  # rad per 1; euler_xyz and rotvec only
    gripper: str = ""  # close_is_-1, close_is_+1 (the other sign opens), open_is_1 (0 closes)


@dataclass(frozen=True)
class ActionSpec:
    """The bounds and the meaning of an action."""

    low: tuple[float, ...]  # (A,)
    high: tuple[float, ...]  # (A,)
    meaning: str = ""  # for instance "pick x, y (1 = 0.3 m), drag x, y (1 = 0.1 m)"
    convention: Convention | None = None  # if the action moves an arm

    @property
    def size(self) -> int:
        """The number of action dimensions, A."""
        return len(self.low)


@dataclass(frozen=True)
class PickSpec:
    """Actions whose first two numbers are a pick, a position in an image.

    The numbers (x, y) in [-1, 1] are image coordinates: x to the right, y up, +-1 at the outer
    edges. The object to pick is segmented by a colour range, as in CFM.
    """

    image: str  # observation key of a (h, w, 3) uint8 image
    low: tuple[int, int, int]  # smallest red, green, blue of the object
    high: tuple[int, int, int] = (255, 255, 255)  # largest red, green, blue of the object


@dataclass(frozen=True)
class PlanarSpec:
    """Numbers of an action that are vectors in the image plane of a camera straight above.

    The task is equivariant: if the image and these vectors are rotated or flipped together, the
    outcome is, too. Other numbers of the action, such as heights, do not change.
    """

    image: str  # observation key of a (h, w, 3) uint8 image
    pairs: tuple[tuple[int, int], ...]  # indices of (x to the right, y up) in the image


@dataclass(frozen=True)
class Spec:
    """Observations and actions of a data set, an env or a model, known only at run time."""

    observation: Mapping[str, ArraySpec]
    action: ActionSpec
    env: str = ""  # registry name of the env
    privileged: tuple[str, ...] = ()  # keys of simulator state, for metrics and oracles only
    pick: PickSpec | None = None  # if actions are picks in an image
    dt: float | None = None  # s between observations; None if actions differ in duration
    tasks: tuple[str, ...] = ()  # names in the labels, sorted; task id = index + 1, 0 for none
    planar: PlanarSpec | None = None  # if actions have vectors in the plane of a camera above

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
    """The result of `Env.step`: the five values of gymnasium, named."""

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


@dataclass(frozen=True)
class Label:
    """A language annotation of a part of an episode; parts may overlap."""

    text: str  # an instruction such as "open the drawer"
    task: str = ""  # the name of the task, such as "open_drawer"
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
    seed: int = -1  # seed of the reset; -1 unknown
    info: Mapping[str, float] = field(default_factory=dict)  # numbers by name, such as randomised
    labels: tuple[Label, ...] = ()

    def __post_init__(self) -> None:
        """Raise ShapeError if the lengths do not match."""
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
        """Return the number of actions, L."""
        return len(self.actions)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (population) of each number of an array over the data."""

    mean: Array  # float64, of the shape of a row
    std: Array  # float64; exactly 0 for a constant


@dataclass(frozen=True)
class Batch:
    """Training windows: T observations with the T - 1 actions between them."""

    observations: Tensors  # each (B, T, ...); images stay uint8 (B, T, h, w, 3)
    actions: Tensor  # (B, T - 1, A) float32
    # The fields below are filled only for a learner that reads them.
    rewards: Tensor | None = None  # (B, T - 1) float32
    task: Tensor | None = None  # (B, T) int64 task ids: index in Spec.tasks plus 1, 0 for none
    segments: Tensor | None = None  # (B, T) int64, equal for rows of the same episode
    targets: Tensors = field(default_factory=dict)  # privileged, (B, T, ...): Learner.targets


@dataclass(frozen=True)
class Tokens:
    """Observations as discrete tokens."""

    ids: Tensor  # (B, T / stride, K) int64
    mask: Tensor | None = None  # (B, T / stride, K) bool, True for tokens in use; None for all


@dataclass(frozen=True)
class Context:
    """The past that a model plans from."""

    latents: Tensor  # (B, T, D)
    actions: Tensor  # (B, T - 1, A) between the latents
    task: Tensor | None = None  # (B,) int64 task ids, 0 for none
    memory: Tensor | None = None  # (B, M, ...) retrieved items


@dataclass(frozen=True)
class Goal:
    """A goal, as an observation, a text, a mask or keypoints; an objective defines what it uses."""

    observation: Observation | None = None  # with the model's keys
    text: str = ""  # an instruction, or the name of a task
    mask: Array | None = None  # (h, w) bool, target region of the object in the image
    keypoints: Array | None = None  # (K, 2 or 3), target positions of keypoints

    @classmethod
    def of(cls, given: Observation | Goal | None, **parts: Any) -> Goal:
        """Return a goal as it is; the Goal of an observation and other parts otherwise."""
        return given if isinstance(given, Goal) else cls(observation=given, **parts)


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


@dataclass(frozen=True)
class Plan:
    """The result of a planner."""

    actions: Tensor  # (B, H, A), allowed by the space
    cost: Tensor  # (B,) predicted cost of the actions; lower is better
    violation: Tensor | None = None  # (B,), 0 if the constraints hold; None without any
    elites: Tensor | None = None  # (B, K, H, A) best candidates, for the next warm start
    iterations: int = 1  # number of rounds done
    complete: bool = True  # False if the deadline came before the last round
    milliseconds: float = float("nan")  # duration of the solve


@dataclass(frozen=True)
class Progress:
    """The progress of a long call; `on_progress` receives one after every unit of work."""

    task: str  # name such as "collect rope" or "train tokenizer"; a new name is a new task
    unit: str  # unit such as "episodes", "steps" or "trials"
    done: int  # number of units done, including those of an earlier, resumed call
    total: int  # number of units
    figures: Mapping[str, float | str] = field(default_factory=dict)  # by name, such as the loss


OnProgress: TypeAlias = Callable[[Progress], None]
