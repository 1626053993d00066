"""Success tests of CALVIN's 34 tasks.

A test compares the state at the start of a task with a later one; it does not depend on the states
in between. A state is the `info` of calvin_env: `robot_info` (uid, contacts) and `scene_info`
(movable_objects, fixed_objects, doors, lights), with contact points in PyBullet's format.

Thresholds are those of CALVIN's configuration `new_playtable_tasks`; lengths are in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from scipy.spatial.transform import Rotation

from latentplan.errors import unknown
from latentplan.types import Array

Info: TypeAlias = Mapping[str, Any]

BLOCKS = ("red", "blue", "pink")
TURN = 60.0  # least rotation about z, degrees
TILT, SHIFT = 30.0, 0.1  # largest rotation about x and y, degrees, and largest motion in a turn
PUSH = 0.1  # least motion along x
LIFT = {"table": 0.05, "slider": 0.03, "drawer": 0.05}  # least height, by supporting surface
LINKS = {"table": "base_link", "slider": "plank_link", "drawer": "drawer_link"}  # of the table
SLIDE, PULL = 0.15, 0.12  # least motions of the slider and of the drawer
STEADY = 1.0  # largest speed of a stacked block along each axis, m/s and rad/s


@dataclass(frozen=True)
class Change:
    """The states at the start and at the end of a task."""

    start: Info
    end: Info

    @property
    def robot(self) -> int:
        """The robot's body id in PyBullet."""
        return int(self.start["robot_info"]["uid"])

    @property
    def scenes(self) -> tuple[Info, Info]:
        """The `scene_info` at the start and at the end."""
        return self.start["scene_info"], self.end["scene_info"]

    def moved(self, block: str) -> Array:
        """Return the displacement (3,) of a block, m."""
        here, there = (_block(i, block)["current_pos"] for i in (self.start, self.end))
        moved: Array = np.subtract(there, here)
        return moved

    def touching(self, block: str) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
        """Return the (body, link) pairs that touch a block at the start, and at the end."""
        start, end = (_contacts(_block(i, block)) for i in (self.start, self.end))
        return start, end

    def link(self, name: str) -> tuple[int, int]:
        """Return the (body, link) pair of the table's part `name`."""
        table = self.start["scene_info"]["fixed_objects"]["table"]
        return table["uid"], table["links"][LINKS[name]]


Test: TypeAlias = Callable[[Change], bool]


def achieved(start: Info, end: Info, *, among: Iterable[str] | None = None) -> set[str]:
    """Return the names of the tasks completed between `start` and `end`, only of `among` if given.

    Raises UnknownName for a name that is not one of the 34 tasks.
    """
    change = Change(start, end)
    tested = list(TASKS if among is None else among)
    for name in tested:
        if name not in TASKS:
            raise unknown("task", name, TASKS)
    return {name for name in tested if TASKS[name](change)}


def rotated(change: Change, *, block: str, turn: float) -> bool:
    """Return whether a block was rotated about z in place, and rests on something but the robot."""
    start, end = (
        Rotation.from_quat(_block(i, block)["current_orn"]) for i in (change.start, change.end)
    )
    x, y, z = (end * start.inv()).as_euler("xyz", degrees=True)
    rests = any(body != change.robot for body, _ in change.touching(block)[1])
    upright = abs(x) < TILT and abs(y) < TILT and np.linalg.norm(change.moved(block)) <= SHIFT
    return bool(abs(turn) < z * np.sign(turn) < 180 and upright and rests)


def pushed(change: Change, *, block: str, way: float) -> bool:
    """Return whether a block was moved along x and kept its contacts apart from the robot."""
    start, end = (
        {c for c in contacts if c[0] != change.robot} for contacts in change.touching(block)
    )
    return bool(start and start <= end and change.moved(block)[0] * np.sign(way) > abs(way))


def lifted(change: Change, *, block: str, surface: str) -> bool:
    """Return whether a block that lay on `surface` was lifted and touches the robot alone."""
    start, end = change.touching(block)
    held = {body for body, _ in end} == {change.robot}
    high = change.moved(block)[2] > LIFT[surface]
    return bool(high and held and change.link(surface) in start)


