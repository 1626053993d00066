"""Specs: shapes, bounds and meanings, known only at run time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import numpy as np

from latentplan import budget
from latentplan.errors import StoreError

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
