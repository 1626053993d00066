"""Closed-loop attempts at the tabletop's tasks, many at a time, so that a model runs in batches."""

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
FIRST_SEED = 1_000_000  # of the starts; collection draws seeds of 63 bits
LANES = 25  # attempts at a time


class Policy(Protocol):
    """A policy of several episodes of one task at once."""

    needs_images: bool  # without images, the env is faster

    def begin(self, envs: Sequence[Tabletop], task: str, seeds: Sequence[int]) -> None:
        """Start one episode in each env, after its reset."""

    def act(self, lanes: Sequence[int], observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return the actions (n, A) of the unfinished episodes `lanes`."""


@dataclass(frozen=True)
class Attempt:
    """The result of one episode."""

    task: str
    seed: int  # of the start
    success: bool
    actions: int  # until the success or the end


def attempts(
    policy: Policy,
    tasks: Sequence[str],
    *,
    episodes: int,
    length: int = Tabletop.episode_length,
    lanes: int = LANES,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[list[Attempt], float]:
    """Return `episodes` attempts, spread evenly over the tasks, and the mean ms per action.

    An attempt ends with its success, as in CALVIN, after `length` actions, or if the simulation
    diverges, which counts as a failure. The index of an attempt determines its start, which is the
    same for every policy. The time is that of `policy.act` per episode.
    """
    preset = config.resolve("env", "tabletop_short").values | {"goals": False}
    if not policy.needs_images:
        preset = preset | {"cameras": []}
    settings = config.load({"env": Tabletop.Config}, preset={"env": preset}, overrides=[])["env"]
    share, rest = divmod(episodes, len(tasks))
    envs: list[Tabletop] = []
    made, acted, taken = [], 0, 0.0
    try:
        for index, task in enumerate(tasks):
            count = share + (index < rest)
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
                            seen[lane], _, _, _, info = envs[lane].step(action)
                        except UnstablePhysics:  # such as a block squeezed out of the gripper
                            failed.add(lane)
                            continue
                        if info["success"]:
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
    """Baseline: no motion, with an open gripper."""

    needs_images = False

    def begin(self, envs: Sequence[Tabletop], task: str, seeds: Sequence[int]) -> None:
        """Do nothing."""

    def act(self, lanes: Sequence[int], observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return actions (n, 7) of no motion."""
        return np.tile(np.float32([0, 0, 0, 0, 0, 0, 1]), (len(lanes), 1))


class Random:
    """Baseline: uniformly random actions."""

    needs_images = False

    def begin(self, envs: Sequence[Tabletop], task: str, seeds: Sequence[int]) -> None:
        """Seed the random generators by the seeds of the starts."""
        self.rngs = [np.random.default_rng(seed) for seed in seeds]

    def act(self, lanes: Sequence[int], observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return random actions (n, 7)."""
        return np.stack([self.rngs[lane].uniform(-1, 1, 7) for lane in lanes]).astype(np.float32)


class Oracle:
    """Baseline: the expert, which reads the simulator's state."""

    needs_images = False

    def begin(self, envs: Sequence[Tabletop], task: str, seeds: Sequence[int]) -> None:
        """Set the envs whose experts act."""
        self.envs = list(envs)
        self.rng = np.random.default_rng(0)  # not used by the expert

    def act(self, lanes: Sequence[int], observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return the expert's actions (n, 7)."""
        pairs = zip(lanes, observations, strict=True)
        return np.stack([self.envs[lane].expert(seen, self.rng) for lane, seen in pairs])


class Cloning:
    """Baseline: a network trained on all actions of the demonstrations."""

    needs_images = True

    def __init__(self, network: Any, cameras: Sequence[str]) -> None:
        """Take a `videoworld_cloning.Cloned` and the keys of its images."""
        self.network, self.cameras = network, cameras

    def begin(self, envs: Sequence[Tabletop], task: str, seeds: Sequence[int]) -> None:
        """Set the task."""
        self.task = NAMES.index(task)

    def act(self, lanes: Sequence[int], observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return the network's actions (n, 7)."""
        images = np.stack([[seen[key] for key in self.cameras] for seen in observations])
        task = torch.full((len(lanes),), self.task)
        return self.network.act(torch.from_numpy(images), task).numpy()
