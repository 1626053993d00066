"""The figures of an evaluation, their uncertainty, and what each of them means."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy import stats

from latentplan.evaluation.goals import Attempt, Trial
from latentplan.evaluation.table import Table
from latentplan.types import Array

RESAMPLES = 10_000  # of the bootstrap
Interval = tuple[float, float]


@dataclass(frozen=True)
class Metrics:
    """The headline figures; lengths in metres, low is good. A NaN here is a null in JSON.

    Means run over the trials. `best` is the smallest distance of a trial, `final` its last.
    """

    episodes: int  # trials, each with its own start and goal
    seed: int  # of the starts and goals
    dropped: int  # trials begun again because the simulator diverged
    start: float  # m, the same for all policies
    final: float  # m, the planner's
    final_ci95: Interval  # m, bootstrap over trials
    best: float  # m, the planner's
    random_final: float  # m, baseline: random actions
    random_best: float
    noop_final: float  # m, baseline: no action
    noop_best: float
    oracle_final: float  # m, baseline: the scripted expert, which reads the simulator's state
    oracle_best: float
    progress: float  # (random_final - final) / (random_final - oracle_final); 1 is the oracle
    progress_ci95: Interval  # bootstrap over trials, policies of a trial kept together
    spearman: float  # rank correlation, over all steps: predicted cost, distance after the action
    spearman_candidates: float  # the same among candidates in one state, mean over states
    act_ms_p50: float  # ms, wall time of the planner's act(), encoding included
    act_ms_p90: float  # ms
    success: float | None = None  # share of trials; None if the env has no success test
    success_ci95: Interval | None = None  # Wilson
    random_success: float | None = None
    oracle_success: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, with None for what is not finite."""
        return {f.name: _json(getattr(self, f.name)) for f in fields(self)}

    def table(self) -> Table:
        """Return mean distances to the goal by policy, with progress and success below."""
        rows = [
            ("planner", self.final, self.best),
            ("random", self.random_final, self.random_best),
            ("noop", self.noop_final, self.noop_best),
            ("oracle", self.oracle_final, self.oracle_best),
        ]
        low, high = self.progress_ci95
        interval = f" (95 %: {low:.2f} to {high:.2f})" if self.episodes > 1 else ""
        count = f"{self.episodes} trials" if self.episodes > 1 else "1 trial"
        notes = [f"progress {self.progress:.2f}{interval} over {count}"]
        if self.success is not None:
            notes.append(f"success {self.success:.0%}, oracle {self.oracle_success:.0%}")
        return Table(
            ("mean distance to the goal, cm", "start", "final", "best"),
            tuple(
                (name, *(f"{100 * value:.1f}" for value in (self.start, final, best)))
                for name, final, best in rows
            ),
            tuple(notes),
        )


def summarise(trials: Sequence[Trial], *, seed: int) -> Metrics:
    """Return the figures of at least one trial; `seed` also seeds the bootstrap."""
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
    reached = [bool(a.success) for a in planned]
    tested = planned[0].success is not None
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
        success=float(np.mean(reached)) if tested else None,
        success_ci95=wilson(sum(reached), len(reached)) if tested else None,
        random_success=_success_rate([t.attempts["random"] for t in trials]),
        oracle_success=_success_rate([t.attempts["oracle"] for t in trials]),
    )


def predictions(trials: Sequence[Trial]) -> list[tuple[Array, Array]]:
    """Return predicted cost (L,) and distance after the action (L,), of attempts that predict."""
    planned = [t.attempts["planner"] for t in trials]
    return [(a.predicted, a.distance[1:]) for a in planned if len(a.predicted)]


def _joined(pairs: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Return both arrays of all pairs, one after the other."""
    empty = (np.empty(0), np.empty(0))
    first, second = zip(*(pairs or [empty]), strict=True)
    return np.concatenate(first), np.concatenate(second)


def per_episode(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return JSON values from which `summarise` could be checked: seeds, metres, costs, ms."""
    return [
        {
            "start_seed": t.start_seed,
            "goal_seed": t.goal_seed,
            "dropped": t.dropped,
            "distance": {name: a.distance.tolist() for name, a in t.attempts.items()},
            "success": {name: a.success for name, a in t.attempts.items()},
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
    """Return the share (...) of the way from random to oracle, of final distances (..., episodes).

    The means are taken first. NaN if the oracle is no better than random actions.
    """
    way = random.mean(-1) - oracle.mean(-1)
    come = random.mean(-1) - planner.mean(-1)
    return np.asarray(np.divide(come, way, out=np.full(np.shape(way), np.nan), where=way > 0))


def bootstrap(
    statistic: Callable[..., Array], *samples: Array, seed: int, resamples: int = RESAMPLES
) -> Interval:
    """Return the 95 % percentile interval of `statistic` over samples (N,) drawn together.

    `statistic` maps arrays (..., N) to (...). NaN for fewer than two samples: one episode says
    nothing about its spread. (Efron, The Annals of Statistics 7, 1979.)
    """
    if len(samples[0]) < 2:
        return math.nan, math.nan

    def of(*drawn: Array, axis: int = -1) -> Array:
        return statistic(*drawn)

    with warnings.catch_warnings():  # of a NaN among the values, which makes both bounds NaN
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
    """Return Wilson's 95 % score interval of a success rate; right for few trials and at 0 and 1.

    (Wilson, Journal of the American Statistical Association 22, 1927.)
    """
    found = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _rank_correlation(x: Array, y: Array) -> float:
    """Return Spearman's correlation of x (N,) and y (N,); NaN if one is constant or too short."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(stats.spearmanr(x, y).statistic)


def _success_rate(attempts: Sequence[Attempt]) -> float | None:
    if attempts[0].success is None:
        return None
    return float(np.mean([bool(a.success) for a in attempts]))


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]  # a state where nothing moves has no ranks
    return float(np.mean(finite)) if finite else math.nan


def _json(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
