"""CALVIN's 1,000 fixed chains of five tasks (LH-MTLC) and their start states.

The chains equal those of the benchmark, since they are drawn with the same random numbers. From
each of 192 symbolic states of the table, five or six feasible chains are drawn, each of five tasks
of different kinds. Feasibility is decided on the symbolic state ("the red block is in the drawer"),
without a simulator.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import TypeAlias

import numpy as np

from latentplan.errors import ConfigError, check_range
from latentplan.evaluation.calvin.tasks import BLOCKS, TASKS
from latentplan.files import replacing
from latentplan.types import Array

LENGTH = 5  # tasks of a chain
COUNT = 1000  # chains of the benchmark
State: TypeAlias = Mapping[str, str | int]  # symbolic state of the table

# Start of the arm: x y z of the tool, m; euler xyz, rad; gripper width, m; 7 joints, rad; gripper
ARM = (
    (0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963)
    + (-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928)
    + (1.0,)
)
SLIDER_LEFT, DRAWER_OPEN, SWITCH_ON = 0.28, 0.22, 0.088  # m, m, rad
IN_SLIDER = {  # position of a block, m
    "slider_left": (-0.240851662, 0.0924044687, 0.460990009),
    "slider_right": (0.070341633, 0.0924044687, 0.460990009),
}
ON_TABLE = (
    (0.0500000896, -0.120000177, 0.459990009),
    (0.229995412, -0.11999514, 0.45999001),
)
TURN = (np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8)  # range of a block's yaw, rad


@dataclass(frozen=True)
class Chain:
    """A symbolic start state of the table, and a sequence of tasks."""

    state: State
    tasks: tuple[str, ...]


def chains(count: int = COUNT, *, cache: Path | None = None) -> list[Chain]:
    """Return CALVIN's chains in its order; the benchmark has `count` = 1000.

    They are drawn once, which takes a minute, and stored in `cache`, by default
    `~/.cache/latentplan/calvin-chains-COUNT.json`. Raises ConfigError if the count is out of range
    or the file is damaged.
    """
    check_range("chains.count", count, 1, 100_000)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = cache or home / "latentplan" / f"calvin-chains-{count}.json"
    if not file.is_file():
        drawn = draw(count)
        with replacing(file) as partial:
            partial.write_text(json.dumps([[dict(c.state), c.tasks] for c in drawn]), "utf-8")
        return drawn
    try:
        kept = [Chain(state, tuple(tasks)) for state, tasks in json.loads(file.read_text("utf-8"))]
        if len(kept) == count and all(_possible(c.state, c.tasks) for c in kept):
            return kept
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ConfigError(f"{file}: does not hold {count} chains of CALVIN; delete it")


def draw(count: int) -> list[Chain]:
    """Draw `count` chains, an equal share from every state, and shuffle them."""
    states = list(_states())
    shares = [len(part) for part in np.array_split(np.arange(count), len(states))]
    drawn = [
        Chain(state, tasks)
        for seed, (state, share) in enumerate(zip(states, shares, strict=True))
        for tasks in _draw(state, share, rng=np.random.RandomState(seed))
    ]
    np.random.RandomState(0).shuffle(drawn)  # type: ignore[arg-type]
    return drawn


def start(state: State) -> tuple[Array, Array]:
    """Return robot_obs (15,) and scene_obs (24,), both float64, of a symbolic state.

    Positions and yaw of the blocks are drawn with a hash of the state as seed, so that the same
    state always has the same start.
    """
    # The benchmark's own hash, pyhash.fnv1_32: FNV-1, but from 0, not from FNV's offset.
    rng = np.random.RandomState(_hash(f"dict_values({list(state.values())})"))
    on_table = list(ON_TABLE)
    rng.shuffle(on_table)
    scene = np.zeros(24)
    scene[0] = SLIDER_LEFT if state["slider"] == "left" else 0.0
    scene[1] = DRAWER_OPEN if state["drawer"] == "open" else 0.0
    scene[3] = SWITCH_ON if state["lightbulb"] else 0.0
    scene[4], scene[5] = state["lightbulb"], state["led"]
    for number, block in enumerate(BLOCKS):
        location = str(state[f"{block}_block"])
        first = 6 + 6 * number
        if location == "table":
            # Red has the first position, pink the second, and blue the one that red leaves.
            second = block == "pink" or (block == "blue" and state["red_block"] == "table")
            scene[first : first + 3] = on_table[second]
        else:
            scene[first : first + 3] = IN_SLIDER[location]
        scene[first + 5] = rng.uniform(*TURN)
    return np.array(ARM), scene


def outcomes(state: State, task: str) -> list[State]:
    """Return the possible states after a task; empty if the task is infeasible."""
    words = task.split("_")
    free = state["grasped"] == 0
    at = {block: state[f"{block}_block"] for block in BLOCKS}

    def then(**changes: str | int) -> State:
        return {**state, **changes}

    if words[0] in ("rotate", "push") and words[1] in BLOCKS:
        return [state] if free and at[words[1]] == "table" else []
    if words[0] == "lift":
        block, surface = words[1], words[3]
        other = {"left": "right", "right": "left"}[str(state["slider"])]  # the open side
        fits = {
            "table": at[block] == "table",
            "slider": at[block] == f"slider_{other}",
            "drawer": at[block] == "drawer" and state["drawer"] == "open",
        }
        held = {f"{block}_block": "grasped"}
        return [then(**held, grasped=1)] if free and fits[surface] else []
    if words[0] == "place":
        if free or (words[2] == "drawer" and state["drawer"] != "open"):
            return []
        target = "drawer" if words[2] == "drawer" else f"slider_{state['slider']}"
        return [then(**{f"{b}_block": target}, grasped=0) for b in BLOCKS if at[b] == "grasped"]
    if task == "stack_block":
        return [
            then(**{f"{top}_block": "stacked_top", f"{low}_block": "stacked_bottom"}, grasped=0)
            for top, low in permutations(BLOCKS, 2)
            if not free and at[top] == "grasped" and at[low] == "table"
        ]
    if not free:
        return []
    if task == "unstack_block":
        return [
            then(**{f"{top}_block": "table", f"{low}_block": "table"})
            for top, low in permutations(BLOCKS, 2)
            if at[top] == "stacked_top" and at[low] == "stacked_bottom"
        ]
    if task == "push_into_drawer":
        return [
            then(**{f"{b}_block": "drawer"})
            for b in BLOCKS
            if state["drawer"] == "open"
            and at[b] == "table"
            and all(str(at[o]).startswith("slider_") for o in BLOCKS if o != b)
        ]
    switches: dict[str, tuple[str, str | int, str | int]] = {
        "move_slider_left": ("slider", "right", "left"),
        "move_slider_right": ("slider", "left", "right"),
        "open_drawer": ("drawer", "closed", "open"),
        "close_drawer": ("drawer", "open", "closed"),
        "turn_on_lightbulb": ("lightbulb", 0, 1),
        "turn_off_lightbulb": ("lightbulb", 1, 0),
        "turn_on_led": ("led", 0, 1),
        "turn_off_led": ("led", 1, 0),
    }
    what, before, after = switches[task]
    return [then(**{what: after})] if state[what] == before else []


def kind(task: str) -> str:
    """Return the kind of a task, one of 11; the tasks of a chain have different kinds."""
    words = task.split("_")
    if task == "push_into_drawer":
        return task
    if words[0] == "lift":
        return f"lift_{words[3]}"
    if words[0] == "turn":
        return "light"
    if words[0] in ("open", "close"):
        return "drawer"
    return {"rotate": "block", "push": "block", "move": "slider"}.get(words[0], words[0])


def _possible(state: State, tasks: Sequence[str]) -> bool:
    """Return whether the tasks differ in kind and each has exactly one outcome."""
    for task in tasks:
        after = outcomes(state, task)
        if len(after) != 1:
            return False
        state = after[0]
    return len({kind(task) for task in tasks}) == len(tasks)


def _draw(state: State, count: int, *, rng: np.random.RandomState) -> Iterator[tuple[str, ...]]:
    """Yield `count` feasible chains of a state, by rejection sampling of five tasks."""
    names = list(TASKS)
    kinds = np.unique([kind(name) for name in names], return_inverse=True)[1].tolist()
    first = [len(outcomes(state, name)) == 1 for name in names]
    found = 0
    while found < count:
        numbers = rng.permutation(len(names))[:LENGTH].tolist()
        if not first[numbers[0]] or len({kinds[n] for n in numbers}) < LENGTH:
            continue  # rejects most draws cheaply
        tasks = tuple(names[n] for n in numbers)
        if _possible(state, tasks):
            found += 1
            yield tasks


def _states() -> Iterator[State]:
    """Yield the 192 start states: one or two blocks on the table, the others in the slider."""
    locations = ("table", "slider_right", "slider_left")
    values: dict[str, Sequence[str | int]] = {
        "led": (0, 1),
        "lightbulb": (0, 1),
        "slider": ("right", "left"),
        "drawer": ("closed", "open"),
        **{f"{block}_block": locations for block in BLOCKS},
        "grasped": (0,),
    }
    for each in product(*values.values()):
        on_table = each.count("table")
        if on_table in (1, 2) and each.count("slider_right") < 2 and each.count("slider_left") < 2:
            yield dict(zip(values, each, strict=True))


def _hash(text: str) -> int:
    value = 0
    for byte in text.encode():
        value = value * 0x01000193 % 2**32 ^ byte
    return value
