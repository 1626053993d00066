"""The tasks of the tabletop: their success, their instructions and their starts.

Tasks are told apart as in CALVIN (Mees et al. 2022, arXiv 2112.03227): by how far something moved
since the start. Numbers are those of `scene_obs` (24,), which has CALVIN's order: slider, drawer,
button, switch, bulb, led, then red, blue, pink: x, y, z, euler xyz.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from latentplan.sim.tabletop.world import BLOCK, COLOURS, RANGES, Scene
from latentplan.types import Array

SLIDER, DRAWER, SWITCH, BULB, BLOCKS = 0, 1, 3, 4, 6  # places in scene_obs
SIZE = 24
NEAR_END = 0.02  # m from its end, at most, that a drawer, door or lever starts there
LOW, HIGH = (-0.25, -0.15), (0.17, 0.08)  # m, x and y where blocks start
ASIDE = (-0.27, 0.19)  # m, x where a block may be pushed to
GAP = 0.11  # m between the middles of two blocks: the open gripper fits in
LANE = 0.08  # m to either side of a push without another block's middle
ROOM = 0.13  # m behind a block that is pushed without another one: the gripper comes down there
TURN = 0.25  # rad, a block's yaw at most


@dataclass(frozen=True)
class Task:
    """One number of the scene that shall change; lengths in metres."""

    name: str
    place: int  # in scene_obs, of the number
    way: int  # 1 it shall grow, -1 it shall fall
    change: float  # by how much at least
    further: float  # by how much the expert changes it
    sentences: tuple[str, ...]

    @property
    def block(self) -> int:
        """Which block it is about: red 0, blue 1, pink 2; -1 none."""
        return (self.place - BLOCKS) // 6 if self.place >= BLOCKS else -1

    @property
    def lifts(self) -> bool:
        """Whether a block shall go up."""
        return self.block >= 0 and (self.place - BLOCKS) % 6 == 2

    def missing(self, scene: Array, goal: Array) -> float:
        """Return how far a scene_obs is behind another one in what the task changes, m."""
        return max(0.0, self.way * (float(goal[self.place]) - float(scene[self.place])))

    def done(self, scene: Array, start: Array) -> bool:
        """Return whether a scene_obs has the task done since `start`."""
        if self.place == SWITCH:
            return bool(scene[BULB] == (self.way > 0) and scene[BULB] != start[BULB])
        changed = self.way * (scene[self.place] - start[self.place]) >= self.change
        if self.block >= 0 and not self.lifts:
            z = BLOCKS + 6 * self.block + 2
            return bool(changed and abs(scene[z] - start[z]) < BLOCK / 2)  # it is still on the desk
        return bool(changed)


def _tasks() -> Iterator[Task]:
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


TASKS = {task.name: task for task in _tasks()}


def encode(scene: Scene) -> Array:
    """Return scene_obs (24,) float32."""
    desk = (scene.slider, scene.drawer, 0.0, scene.switch, float(scene.lit), 0.0)
    return np.concatenate([desk, scene.blocks.ravel()]).astype(np.float32)


def decode(scene_obs: Array) -> Scene:
    """Return the scene that a scene_obs (24,) tells of."""
    slider, drawer, _, switch = (float(number) for number in scene_obs[:4])
    return Scene(drawer, slider, switch, np.array(scene_obs[BLOCKS:], np.float64).reshape(3, 6))


def draw_start(task: Task, rng: np.random.Generator) -> Scene:
    """Return a random scene in which the task is to be done and can be done."""
    parts = {"drawer": DRAWER, "slider": SLIDER, "switch": SWITCH}
    values = {
        name: _end(RANGES[name], task.way if task.place == place else 0, rng)
        for name, place in parts.items()
    }
    return Scene(**values, blocks=_draw_blocks(task, rng))


def undo(task: Task, goal: Array, rng: np.random.Generator) -> Scene:
    """Return a start from which the task leads to the scene_obs `goal`; all else is as there."""
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
    """Return a place near the end that leaves room for this way; near either for way 0."""
    from_end = rng.uniform(0, min(NEAR_END, reach / 5))
    at_zero = way > 0 if way else rng.random() < 0.5
    return float(from_end if at_zero else reach - from_end)


def _draw_blocks(task: Task, rng: np.random.Generator) -> Array:
    """Return where blocks (3, 6) lie flat, far enough apart, none in the way of a push."""
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
    """Return whether the block that is pushed, if any, has a free way within ASIDE."""
    if task.block < 0 or task.lifts:
        return True
    end = at[task.block, 0] + task.way * task.further
    if not ASIDE[0] <= end <= ASIDE[1]:
        return False
    others = np.delete(at, task.block, axis=0) - at[task.block]
    ahead = others[:, 0] * task.way
    in_lane = (np.abs(others[:, 1]) < LANE) & (ahead > -ROOM) & (ahead < task.further + GAP)
    return not in_lane.any()
