"""Closed-loop attempts at the tabletop's tasks, many at a time, so that a model is asked once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch

from latentplan import config
from latentplan.errors import UnstablePhysics
from latentplan.sim.tabletop.env import NAMES, Tabletop

CATEGORIES = {
    "push": [name for name in NAMES if name.startswith("push")],
    "open/close": ["open_drawer", "close_drawer"],
    "turn on/off": ["turn_on_light", "turn_off_light"],
    "slider": ["move_slider_left", "move_slider_right"],
    "lift": [name for name in NAMES if name.startswith("lift")],
}
COUNTED = ("push", "open/close", "turn on/off", "slider")
FIRST_SEED = 1_000_000  # of a start; collection draws numbers of 63 bits instead
LANES = 25  # attempts at a time


class Policy(Protocol):
    """A policy of several episodes of one task at once."""

    sees: bool  # whether it needs pictures, which take longest

    def begin(self, envs: Sequence[Tabletop], task: str, seeds: Sequence[int]) -> None:
        """Start one episode an env, which was reset."""

    def act(self, lanes: Sequence[int], observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return actions (n, A) of the episodes `lanes`, those which go on."""


@dataclass(frozen=True)
class Attempt:
    """One episode."""

    task: str
    seed: int  # of the start
    success: bool  # the task was done at some time
    actions: int  # until then, or until it was given up


def attempts(
    policy: Policy,
    tasks: Sequence[str],
    *,
    episodes: int,
    length: int = Tabletop.episode_length,
    lanes: int = LANES,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[list[Attempt], float]:
    """Return `episodes` attempts, spread evenly over the tasks, and ms that an action took.

    An attempt ends with its success, as in CALVIN, after `length` actions, or if the simulation
    diverges, which is no success. An attempt's number gives its start, the same for every policy.
    The time is that of `policy.act`, an action of one episode.
    """
    preset = config.resolve("env", "tabletop_short").values | {"goals": False}
    if not policy.sees:
        preset = preset | {"cameras": []}
    settings = config.load({"env": Tabletop.Config}, preset={"env": preset}, overrides=[])["env"]
    share, rest = divmod(episodes, len(tasks))
    envs: list[Tabletop] = []
    made, acted, taken = [], 0, 0.0
    try:
        for place, task in enumerate(tasks):
            count = share + (place < rest)
            for first in range(0, count, lanes):
                seeds = [FIRST_SEED + n for n in range(first, min(first + lanes, count))]
                envs += [Tabletop(settings) for _ in range(len(seeds) - len(envs))]
                seen = [
                    env.reset(seed=seed, options={"task": task})[0]
                    for env, seed in zip(envs, seeds, strict=False)
                ]
                policy.begin(envs[: len(seeds)], task, seeds)
                going, ended = list(range(len(seeds))), {}
                failed = set[int]()
                for step in range(1, length + 1):
                    began = perf_counter()
                    actions = policy.act(going, [seen[lane] for lane in going])
                    taken += perf_counter() - began
                    acted += len(going)
                    for lane, action in zip(going, actions, strict=True):
                        try:
                            seen[lane], _, _, _, told = envs[lane].step(action)
                        except UnstablePhysics:  # a block squeezed until it flew: not a success
                            failed.add(lane)
                            continue
                        if told["success"]:
                            ended[lane] = step
                    going = [lane for lane in going if lane not in ended and lane not in failed]
                    if not going:
                        break
                made += [
                    Attempt(task, seed, lane in ended, ended.get(lane, length))
                    for lane, seed in enumerate(seeds)
                ]
                advance(len(seeds))
    finally:
        for env in envs:
            env.close()
    return made, 1e3 * taken / max(1, acted)


class Noop:
    """Control: nobody acts; the gripper stays open."""

    sees = False

    def begin(self, envs: Sequence[Tabletop], task: str, seeds: Sequence[int]) -> None:
        """Do nothing."""

    def act(self, lanes: Sequence[int], observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return no motion (n, 7)."""
        return np.tile(np.float32([0, 0, 0, 0, 0, 0, 1]), (len(lanes), 1))


class Random:
    """Control: any action."""

    sees = False

    def begin(self, envs: Sequence[Tabletop], task: str, seeds: Sequence[int]) -> None:
        """Draw from the seeds of the starts."""
        self.rngs = [np.random.default_rng(seed) for seed in seeds]

    def act(self, lanes: Sequence[int], observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return random actions (n, 7)."""
        return np.stack([self.rngs[lane].uniform(-1, 1, 7) for lane in lanes]).astype(np.float32)


class Oracle:
    """Control: the expert, which sees the simulator's truth."""

    sees = False

    def begin(self, envs: Sequence[Tabletop], task: str, seeds: Sequence[int]) -> None:
        """Take the envs."""
        self.envs = list(envs)
        self.rng = np.random.default_rng(0)  # nothing is drawn from it

    def act(self, lanes: Sequence[int], observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return the expert's actions (n, 7)."""
        pairs = zip(lanes, observations, strict=True)
        return np.stack([self.envs[lane].expert(seen, self.rng) for lane, seen in pairs])


class Cloning:
    """Control: a network that was trained on every action of the demonstrations."""

    sees = True

    def __init__(self, network: Any, cameras: Sequence[str]) -> None:
        """Take a `videoworld_cloning.Cloned`, and the pictures that it sees."""
        self.network, self.cameras = network, cameras

    def begin(self, envs: Sequence[Tabletop], task: str, seeds: Sequence[int]) -> None:
        """Take the task."""
        self.task = NAMES.index(task)

    def act(self, lanes: Sequence[int], observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return the network's actions (n, 7)."""
        pictures = np.stack([[seen[key] for key in self.cameras] for seen in observations])
        task = torch.full((len(lanes),), self.task)
        return self.network.act(torch.from_numpy(pictures), task).numpy()
