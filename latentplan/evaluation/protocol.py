"""The trial: one held-out start, one held-out goal, and everybody who tries to get there.

Beside the planner the same start and goal are given to three controls: random actions, no
action, and a scripted expert that sees the simulator's truth. What the planner reaches means
something only between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from latentplan.errors import ConfigError, UnstablePhysics, check_range
from latentplan.evaluation.contenders import Agent, Contender, Noop, Oracle, Planned, Random
from latentplan.protocols import Env, GoalSampler, HasSuccessThreshold
from latentplan.types import Array, Observation, Spec

# Seeds of a trial come from SeedSequence(seed, spawn_key=(EVALUATION, trial, attempt)); the keys of
# collection begin with an episode's number, so no start or goal here was ever trained on.
EVALUATION = 0x6576616C  # "eval", more than any episode's number
ATTEMPTS = 20  # begins of one trial before a simulator that diverges is reported


@dataclass(frozen=True)
class Attempt:
    """What one contender made of a trial of L actions; fewer where the env ended it."""

    distance: Array  # (L + 1,) metres to the goal: at the start and after each action
    actions: Array  # (L, A)
    predicted: Array  # (L,) the planner's cost of the action it took; (0,) for a control
    act_ms: Array  # (L,) milliseconds that choosing the action took
    pictures: tuple[Array, ...]  # L + 1 of (h, w, 3) uint8, of the planner where there are any
    success: bool | None  # at the end; None where the env has no success test


@dataclass(frozen=True)
class TriedOut:
    """Candidate actions, each executed from the same state."""

    predicted: Array  # (K,) cost
    realised: Array  # (K,) metres to the goal after the action


@dataclass(frozen=True)
class Trial:
    """One start and goal with all contenders, by name: planner, random, noop, oracle."""

    start_seed: int
    goal_seed: int
    dropped: int  # times the simulator diverged and everybody began anew with other seeds
    goal: Array | None  # (h, w, 3) uint8 picture
    attempts: Mapping[str, Attempt]
    tried_out: tuple[TriedOut, ...]


class Evaluation:
    """Trials of one agent in one env, with the controls on the same starts and goals."""

    @dataclass(frozen=True)
    class Config:
        """How long a trial is, and how often imagined costs are checked against the simulator."""

        length: int = 20  # actions in a trial
        states: int = 8  # states, over all trials, in which candidates are tried out; 0 none
        tries: int = 12  # random actions tried out in each of these states
        told: str = "task"  # what the planner is told of its task: the name, or the `text`
        goal_text: str = ""  # what it is told instead, in every trial

        def __post_init__(self) -> None:
            """Raise ConfigError for a value out of range."""
            check_range("Evaluation.length", self.length, 1)
            check_range("Evaluation.states", self.states, 0)
            check_range("Evaluation.tries", self.tries, 3)
            if self.told not in ("task", "text"):
                raise ConfigError(f"Evaluation.told: {self.told!r} is not 'task' or 'text'")

    def __init__(self, agent: Agent, env: Env, *, config: Config | None = None) -> None:
        """Take the agent, and the only env that this process will use."""
        self.agent, self.env, self.config = agent, env, config or self.Config()
        self.view = image_key(env.data_spec)

    def trials(self, *, episodes: int, seed: int) -> Iterator[Trial]:
        """Yield `episodes` trials, each as soon as it is done; the same seed gives the same ones.

        Starts, goals and random actions of the first trials do not depend on how many follow.
        Raises ConfigError where a number is out of range, UnstablePhysics where a trial diverges
        `ATTEMPTS` times in a row.
        """
        check_range("episodes", episodes, 1)
        check_range("seed", seed, 0)
        total = episodes * self.config.length
        draw = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(EVALUATION,)))
        chosen = draw.choice(total, min(self.config.states, total), replace=False)
        places = [divmod(int(c), self.config.length) for c in chosen]  # trial, step
        for index in range(episodes):
            steps = {step for trial, step in places if trial == index}
            for attempt in range(ATTEMPTS):
                key = np.random.SeedSequence(seed, spawn_key=(EVALUATION, index, attempt))
                try:
                    trial = self._trial(key, steps, dropped=attempt)
                    break
                except UnstablePhysics as e:
                    reason = str(e)
            else:
                raise UnstablePhysics(
                    f"evaluation: trial {index} diverged {ATTEMPTS} times in a row ({reason}); "
                    "check the env's config"
                )
            yield trial

    def _trial(self, key: np.random.SeedSequence, steps: set[int], *, dropped: int) -> Trial:
        start_seed, goal_seed, plan_seed = (
            int(s) >> 1
            for s in key.generate_state(3, np.uint64)  # fits an int64
        )
        explore, try_out = (np.random.default_rng(s) for s in key.spawn(2))
        spec = self.env.data_spec
        goal = self._goal(goal_seed)
        planned, tried_out = Planned(self.agent, spec, seed=plan_seed), []
        candidates = Random(spec, try_out)

        def check(step: int, observation: Observation) -> None:
            if step in steps:
                tried_out.append(self._try_out(planned, candidates, observation, goal))

        attempts = {"planner": self._attempt(planned, goal, start_seed, before_step=check)}
        controls: dict[str, Contender] = {
            "random": Random(spec, explore),
            "noop": Noop(spec),
            "oracle": Oracle(self.env),
        }
        for name, contender in controls.items():
            attempts[name] = self._attempt(contender, goal, start_seed)
        picture = None if self.view is None else goal[self.view]
        return Trial(start_seed, goal_seed, dropped, picture, attempts, tuple(tried_out))

    def _attempt(
        self,
        contender: Contender,
        goal: Observation,
        seed: int,
        *,
        before_step: Callable[[int, Observation], None] | None = None,
    ) -> Attempt:
        env, view = self.env, self.view
        observation, told = env.reset(seed=seed, options={"goal": goal})
        observation = _copy(observation)
        task = self.config.goal_text or str(told.get(self.config.told, ""))
        contender.begin(goal, task=task)
        seen, actions, predicted, act_ms = [observation], [], [], []
        info: dict[str, Any] = {}
        for step in range(self.config.length):
            if before_step is not None:
                before_step(step, observation)
            began = perf_counter()
            action = np.asarray(contender.act(observation))
            act_ms.append((perf_counter() - began) * 1e3)
            actions.append(action)
            if isinstance(contender, Planned):
                predicted.append(contender.predict(observation, action[None])[0])
            observation, _, terminated, truncated, info = env.step(action)
            observation = _copy(observation)
            seen.append(observation)
            if terminated or truncated:
                break
        distance = np.array([env.distance(o, goal) for o in seen])
        shown = isinstance(contender, Planned)
        return Attempt(
            distance=distance,
            actions=np.stack(actions),
            predicted=np.array(predicted),
            act_ms=np.array(act_ms),
            pictures=tuple(o[view] for o in seen) if view and shown else (),
            success=self._success(float(distance[-1]), info),
        )

    def _goal(self, seed: int) -> Observation:
        """Return what shall be seen at the end: a goal of the env's task, else another start."""
        if isinstance(self.env, GoalSampler):
            return _copy(self.env.goal(seed=seed))
        return _copy(self.env.reset(seed=seed)[0])

    def _try_out(
        self, planned: Planned, candidates: Random, observation: Observation, goal: Observation
    ) -> TriedOut:
        actions = np.stack([candidates.act(observation) for _ in range(self.config.tries)])
        state, realised = self.env.snapshot(), []
        for action in actions:
            realised.append(self.env.distance(self.env.step(action)[0], goal))
            self.env.restore(state)
        return TriedOut(planned.predict(observation, actions), np.array(realised))

    def _success(self, distance: float, info: Mapping[str, Any]) -> bool | None:
        """Return what the env says of the end; None where it has no success test."""
        if "success" in info:
            return bool(info["success"])
        if isinstance(self.env, HasSuccessThreshold):
            return distance <= self.env.success_threshold
        return None


def image_key(spec: Spec) -> str | None:
    """Return the observation key of the pictures to show, None where there are none."""
    if spec.pick is not None:
        return spec.pick.image
    for key, array in spec.observation.items():
        picture = array.dtype == "uint8" and len(array.shape) == 3 and array.shape[-1] == 3
        if picture and key not in spec.privileged:
            return key
    return None


def _copy(observation: Observation) -> Observation:
    return {k: np.array(v) for k, v in observation.items()}  # an env may reuse its buffers
