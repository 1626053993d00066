"""Whole states of a robosuite env: MuJoCo's, and robosuite's own.

robosuite's own are the gripper's last action, the controllers' errors and goals, buffers of recent
values, the counts of a task, and the poses that a reset writes into the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from latentplan.sim.rendering.mujoco_renderer import mujoco
from latentplan.types import Array

PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION.value
IN_MODEL = ("body_pos", "body_quat", "geom_rgba")  # arrays of the model that resets and steps write
VALUES = (bool, int, float, str, np.generic, np.ndarray, type(None))


class Snapshot(NamedTuple):
    """One state of an env of robosuite."""

    physics: Array
    sensors: Array
    model: dict[str, Array]
    values: dict[str, dict[str, Any]]  # attributes, by the name of their object


def save(env: Any) -> Snapshot:
    """Return the state of robosuite's env."""
    model, data = env.sim.model._model, env.sim.data._data
    physics = np.empty(mujoco.mj_stateSize(model, PHYSICS))
    mujoco.mj_getState(model, data, physics, PHYSICS)
    shared = _shared(env)
    values = {
        name: {k: v for k, v in vars(keeper).items() if _is_value(v, shared)}
        for name, keeper in _keepers(env)
    }
    return Snapshot(
        physics,
        data.sensordata.copy(),
        {name: getattr(model, name).copy() for name in IN_MODEL},
        # Copied together, so that two references to one array stay so.
        deepcopy(values, shared),
    )


def load(env: Any, state: Snapshot) -> None:
    """Restore a state of robosuite's env, and recompute the positions."""
    model, data = env.sim.model._model, env.sim.data._data
    for name, array in state.model.items():
        getattr(model, name)[:] = array
    mujoco.mj_setState(model, data, state.physics, PHYSICS)
    refresh(env)
    data.sensordata[:] = state.sensors
    for warning in data.warning:
        warning.number = 0
    values = deepcopy(state.values, _shared(env))
    for name, keeper in _keepers(env):
        vars(keeper).update(values[name])


def refresh(env: Any) -> None:
    """Compute all positions, since a step of MuJoCo ends with those of the step before."""
    mujoco.mj_fwdPosition(env.sim.model._model, env.sim.data._data)


def diverged(env: Any) -> bool:
    """Return whether MuJoCo warned since the last reset, or the state is not finite."""
    data, signs = env.sim.data._data, mujoco.mjtWarning
    bad = (signs.mjWARN_BADQPOS, signs.mjWARN_BADQVEL, signs.mjWARN_BADQACC)
    return any(data.warning[s].number for s in bad) or not bool(np.isfinite(data.qpos).all())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed numpy's and Python's global generators, which robosuite draws from.

    Their states are restored afterwards.
    """
    import random

    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)


@cache
def _kinds() -> tuple[type, ...]:
    """Return the types of values that are copied."""
    from robosuite.utils.buffers import DeltaBuffer, RingBuffer

    return (*VALUES, DeltaBuffer, RingBuffer)


def _is_value(value: Any, shared: dict[int, Any]) -> bool:
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return all(isinstance(v, _kinds()) or id(v) in shared for v in inner)
    return isinstance(value, _kinds())


def _keepers(env: Any) -> Iterator[tuple[str, Any]]:
    """Yield each object that keeps values between steps, with a name."""
    (robot,) = env.robots
    yield "env", env
    yield "robot", robot
    for arm, gripper in robot.gripper.items():
        yield f"gripper {arm}", gripper
    for part, controller in robot.part_controllers.items():
        yield f"controller {part}", controller


def _shared(env: Any) -> dict[int, Any]:
    """Return the parts of the model that values may refer to; they are never copied."""
    return {id(marker): marker for marker in getattr(env.model.mujoco_arena, "markers", ())}
