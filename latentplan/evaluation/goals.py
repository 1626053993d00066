"""Evaluation `goals`: the planner and its baselines attempt held-out starts and goals.

In each trial, the planner and three baselines have the same start and goal. The baselines are
random actions, no motion, and a scripted expert that reads the simulator's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from latentplan.errors import ConfigError, UnstablePhysics, check_range
from latentplan.evaluation.baselines import baselines, predicted_cost, random_policy, visible
from latentplan.protocols import CostPredictor, Env, GoalSampler, HasSuccessThreshold, Policy
from latentplan.types import Array, Goal, Observation, Spec

if TYPE_CHECKING:
    from latentplan.evaluation.metrics import Metrics

# A trial is seeded by SeedSequence(seed, spawn_key=(EVALUATION, trial, attempt)). The spawn keys of
# collection begin with the index of the episode, so starts and goals here are held out.
EVALUATION = 0x6576616C  # "eval", larger than any index of an episode
ATTEMPTS = 20  # of one trial if the simulator diverges, before that is an error
EPISODES = 8  # default number of trials


@dataclass(frozen=True)
class Attempt:
    """One policy's attempt at a trial, of L actions."""

    distance: Array  # (L + 1,) distance to the goal at the start and after each action, m
    actions: Array  # (L, A)
    predicted: Array  # (L,) predicted cost of each action; (0,) if the policy predicts none
    act_ms: Array  # (L,) duration of each `act`, ms
    images: tuple[Array, ...]  # L + 1 of (h, w, 3) uint8; kept for the planner alone
    solved: Array | None  # (L + 1,) bool, success by then; None if the env has no success test

    @property
    def success(self) -> bool | None:
        """Whether the attempt ends in success; None if the env has no success test."""
        return None if self.solved is None else bool(self.solved[-1])


@dataclass(frozen=True)
class Candidates:
    """Candidate actions, each executed from the same state."""

    predicted: Array  # (K,) predicted cost
    realised: Array  # (K,) distance to the goal after the action, m


@dataclass(frozen=True)
class Trial:
    """One start and goal, and the attempts of all policies."""

    start_seed: int
    goal_seed: int
    dropped: int  # earlier attempts of the trial, in which the simulator diverged
    goal: Array | None  # (h, w, 3) uint8 image
    attempts: Mapping[str, Attempt]  # by policy: planner, random, noop, oracle
    candidates: tuple[Candidates, ...]
    threshold: float | None = None  # m, the largest distance that is a success; None if undefined


