"""Metrics of the evaluation `goals`, with their confidence intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy import stats

from latentplan.evaluation.goals import Trial
from latentplan.evaluation.table import Table
from latentplan.types import Array

STRICT = 0.5  # share of the success threshold that is a strict success
RESAMPLES = 10_000  # bootstrap resamples
Interval = tuple[float, float]


@dataclass(frozen=True)
class Metrics:
    """Means over trials; distances to the goal in metres, lower is better. NaN is null in JSON.

    `final` is the last distance of a trial, `best` its smallest.
    """

    episodes: int  # number of trials, each with its own start and goal
    seed: int  # of the starts and goals
    dropped: int  # trials begun again because the simulator diverged
    start: float  # m, the same for all policies
    final: float  # m, of the planner
    final_ci95: Interval  # m, bootstrap over trials
    best: float  # m, of the planner
    random_final: float  # m, baseline: random actions
    random_best: float
    noop_final: float  # m, baseline: no motion
    noop_best: float
    oracle_final: float  # m, baseline: the scripted expert, which reads the simulator's state
    oracle_best: float
    progress: float  # (random_final - final) / (random_final - oracle_final); 1 is the oracle
    progress_ci95: Interval  # paired bootstrap over trials
    spearman: float  # rank correlation of predicted cost and distance after the action, all steps
    spearman_candidates: float  # the same among candidates of one state, mean over states
    act_ms_p50: float  # ms, wall time of the planner's `act`, encoding included
    act_ms_p90: float  # ms
    # Rates of the trials that do not begin solved; None if there are none, or no success test.
    success: float | None = None  # at the end
    success_ci95: Interval | None = None  # Wilson
    success_ever: float | None = None  # after any action
    strict_success: float | None = None  # at the end, within half of the success threshold
    strict_success_ci95: Interval | None = None
    random_success: float | None = None
    oracle_success: float | None = None
    solved_at_start: int = 0  # trials left out of these rates

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; None replaces NaN and infinity."""
        return {f.name: _json(getattr(self, f.name)) for f in fields(self)}

    def table(self) -> Table:
        """Return the mean distances to the goal by policy, with progress and success as notes."""
        rows = [
            ("planner", self.final, self.best),
            ("random", self.random_final, self.random_best),
            ("noop", self.noop_final, self.noop_best),
            ("oracle", self.oracle_final, self.oracle_best),
        ]
        notes = [self._progress_note()]
        if self.success is not None:
            notes.append(self._success_note())
        return Table(
            ("mean distance to the goal, cm", "start", "final", "best"),
            tuple(
                (name, *(f"{100 * value:.1f}" for value in (self.start, final, best)))
                for name, final, best in rows
            ),
            tuple(notes),
        )

    def _progress_note(self) -> str:
        count = f"{self.episodes} trials" if self.episodes > 1 else "1 trial"
        if math.isnan(self.progress):
            return f"progress undefined over {count}: the oracle ends no nearer than random actions"
        low, high = self.progress_ci95
        interval = "" if math.isnan(low) else f" (95 %: {low:.2f} to {high:.2f})"
        return f"progress {self.progress:.2f}{interval} over {count}"

    def _success_note(self) -> str:
        strict = self.strict_success
        within = "" if strict is None else f", {strict:.0%} within half of the threshold"
        left_out = f"; left out as solved at the start: {self.solved_at_start}"
        return (
            f"success {self.success:.0%} at the end, {self.success_ever:.0%} ever{within}; "
            f"oracle {self.oracle_success:.0%}{left_out if self.solved_at_start else ''}"
        )


def summarise(trials: Sequence[Trial], *, seed: int) -> Metrics:
    """Return the metrics of one or more trials; `seed` also seeds the bootstrap."""
    ends = {
        name: np.array([t.attempts[name].distance[-1] for t in trials])
        for name in trials[0].attempts
    }
    best = {
        name: float(np.mean([t.attempts[name].distance.min() for t in trials])) for name in ends
    }
    planned = [t.attempts["planner"] for t in trials]
    states = [s for t in trials for s in t.candidates]
    act_ms = np.concatenate([a.act_ms for a in planned])
    finals = (ends["planner"], ends["random"], ends["oracle"])
    return Metrics(
        episodes=len(trials),
        seed=seed,
        dropped=sum(t.dropped for t in trials),
        start=float(np.mean([a.distance[0] for a in planned])),
        final=float(ends["planner"].mean()),
        final_ci95=bootstrap(lambda x: x.mean(-1), ends["planner"], seed=seed),
        best=best["planner"],
        random_final=float(ends["random"].mean()),
        random_best=best["random"],
        noop_final=float(ends["noop"].mean()),
        noop_best=best["noop"],
        oracle_final=float(ends["oracle"].mean()),
        oracle_best=best["oracle"],
        progress=float(progress(*finals)),
        progress_ci95=bootstrap(progress, *finals, seed=seed),
        spearman=_rank_correlation(*_joined(predictions(trials))),
        spearman_candidates=_mean([_rank_correlation(s.predicted, s.realised) for s in states]),
        act_ms_p50=float(np.percentile(act_ms, 50)),
        act_ms_p90=float(np.percentile(act_ms, 90)),
        **_success(trials),
    )


