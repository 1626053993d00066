"""CALVIN's two evaluations: single tasks (MTLC) and chains of five (LH-MTLC).

MTLC: every annotated window of the validation split defines a start and a task of at most 240
actions; the metric is the success rate. LH-MTLC: five tasks of at most 360 actions follow one
another from the start of a chain, until one fails; the metrics are the shares of chains with 1, 2,
... 5 tasks completed in a row, and the mean number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from latentplan.config import read_yaml
from latentplan.errors import ConfigError, check_range
from latentplan.evaluation.calvin.chains import LENGTH, Chain, start
from latentplan.evaluation.calvin.tasks import TASKS, achieved
from latentplan.evaluation.metrics import Interval, wilson
from latentplan.protocols import Env, EpisodeStore, Policy, Source
from latentplan.types import Array, Goal, Observation

SINGLE, LONG = 240, 360  # most actions of a single task, and of a task in a chain
ANNOTATIONS = Path("calvin_models", "conf", "annotations", "new_playtable_validation.yaml")


@runtime_checkable
class Table(Env, Protocol):
    """An Env that exposes the state that CALVIN's tasks are tested on."""

    def task_info(self) -> Mapping[str, Any]:
        """Return the `info` of calvin_env for the current state."""


@dataclass(frozen=True)
class Trial:
    """A single task, its start and its goal."""

    task: str  # name
    robot_obs: Array  # (15,) start of the robot
    scene_obs: Array  # (24,) start of the table
    goal: Goal  # the instruction, and the last observation of the recording


@dataclass(frozen=True)
class Rates:
    """Numbers of successes and trials by task."""

    tasks: Mapping[str, tuple[int, int]]  # (successes, trials) by task

    @property
    def total(self) -> tuple[int, int]:
        """The successes and trials summed over tasks."""
        pairs = list(self.tasks.values())
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)

    @property
    def rate(self) -> float:
        """The share of successes over all trials."""
        return self.total[0] / self.total[1]

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of the rate."""
        return wilson(*self.total)


@dataclass(frozen=True)
class ChainRates:
    """Metrics of LH-MTLC."""

    done: tuple[int, ...]  # tasks completed in a row, by chain
    tasks: Rates  # of the attempted tasks

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of chains with at least 1, 2, ... 5 tasks completed in a row."""
        return tuple(sum(d >= n for d in self.done) for n in range(1, LENGTH + 1))

    @property
    def in_a_row(self) -> tuple[float, ...]:
        """The shares of chains with at least 1, 2, ... 5 tasks completed in a row."""
        return tuple(count / len(self.done) for count in self.counts)

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """Wilson's 95 % intervals of `in_a_row`."""
        return tuple(wilson(count, len(self.done)) for count in self.counts)

    @property
    def mean(self) -> float:
        """The mean number of tasks completed in a row, at most 5."""
        return float(np.mean(self.done))


def sentences(checkout: Path | str) -> dict[str, str]:
    """Return the instructions of CALVIN's evaluation by task, from a checkout of mees/calvin.

    A checkout of calvin_env alone does not have them. Raises ConfigError if the file is missing or
    a task has no instruction.
    """
    file = Path(checkout).expanduser() / ANNOTATIONS
    found = read_yaml(file)
    lacking = [task for task in TASKS if not found.get(task)]
    if lacking:
        raise ConfigError(f"{file}: has no sentence for task {lacking[0]!r}")
    return {task: str(found[task][0]) for task in TASKS}


def trials(
    data: EpisodeStore | Source, *, texts: Mapping[str, str] | None = None
) -> Iterator[Trial]:
    """Yield the single task of every labelled part of CALVIN's data, imported or original.

    The goal is the last observation of the part, without privileged keys. Its text is that of
    `texts` by task, or of the label. Labels without one of the 34 tasks are skipped.
    """
    privileged = set(data.spec.privileged)
    for number in range(len(data)):
        episode = data.episode(number)
        for label in episode.labels:
            if label.task not in TASKS:
                continue
            seen = episode.observations
            goal = {k: v[label.stop] for k, v in seen.items() if k not in privileged}
            text = (texts or {}).get(label.task, label.text)
            yield Trial(
                task=label.task,
                robot_obs=seen["robot_obs"][label.start],
                scene_obs=seen["scene_obs"][label.start],
                goal=Goal(observation=goal, text=text),
            )


def single(
    policy: Policy, env: Table, *, trials: Iterable[Trial], limit: int = SINGLE
) -> Iterator[tuple[str, bool]]:
    """Yield the task of each trial and whether it succeeded within `limit` actions (MTLC)."""
    check_range("single.limit", limit, 1)
    for trial in trials:
        options = {"robot_obs": trial.robot_obs, "scene_obs": trial.scene_obs}
        observation, _ = env.reset(seed=0, options=options)
        success, _ = _attempt(policy, env, observation, trial.task, trial.goal, limit=limit)
        yield trial.task, success


def rates(results: Iterable[tuple[str, bool]]) -> Rates:
    """Return the success rates of the results that `single` yields."""
    done, attempted = Counter[str](), Counter[str]()
    for task, success in results:
        attempted[task] += 1
        done[task] += success
    return Rates({task: (done[task], attempted[task]) for task in TASKS if attempted[task]})


def long(
    policy: Policy,
    env: Table,
    *,
    chains: Iterable[Chain],
    texts: Mapping[str, str] | None = None,
    limit: int = LONG,
) -> Iterator[int]:
    """Yield the number of tasks completed in a row in each chain, by `limit` actions (LH-MTLC).

    `texts` are the instructions by task; results are comparable with published ones only with
    those of `sentences`. Without `texts`, the instruction is the name of the task.
    """
    check_range("long.limit", limit, 1)
    for chain in chains:
        robot_obs, scene_obs = start(chain.state)
        options = {"robot_obs": robot_obs, "scene_obs": scene_obs}
        observation, _ = env.reset(seed=0, options=options)
        done = 0
        for task in chain.tasks:
            text = (texts or {}).get(task, task.replace("_", " "))
            goal = Goal(text=text)
            success, observation = _attempt(policy, env, observation, task, goal, limit=limit)
            if not success:
                break
            done += 1
        yield done


def chain_rates(done: Sequence[int], *, of: Sequence[Chain]) -> ChainRates:
    """Return the metrics of the counts that `long` yields for the chains `of`."""
    results = [
        (task, number < count)
        for count, chain in zip(done, of, strict=True)
        for number, task in enumerate(chain.tasks[: count + 1])
    ]
    return ChainRates(tuple(done), rates(results))


def _attempt(
    policy: Policy, env: Table, observation: Observation, task: str, goal: Goal, *, limit: int
) -> tuple[bool, Observation]:
    """Return whether the policy completed the task, and the last observation."""
    privileged = set(env.data_spec.privileged)
    policy.reset(goal, seed=0)
    before = env.task_info()
    for _ in range(limit):
        public = {k: v for k, v in observation.items() if k not in privileged}
        observation = env.step(policy.act(public))[0]
        if achieved(before, env.task_info(), among=(task,)):
            return True, observation
    return False, observation
