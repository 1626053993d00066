"""The tasks of the tabletop: their success, their instructions and their starts.

A task is defined as in CALVIN (Mees et al. 2022, arXiv 2112.03227): by the motion of an object
since the start. `scene_obs` (24,) has CALVIN's order: slider, drawer, button, switch, bulb, led,
then red, blue, pink: x, y, z, euler xyz.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from latentplan.sim.tabletop.world import BLOCK, COLOURS, RANGES, Scene
from latentplan.types import Array

SLIDER, DRAWER, SWITCH, BULB, BLOCKS = 0, 1, 3, 4, 6  # indices in scene_obs
SIZE = 24
NEAR_END = 0.02  # m, largest distance from its end at which a drawer, door or lever starts
LOW, HIGH = (-0.25, -0.15), (0.17, 0.08)  # m, bounds of x and y of blocks at a start
ASIDE = (-0.27, 0.19)  # m, bounds of x at the end of a push
GAP = 0.11  # m between the middles of two blocks, at least, so that the open gripper fits
LANE = 0.08  # m to either side of a push that other blocks' middles keep free
ROOM = 0.13  # m behind a pushed block that is free, for the gripper's descent
TURN = 0.25  # rad, largest yaw of a block


@dataclass(frozen=True)
class Task:
    """A task: a change of one number of the scene; lengths in metres."""

    name: str
    place: int  # index in scene_obs
    way: int  # 1 to increase the number, -1 to decrease it
    change: float  # least change
    further: float  # change of the expert
    sentences: tuple[str, ...]  # instructions

    @property
    def block(self) -> int:
        """The block of the task: red 0, blue 1, pink 2; -1 for none."""
        return (self.place - BLOCKS) // 6 if self.place >= BLOCKS else -1

    @property
    def lifts(self) -> bool:
        """Whether the task lifts a block."""
        return self.block >= 0 and (self.place - BLOCKS) % 6 == 2

    def missing(self, scene: Array, goal: Array) -> float:
        """Return the remaining change from a scene_obs to `goal`, m; at least 0."""
        return max(0.0, self.way * (float(goal[self.place]) - float(scene[self.place])))

    def done(self, scene: Array, start: Array) -> bool:
        """Return whether the task is done in `scene`, against `start`."""
        if self.place == SWITCH:
            return bool(scene[BULB] == (self.way > 0) and scene[BULB] != start[BULB])
        changed = self.way * (scene[self.place] - start[self.place]) >= self.change
        if self.block >= 0 and not self.lifts:
            z = BLOCKS + 6 * self.block + 2
            return bool(changed and abs(scene[z] - start[z]) < BLOCK / 2)  # it is still on the desk
        return bool(changed)


def _furniture_tasks() -> Iterator[Task]:
    opens = ("open the drawer", "pull out the drawer", "pull the handle of the drawer")
    yield Task("open_drawer", DRAWER, 1, 0.12, 0.15, (*opens, "go open the drawer"))
    closes = ("close the drawer", "push in the drawer", "push the handle of the drawer")
    yield Task("close_drawer", DRAWER, -1, 0.12, 0.15, (*closes, "go close the drawer"))
    for name, way in (("left", 1), ("right", -1)):
        yield Task(
            f"move_slider_{name}",
            SLIDER,
            way,
            0.15,
            0.18,
            (
                f"move the sliding door to the {name}",
                f"push the sliding door {name}",
                f"slide the door to the {name}",
                f"take the door handle and slide it {name}",
            ),
        )
    for name, way in (("on", 1), ("off", -1)):
        yield Task(
            f"turn_{name}_light",
            SWITCH,
            way,
            0.0,
            0.06,
            (
                f"turn {name} the light",
                f"turn the lamp {name}",
                f"switch {name} the light bulb",
                f"use the switch to turn {name} the light",
            ),
        )


def _block_tasks() -> Iterator[Task]:
    for number, colour in enumerate(COLOURS):
        for name, way in (("left", -1), ("right", 1)):
            yield Task(
                f"push_{colour}_block_{name}",
                BLOCKS + 6 * number,
                way,
                0.1,
                0.12,
                (
                    f"push the {colour} block to the {name}",
                    f"push the {colour} block {name}",
                    f"slide the {colour} block towards the {name}",
                    f"go push the {colour} cube to the {name}",
                ),
            )
    for number, colour in enumerate(COLOURS):
        yield Task(
            f"lift_{colour}_block",
            BLOCKS + 6 * number + 2,
            1,
            0.05,
            0.08,
            (
                f"lift the {colour} block",
                f"pick up the {colour} block",
                f"grasp the {colour} block and lift it up",
                f"raise the {colour} cube",
            ),
        )


TASKS = {task.name: task for task in (*_furniture_tasks(), *_block_tasks())}


def encode(scene: Scene) -> Array:
    """Return scene_obs (24,) float32."""
    desk = (scene.slider, scene.drawer, 0.0, scene.switch, float(scene.lit), 0.0)
    return np.concatenate([desk, scene.blocks.ravel()]).astype(np.float32)


def decode(scene_obs: Array) -> Scene:
    """Return the scene of a scene_obs (24,)."""
    slider, drawer, _, switch = (float(number) for number in scene_obs[:4])
    return Scene(drawer, slider, switch, np.array(scene_obs[BLOCKS:], np.float64).reshape(3, 6))


def draw_start(task: Task, rng: np.random.Generator) -> Scene:
    """Return a random scene in which the task is feasible and not done."""
    parts = {"drawer": DRAWER, "slider": SLIDER, "switch": SWITCH}
    values = {
        name: _end(RANGES[name], task.way if task.place == place else 0, rng)
        for name, place in parts.items()
    }
    return Scene(**values, blocks=_draw_blocks(task, rng))


def undo(task: Task, goal: Array, rng: np.random.Generator) -> Scene:
    """Return a start from which the task leads to the scene_obs `goal`; the rest is equal."""
    start = np.array(goal, np.float64)
    if task.lifts:
        start[task.place] = BLOCK / 2
        start[task.place + 1 : task.place + 3] = 0  # on the desk it lies flat
    elif task.block >= 0:
        start[task.place] -= task.way * task.further
    else:
        name = {DRAWER: "drawer", SLIDER: "slider", SWITCH: "switch"}[task.place]
        start[task.place] = _end(RANGES[name], task.way, rng)
    return decode(start)


def _end(reach: float, way: int, rng: np.random.Generator) -> float:
    """Return a place near the end that leaves room for `way`; near either end for way 0."""
    from_end = rng.uniform(0, min(NEAR_END, reach / 5))
    at_zero = way > 0 if way else rng.random() < 0.5
    return float(from_end if at_zero else reach - from_end)


def _draw_blocks(task: Task, rng: np.random.Generator) -> Array:
    """Return random flat poses of blocks (3, 6), far enough apart, none in the way of a push."""
    while True:
        at = rng.uniform(LOW, HIGH, (len(COLOURS), 2))
        gaps = np.linalg.norm(at[:, None] - at[None], axis=2)[np.triu_indices(len(at), 1)]
        if gaps.min() < GAP or not _clear(task, at):
            continue
        blocks = np.zeros((len(at), 6))
        blocks[:, :2], blocks[:, 2] = at, BLOCK / 2
        blocks[:, 5] = rng.uniform(-TURN, TURN, len(at))
        return blocks


def _clear(task: Task, at: Array) -> bool:
    """Return whether the pushed block, if any, has a free path within ASIDE."""
    if task.block < 0 or task.lifts:
        return True
    end = at[task.block, 0] + task.way * task.further
    if not ASIDE[0] <= end <= ASIDE[1]:
        return False
    others = np.delete(at, task.block, axis=0) - at[task.block]
    ahead = others[:, 0] * task.way
    in_lane = (np.abs(others[:, 1]) < LANE) & (ahead > -ROOM) & (ahead < task.further + GAP)
    return not in_lane.any()