class Goals:
    """Evaluation of a planner on held-out starts and goals, compared with baselines."""

    @dataclass(frozen=True)
    class Config:
        """Length of a trial, comparison of predicted and realised costs, and instructions."""

        length: int = 20  # actions in a trial
        states: int = 8  # states, over all trials, in which candidates are executed; 0 for none
        candidates_per_state: int = 12  # random actions executed in each of these states
        instruction: str = "task"  # key of the env's info with the instruction: "task" or "text"
        goal_text: str = ""  # instruction of every trial, instead of the env's

        def __post_init__(self) -> None:
            """Raise ConfigError for a value out of range."""
            check_range("Goals.length", self.length, 1)
            check_range("Goals.states", self.states, 0)
            check_range("Goals.candidates_per_state", self.candidates_per_state, 3)
            if self.instruction not in ("task", "text"):
                found = self.instruction
                raise ConfigError(f"Goals.instruction: {found!r} is not 'task' or 'text'")

    def __init__(self, config: Config | None = None) -> None:
        """Take the settings."""
        self.config = config or self.Config()

    def count(self, episodes: int | None) -> int:
        """Return the number of trials; ConfigError if it is out of range."""
        count = EPISODES if episodes is None else episodes
        check_range("evaluate.episodes", count, 1)
        return count

    def trials(
        self, policy: Policy, env: Env, *, episodes: int | None = None, seed: int = 0
    ) -> Iterator[Trial]:
        """Yield trials as they finish; the same seed gives the same trials.

        Starts, goals and random actions of a trial do not depend on the number of trials. Raises
        ConfigError if a number is out of range, and UnstablePhysics if the simulator diverges in
        all `ATTEMPTS` attempts of a trial.
        """
        count = self.count(episodes)
        check_range("evaluate.seed", seed, 0)
        runner = _Runner(policy, env, self.config, self.controls)
        total = count * self.config.length
        draw = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(EVALUATION,)))
        chosen = draw.choice(total, min(self.config.states, total), replace=False)
        compared = [divmod(int(c), self.config.length) for c in chosen]  # trial, step
        for index in range(count):
            yield runner.trial(index, {step for trial, step in compared if trial == index}, seed)

    def controls(self, env: Env) -> Mapping[str, Policy]:
        """Return the policies that attempt each trial beside the planner, by name."""
        return baselines(env)

    def figures(self, trial: Trial) -> dict[str, str]:
        """Return the figures shown when a trial finishes, by name."""
        distance = trial.attempts["planner"].distance
        return {"cm": f"{100 * distance[0]:.1f} to {100 * distance[-1]:.1f}"}

    def metrics(self, trials: Sequence[Trial], *, seed: int) -> Metrics:
        """Return the metrics of one or more trials."""
        from latentplan.evaluation.metrics import summarise

        return summarise(trials, seed=seed)

    def records(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """Return JSON values of each trial, from which the metrics can be recomputed."""
        from latentplan.evaluation.metrics import per_episode

        return per_episode(trials)

    def report(
        self,
        trials: Sequence[Trial],
        metrics: Metrics,
        *,
        title: str,
        config: str,
        provenance: Mapping[str, Any],
    ) -> str:
        """Return a self-contained HTML page."""
        from latentplan.evaluation import report

        return report.render(trials, metrics, title=title, config=config, provenance=provenance)

    def video(self, trials: Sequence[Trial], file: Path) -> bool:
        """Write the planner's attempts as an mp4; return False if the env has no images."""
        from latentplan.evaluation import video

        shown = all(trial.goal is not None for trial in trials)
        if shown:
            video.write(file, trials)
        return shown


class _Runner:
    """Runs the trials of one planner in one env."""

    def __init__(
        self,
        policy: Policy,
        env: Env,
        config: Goals.Config,
        controls: Callable[[Env], Mapping[str, Policy]],
    ) -> None:
        self.policy, self.env, self.config, self.controls = policy, env, config, controls
        self.view = image_key(env.data_spec)

    def trial(self, index: int, steps: set[int], seed: int) -> Trial:
        """Return trial `index`, begun again with other seeds if the simulator diverges."""
        for attempt in range(ATTEMPTS):
            key = np.random.SeedSequence(seed, spawn_key=(EVALUATION, index, attempt))
            try:
                return self._trial(key, steps, dropped=attempt)
            except UnstablePhysics as e:
                reason = str(e)
        raise UnstablePhysics(
            f"evaluation: trial {index} diverged {ATTEMPTS} times in a row ({reason}); "
            "check the env's config"
        )

    def _trial(self, key: np.random.SeedSequence, steps: set[int], *, dropped: int) -> Trial:
        start_seed, goal_seed, plan_seed = (
            int(s) >> 1
            for s in key.generate_state(3, np.uint64)  # fits an int64
        )
        exploring, sampling = (np.random.default_rng(s) for s in key.spawn(2))
        goal = self._goal(goal_seed)
        planned, sampler = self.policy, random_policy(self.env.data_spec)
        candidates: list[Candidates] = []
        sampler.reset(seed=sampling)

        def compare(step: int, observation: Observation) -> None:
            if step in steps and isinstance(planned, CostPredictor):
                candidates.append(self._candidates(planned, sampler, observation, goal))

        attempts = {
            "planner": self._attempt(planned, goal, start_seed, seed=plan_seed, before_step=compare)
        }
        for name, policy in self.controls(self.env).items():
            attempts[name] = self._attempt(policy, goal, start_seed, seed=exploring)
        image = None if self.view is None else goal[self.view]
        env = self.env
        threshold = env.success_threshold if isinstance(env, HasSuccessThreshold) else None
        return Trial(
            start_seed, goal_seed, dropped, image, attempts, tuple(candidates), threshold
        )

    def _attempt(
        self,
        policy: Policy,
        goal: Observation,
        start_seed: int,
        *,
        seed: Any,
        before_step: Callable[[int, Observation], None] | None = None,
    ) -> Attempt:
        env, view, spec = self.env, self.view, self.env.data_spec
        planned = policy is self.policy
        observation, info = env.reset(seed=start_seed, options={"goal": goal})
        observation = _copy(observation)
        text = self.config.goal_text or str(info.get(self.config.instruction, ""))
        policy.reset(Goal(observation=visible(policy, goal, spec), text=text), seed=seed)
        seen, actions, predicted, act_ms = [observation], [], [], []
        infos: list[Mapping[str, Any]] = []  # of the steps; that of a reset holds no success
        for step in range(self.config.length):
            if before_step is not None:
                before_step(step, observation)
            began = perf_counter()
            action = np.asarray(policy.act(visible(policy, observation, spec)))
            act_ms.append((perf_counter() - began) * 1e3)
            actions.append(action)
            if planned and isinstance(policy, CostPredictor):
                predicted.append(predicted_cost(policy, observation, action[None], spec)[0])
            observation, _, terminated, truncated, info = env.step(action)
            observation = _copy(observation)
            seen.append(observation)
            infos.append(info)
            if terminated or truncated:
                break
        distance = np.array([env.distance(o, goal) for o in seen])
        return Attempt(
            distance=distance,
            actions=np.stack(actions),
            predicted=np.array(predicted),
            act_ms=np.array(act_ms),
            images=tuple(o[view] for o in seen) if view and planned else (),
            solved=self._solved(distance, infos),
        )

    def _goal(self, seed: int) -> Observation:
        """Return a goal observation: one of the env's task, else another start."""
        if isinstance(self.env, GoalSampler):
            return _copy(self.env.goal(seed=seed))
        return _copy(self.env.reset(seed=seed)[0])

    def _candidates(
        self, planned: CostPredictor, sampler: Policy, observation: Observation, goal: Observation
    ) -> Candidates:
        spec, count = self.env.data_spec, self.config.candidates_per_state
        given = visible(sampler, observation, spec)
        actions = np.stack([sampler.act(given) for _ in range(count)])
        state, realised = self.env.snapshot(), []
        for action in actions:
            realised.append(self.env.distance(self.env.step(action)[0], goal))
            self.env.restore(state)
        return Candidates(predicted_cost(planned, observation, actions, spec), np.array(realised))

    def _solved(self, distance: Array, infos: Sequence[Mapping[str, Any]]) -> Array | None:
        """Return whether each observation (L + 1,) is a success; None if the env has no test."""
        near = None
        if isinstance(self.env, HasSuccessThreshold):
            near = distance <= self.env.success_threshold
        if "success" not in infos[-1]:
            return near
        start = False if near is None else bool(near[0])
        return np.array([start, *(bool(info.get("success", False)) for info in infos)])


def image_key(spec: Spec) -> str | None:
    """Return the observation key of the images to show; None if there are no images."""
    if spec.pick is not None:
        return spec.pick.image
    for key, array in spec.observation.items():
        image = array.dtype == "uint8" and len(array.shape) == 3 and array.shape[-1] == 3
        if image and key not in spec.privileged:
            return key
    return None


def _copy(observation: Observation) -> Observation:
    return {k: np.array(v) for k, v in observation.items()}  # an env may reuse its buffers