def placed(change: Change, *, surface: str) -> bool:
    """Return whether the robot released a block that it held in the air, and it is on `surface`."""
    before, after = (
        {body for body, _ in _contacts(i["robot_info"])} for i in (change.start, change.end)
    )
    held = [b for b in BLOCKS if {_block(change.start, b)["uid"]} == before]
    if not held or before & after:
        return False
    start, end = change.touching(held[0])
    return {body for body, _ in start} == {change.robot} and change.link(surface) in end


def pushed_into_drawer(change: Change) -> bool:
    """Return whether a block that touched the table alone touches the drawer at the end.

    The robot may touch it as well: CALVIN intends to exclude that case but does not.
    """
    table, drawer = change.link("table"), change.link("drawer")
    both = [change.touching(block) for block in BLOCKS]
    return any(start == {table} and drawer in end for start, end in both)


def stacked(change: Change) -> bool:
    """Return whether a block that touched no other block rests on blocks alone at the end."""
    return any(
        not _on_blocks(change.start, b)
        and _on_blocks(change.end, b, alone=True)
        and _steady(change.end, b)
        for b in BLOCKS
    )


def unstacked(change: Change) -> bool:
    """Return whether a block that rested on blocks alone touches none at the end."""
    return any(
        _on_blocks(change.start, b, alone=True)
        and not _on_blocks(change.end, b)
        and _steady(change.start, b)
        for b in BLOCKS
    )


def opened(change: Change, *, door: str, way: float) -> bool:
    """Return whether a door (slider or drawer) moved further than `way`, in its direction."""
    here, there = (s["doors"][door]["current_state"] for s in change.scenes)
    return bool((there - here) * np.sign(way) > abs(way))


def switched(change: Change, *, light: str, on: bool) -> bool:
    """Return whether a light was switched to `on`."""
    here, there = (s["lights"][light]["logical_state"] for s in change.scenes)
    return (here, there) == (int(not on), int(on))


def _block(info: Info, block: str) -> Info:
    found: Info = info["scene_info"]["movable_objects"][f"block_{block}"]
    return found


def _contacts(thing: Info) -> set[tuple[int, int]]:
    """Return the (body, link) pairs that touch a thing, from PyBullet's contact points."""
    return {(point[2], point[4]) for point in thing["contacts"]}


def _on_blocks(info: Info, block: str, *, alone: bool = False) -> bool:
    """Return whether a block touches other blocks; if `alone`, nothing else."""
    blocks = {_block(info, b)["uid"] for b in BLOCKS}
    bodies = {body for body, _ in _contacts(_block(info, block))}
    return bool(bodies & blocks) and not (alone and bodies - blocks)


def _steady(info: Info, block: str) -> bool:
    found = _block(info, block)
    speeds = np.abs([*found["current_lin_vel"], *found["current_ang_vel"]])
    return bool((speeds < STEADY).all())


def _tasks() -> dict[str, Test]:
    """Return the tests by name, in CALVIN's order, on which the draw of its chains depends."""
    sides = (("right", -1), ("left", 1))  # sign of a turn about z; a push to the right is along +x
    turns = {
        f"rotate_{b}_block_{side}": partial(rotated, block=b, turn=sign * TURN)
        for b in BLOCKS
        for side, sign in sides
    }
    pushes = {
        f"push_{b}_block_{side}": partial(pushed, block=b, way=-sign * PUSH)
        for b in BLOCKS
        for side, sign in sides
    }
    doors = {
        "move_slider_left": partial(opened, door="base__slide", way=SLIDE),
        "move_slider_right": partial(opened, door="base__slide", way=-SLIDE),
        "open_drawer": partial(opened, door="base__drawer", way=PULL),
        "close_drawer": partial(opened, door="base__drawer", way=-PULL),
    }
    lifts = {
        f"lift_{b}_block_{surface}": partial(lifted, block=b, surface=surface)
        for b in BLOCKS
        for surface in LIFT
    }
    placements = {f"place_in_{s}": partial(placed, surface=s) for s in ("slider", "drawer")}
    lights = {
        f"turn_{'on' if on else 'off'}_{light}": partial(switched, light=light, on=on)
        for light in ("lightbulb", "led")
        for on in (True, False)
    }
    return {
        **turns,
        **pushes,
        **doors,
        **lifts,
        **placements,
        "stack_block": stacked,
        "unstack_block": unstacked,
        **lights,
        "push_into_drawer": pushed_into_drawer,
    }


TASKS: Mapping[str, Test] = _tasks()