def _success(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the rates of success, of the trials that do not begin solved."""
    if any(t.attempts["planner"].solved is None for t in trials):
        return {}
    begun = [t for t in trials if not _solved(t, "planner")[0]]
    left_out = {"solved_at_start": len(trials) - len(begun)}
    if not begun:
        return left_out
    ends = [bool(_solved(t, "planner")[-1]) for t in begun]
    near = [
        bool(t.attempts["planner"].distance[-1] <= STRICT * t.threshold)
        for t in begun
        if t.threshold is not None
    ]
    return {
        **_rate("success", ends),
        **(_rate("strict_success", near) if near else {}),
        "success_ever": float(np.mean([_solved(t, "planner").any() for t in begun])),
        "random_success": float(np.mean([_solved(t, "random")[-1] for t in begun])),
        "oracle_success": float(np.mean([_solved(t, "oracle")[-1] for t in begun])),
        **left_out,
    }


def _solved(trial: Trial, name: str) -> Array:
    solved = trial.attempts[name].solved
    assert solved is not None  # a success test is the env's, the same for each policy
    return solved


def _rate(name: str, reached: Sequence[bool]) -> dict[str, Any]:
    """Return a rate and its interval."""
    return {name: float(np.mean(reached)), f"{name}_ci95": wilson(sum(reached), len(reached))}


def predictions(trials: Sequence[Trial]) -> list[tuple[Array, Array]]:
    """Return predicted costs (L,) and distances after the action (L,), of each planner attempt."""
    planned = [t.attempts["planner"] for t in trials]
    return [(a.predicted, a.distance[1:]) for a in planned if len(a.predicted)]


def _joined(pairs: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Return the first and the second arrays of all pairs, concatenated."""
    empty = (np.empty(0), np.empty(0))
    first, second = zip(*(pairs or [empty]), strict=True)
    return np.concatenate(first), np.concatenate(second)


def per_episode(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return JSON values of each trial, from which `summarise` can be recomputed."""
    return [
        {
            "start_seed": t.start_seed,
            "goal_seed": t.goal_seed,
            "dropped": t.dropped,
            "distance": {name: a.distance.tolist() for name, a in t.attempts.items()},
            "success": {name: a.success for name, a in t.attempts.items()},
            "solved": {
                name: None if a.solved is None else a.solved.tolist()
                for name, a in t.attempts.items()
            },
            "threshold": t.threshold,
            "actions": t.attempts["planner"].actions.tolist(),
            "predicted": _json(t.attempts["planner"].predicted.tolist()),
            "act_ms": t.attempts["planner"].act_ms.tolist(),
            "candidates": [
                {"predicted": _json(s.predicted.tolist()), "realised": s.realised.tolist()}
                for s in t.candidates
            ],
        }
        for t in trials
    ]


def progress(planner: Array, random: Array, oracle: Array) -> Array:
    """Return the progress (...) from random (0) to oracle (1), of final distances (..., episodes).

    It is the ratio of mean improvements; NaN if the oracle is no better than random actions.
    """
    possible = random.mean(-1) - oracle.mean(-1)
    improved = random.mean(-1) - planner.mean(-1)
    undefined = np.full(np.shape(possible), np.nan)
    return np.asarray(np.divide(improved, possible, out=undefined, where=possible > 0))


def bootstrap(
    statistic: Callable[..., Array], *samples: Array, seed: int, resamples: int = RESAMPLES
) -> Interval:
    """Return the 95 % percentile interval of `statistic` by a paired bootstrap over samples (N,).

    `statistic` maps arrays (..., N) to (...). The interval is NaN for fewer than two samples.
    Source: Efron, The Annals of Statistics 7 (1979).
    """
    if len(samples[0]) < 2:
        return math.nan, math.nan

    def of(*drawn: Array, axis: int = -1) -> Array:
        return statistic(*drawn)

    with warnings.catch_warnings():  # a NaN among the values warns, and makes both bounds NaN
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            samples,
            of,
            n_resamples=resamples,
            method="percentile",
            paired=True,
            vectorized=True,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)


def wilson(successes: int, trials: int) -> Interval:
    """Return Wilson's 95 % score interval of a success rate.

    It is valid for few trials and for rates of 0 and 1. Source: Wilson, Journal of the American
    Statistical Association 22 (1927).
    """
    found = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _rank_correlation(x: Array, y: Array) -> float:
    """Return Spearman's correlation of x (N,) and y (N,); NaN if one is constant or N < 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(stats.spearmanr(x, y).statistic)


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]  # NaN if all candidates have equal results
    return float(np.mean(finite)) if finite else math.nan


def _json(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
