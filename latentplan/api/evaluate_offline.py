"""`evaluate_offline`: how well a run fits recorded episodes, where there is no simulator.

    OUT/results.json     figures with intervals, settings, command, machine
    OUT/results.md       the same as tables
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from latentplan import registry
from latentplan.api import offline_page, results
from latentplan.api.choice import Overrides
from latentplan.api.load import load
from latentplan.data.store import ZarrStore
from latentplan.data.windows import HELD_OUT, is_test
from latentplan.errors import CheckpointError, ConfigError, StoreError, check_range
from latentplan.evaluation import metrics, offline
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.planning.mpc import MPC
from latentplan.protocols import GoalChecker
from latentplan.training import run_folder
from latentplan.types import Array, Episode, Goal, OnProgress, Progress, Spec

AHEAD = (1, 5, 25)  # actions
ACTED = 500  # actions that the policy is asked for, at most
STEPS = 2  # of an episode, whose recorded action is ranked
DRAWS = 63  # recorded actions of other episodes among which it is
RESAMPLES = 2000


@dataclass(frozen=True)
class Offline:
    """The results of `evaluate_offline`."""

    figures: dict[str, Any]  # value, 95 % interval, control and episodes of each, by name
    skipped: dict[str, str]  # figures that the run cannot have, and why
    files: dict[str, Path]  # results.json, results.md


def evaluate_offline(
    run: str | Path,
    *,
    data: str | Path,
    out: str | Path,
    split: str = "test",
    episodes: int = 50,
    planner: str | None = None,
    objective: str = "goal",
    seed: int = 0,
    device: str = "cpu",
    overrides: Overrides = (),
    on_progress: OnProgress = lambda progress: None,
) -> Offline:
    """Compare a run with recorded episodes of `data`: its actions, predictions and costs.

    The goal of an episode is its last observation, and its text where the run knows tasks. Of the
    held-out tenth (split `test`) or of `all`, up to `episodes` are drawn from `seed`. Raises what
    `load` raises, StoreError if fewer than two episodes are left, and CheckpointError if the run's
    spec is not that of the data.
    """
    check_range("evaluate_offline.episodes", episodes, 2)
    if split not in ("test", "all"):
        raise ConfigError(f"evaluate_offline.split: found {split!r}, need test or all")
    agent = load(
        run, device=device, planner=planner, objective=objective, seed=seed, overrides=overrides
    )
    with ZarrStore.open(data) as store:
        _check(agent.model.spec, store)
        chosen = _chosen(store, split, episodes, seed)
        identity, path = run_folder.identity(store), str(store.path)
        measured = _Measured(agent, objective, np.random.default_rng(seed))
        for done, number in enumerate(chosen):
            on_progress(Progress("evaluate", "episodes", done, len(chosen)))
            measured.add(store.episode(int(number)))
        on_progress(Progress("evaluate", "episodes", len(chosen), len(chosen)))
    settings = {"split": split, "episodes": len(chosen), "objective": objective, "seed": seed}
    settings |= {"run": str(run), "planner": planner or "", "device": device}
    made = {"settings": settings, "data": {"path": path, **identity}, **provenance()}
    figures = measured.figures(seed)
    with results.folder(out) as folder:
        files = {name: folder / name for name in ("results.json", "results.md")}
        values = {**made, "figures": figures, "skipped": measured.skipped}
        page = offline_page.render(figures, measured.skipped, made)
        for file, text in zip(files.values(), (json.dumps(values, indent=1), page), strict=True):
            with replacing(file) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
    return Offline(figures, measured.skipped, files)


class _Figure(NamedTuple):
    """A figure of an evaluation: a statistic of samples (episodes,), NaN where there is none."""

    statistic: Callable[..., Array]
    own: list[Array]
    control: float | list[Array]  # its value, or the samples that the statistic is also taken of


@dataclass
class _Measured:
    """What is measured of each episode, and then summed up."""

    agent: MPC
    objective: str
    rng: np.random.Generator
    skipped: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0  # actions that the policy was asked for
    seen: list[Array] = field(default_factory=list)  # actions of the episodes so far

    def add(self, episode: Episode) -> None:
        """Measure an episode."""
        model = self.agent.model
        z = offline.latents(model, episode)
        row: dict[str, Any] = {"actions": episode.actions}
        for ahead in AHEAD:
            row[f"predicted {ahead}"] = offline.predictions(model, z, episode.actions, ahead)
        goal = _goal(model, episode)
        factory = registry.get("objective", self.objective)()
        try:
            if isinstance(factory, GoalChecker):
                factory.check(goal, model)
            row["cost"] = offline.costs(model, factory, goal, z[:-1])
            row["pixels"] = offline.pixel_costs(model, episode)
            if self.seen:
                row["rank"] = self._rank(episode, goal.text)
        except ConfigError as e:
            self.skipped["costs"] = str(e)
        if self.asked < ACTED:
            row["acted"] = self._acted(episode, goal)
            self.asked += len(episode.actions)
        self.seen.append(episode.actions)
        self.rows.append(row)

    def figures(self, seed: int) -> dict[str, Any]:
        """Return each figure with its interval over episodes, and its control."""
        made: dict[str, Any] = {}
        for name, (statistic, own, control) in self._figures().items():
            samples = [*own, *(control if isinstance(control, list) else [])]
            usable = np.isfinite(np.sum(samples, axis=0))
            if usable.sum() < 2:
                self.skipped[name] = "fewer than two episodes are long enough"
                continue
            kept = [each[usable] for each in own]
            if isinstance(control, list):
                control = float(statistic(*(each[usable] for each in control)))
            ends = metrics.bootstrap(statistic, *kept, seed=seed, resamples=RESAMPLES)
            made[name] = {
                "value": float(statistic(*kept)),
                "ci95": ends,
                "control": control,
                "episodes": int(usable.sum()),
            }
        return made

    def _figures(self) -> dict[str, _Figure]:
        found = {}
        acted = [row for row in self.rows if "acted" in row]
        if acted:
            found["action error"] = self._action_error(acted)
        for ahead in AHEAD:
            pairs = [row[f"predicted {ahead}"] for row in self.rows]
            found[f"prediction error, {ahead} ahead"] = _prediction_error(pairs)
            found[f"retrieval, {ahead} ahead"] = _retrieval(pairs)
        ranked = np.array([row["rank"] for row in self.rows if "rank" in row])
        if len(ranked):
            found["rank of the recorded action"] = _Figure(_mean, [ranked], 0.5)
        costs = [row for row in self.rows if "cost" in row]
        if costs:
            own, pixels = (
                [np.array([offline.agreement(row[key]) for row in costs])]
                for key in ("cost", "pixels")
            )
            found["cost against steps to go"] = _Figure(_mean, own, pixels)
        return found

    def _action_error(self, rows: Sequence[dict[str, Any]]) -> _Figure:
        """Return the error of the policy's actions beside that of repeating the last action.

        It is a root mean square, of numbers as multiples of their standard deviation in the data.
        """
        every = np.concatenate(self.seen)
        spread = every.std(0)
        moving = spread > 1e-6 * np.maximum(1.0, np.abs(every).max(0))

        def squared(found: Array, true: Array) -> float:
            scaled = (found - true)[:, moving] / spread[moving]
            return float(np.square(scaled).mean()) if scaled.size else np.nan

        own = [squared(row["acted"][1:], row["actions"][1:]) for row in rows]
        last = [squared(row["actions"][:-1], row["actions"][1:]) for row in rows]
        return _Figure(_root_mean, [np.array(own)], [np.array(last)])

    def _acted(self, episode: Episode, goal: Goal) -> Array:
        """Return the policy's actions (L, A) at each observation of an episode.

        It goes on as recorded: it is told that the recorded action was sent.
        """
        self.agent.reset(goal, seed=0)
        found = []
        for t, action in enumerate(episode.actions):
            found.append(self.agent.act(offline.observation(self.agent.model, episode, t)))
            self.agent.sent(action)
        return np.stack(found)

    def _rank(self, episode: Episode, text: str) -> float:
        """Return the mean share of other episodes' actions that cost less than the recorded one.

        The goal is the observation that the recorded action led to.
        """
        agent, others, found = self.agent, np.concatenate(self.seen), []
        for t in np.linspace(0, len(episode.actions) - 1, STEPS).round().astype(int):
            goal = Goal(offline.observation(agent.model, episode, t + 1), text=text)
            agent.reset(goal, seed=0)
            tried = [episode.actions[t][None], self.rng.choice(others, DRAWS)]
            seen = offline.observation(agent.model, episode, t)
            cost = agent.evaluate(seen, np.concatenate(tried))
            found.append((cost[1:] < cost[0]).mean() + (cost[1:] == cost[0]).mean() / 2)
        return float(np.mean(found))


def _prediction_error(pairs: Sequence[Any]) -> _Figure:
    """Return how far predicted latents are from the true ones, as a share of how far these moved.

    The control, the latents at the start, has 1.
    """
    away = [((p - true).norm(dim=-1), (start - true).norm(dim=-1)) for p, true, start in pairs]
    sums = [[float(x.sum()) if len(x) else np.nan for x in both] for both in away]
    samples = [np.array(each) for each in zip(*sums, strict=True)]
    return _Figure(lambda own, moved: own.mean(-1) / moved.mean(-1), samples, 1.0)


def _retrieval(pairs: Sequence[Any]) -> _Figure:
    """Return the share of predictions that are nearest to their own true latent, of those of all.

    The control is the share of the latents at the start.
    """
    predicted, true, start = (torch.cat(each) for each in zip(*pairs, strict=True))
    ends = np.cumsum([len(p) for p, _, _ in pairs])[:-1]
    own, control = (
        [np.array([h.mean() if len(h) else np.nan for h in np.split(hits, ends)])]
        for hits in (offline.nearest(predicted, true), offline.nearest(start, true))
    )
    return _Figure(_mean, own, control)


def _mean(values: Array) -> Array:
    return np.asarray(values.mean(-1))


def _root_mean(squares: Array) -> Array:
    return np.asarray(np.sqrt(squares.mean(-1)))


def _goal(model: Any, episode: Episode) -> Goal:
    """Return the last observation of an episode as a goal, and its task where a model has any."""
    text = ""
    if model.spec.tasks and episode.labels:
        text = episode.labels[0].task or episode.labels[0].text
    return Goal(offline.observation(model, episode, -1), text=text)


def _check(spec: Spec, store: ZarrStore) -> None:
    """Raise CheckpointError unless the actions of the data are those of a run."""
    own, found = spec.action, store.spec.action
    if (own.low, own.high) != (found.low, found.high):
        raise CheckpointError(
            f"evaluate_offline.data: {store.path} has actions from {found.low} to {found.high}, "
            f"the run from {own.low} to {own.high}; give data of the robot that it was trained on"
        )


def _chosen(store: ZarrStore, split: str, count: int, seed: int) -> Array:
    """Return the numbers of the episodes to measure, in their order."""
    numbers = np.arange(len(store))
    if split == "test":
        numbers = numbers[is_test(numbers, HELD_OUT)]
    numbers = np.random.default_rng(seed).permutation(numbers)[:count]
    if len(numbers) < 2:
        held = "held-out " if split == "test" else ""
        raise StoreError(
            f"evaluate_offline.data: found {len(numbers)} {held}episodes in {store.path}, need at "
            "least 2; give split=all for data that the run was not trained on"
        )
    return np.sort(numbers)
