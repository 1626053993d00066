"""Comparison of several planners on the same starts and goals, over training seeds.

A planner's trials are kept as JSON values, without controls; those are attempted once for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from latentplan.errors import UnstablePhysics
from latentplan.evaluation.goals import Attempt, Goals, Trial
from latentplan.evaluation.metrics import STRICT, progress
from latentplan.protocols import Env, Policy
from latentplan.types import Array

RESAMPLES = 4000  # of the bootstrap
Records = Sequence[Mapping[str, Any]]  # of the trials of one planner


class PlannerAlone(Goals):
    """Evaluation of a planner on the starts and goals of `goals`, without its controls."""

    def controls(self, env: Env) -> Mapping[str, Policy]:
        """Return none."""
        return {}

    def metrics(self, trials: Sequence[Trial], *, seed: int) -> Any:
        """Return None: figures are those of `outcomes`, against controls."""
        return None


def records(trials: Sequence[Trial], policy: str = "planner") -> list[dict[str, Any]]:
    """Return JSON values of a policy's attempt at each trial."""
    return [
        {"start_seed": t.start_seed, "goal_seed": t.goal_seed, "threshold": t.threshold}
        | _record(t.attempts[policy])
        for t in trials
    ]


def _record(attempt: Attempt) -> dict[str, Any]:
    solved = attempt.solved
    return {
        "distance": attempt.distance.tolist(),
        "solved": None if solved is None else solved.tolist(),
        "act_ms": attempt.act_ms.tolist(),
    }


def outcomes(runs: Sequence[Records], controls: Mapping[str, Records]) -> dict[str, Any]:
    """Return the figures of one planner's trials by training seed, against `random` and `oracle`.

    Intervals are 95 % percentile intervals of a bootstrap over goals and seeds. Trials that
    the simulator's divergence began again with other seeds are left out, and counted.
    """
    same = _paired([*runs, *controls.values()])
    if not same:
        raise UnstablePhysics("comparison: no trial has the same start and goal for all planners")
    finals = np.array([[_final(run[i]) for i in same] for run in runs])  # seeds goals
    random, oracle = (
        np.array([_final(controls[name][i]) for i in same]) for name in ("random", "oracle")
    )
    act_ms = np.concatenate([trial["act_ms"] for run in runs for trial in run])
    rng = np.random.default_rng(0)
    seeds, goals = (rng.integers(n, size=(RESAMPLES, n)) for n in finals.shape)
    drawn = finals[seeds[:, :, None], goals[:, None]].mean(1)  # resamples goals
    rates = {"success": _solved, "strict_success": _strict}
    return {
        "seeds": len(runs),
        "goals": len(same),
        "unpaired": len(runs[0]) - len(same),
        "progress": _number(progress(finals.mean(0), random, oracle)),
        "progress_ci95": _interval(progress(drawn, random[goals], oracle[goals])),
        "final": _number(finals.mean()),
        "final_ci95": _interval(drawn.mean(1)),
        **{name: _rate(runs, same, of) for name, of in rates.items()},
        "act_ms_p50": _number(np.percentile(act_ms, 50)),
    }


def of_control(records: Records, controls: Mapping[str, Records]) -> dict[str, Any]:
    """Return the figures of a control, which has no training seed."""
    return outcomes([records], controls)


def _paired(all_records: Sequence[Records]) -> list[int]:
    """Return the numbers of the trials whose start and goal are the same in all records."""
    keys = [[(t["start_seed"], t["goal_seed"]) for t in each] for each in all_records]
    return [i for i in range(min(map(len, keys))) if len({each[i] for each in keys}) == 1]


def _final(trial: Mapping[str, Any]) -> float:
    return float(trial["distance"][-1])


def _solved(trial: Mapping[str, Any]) -> bool | None:
    """Return whether a trial ends in success; None if it begins solved, or there is no test."""
    solved = trial["solved"]
    return None if solved is None or solved[0] else bool(solved[-1])


def _strict(trial: Mapping[str, Any]) -> bool | None:
    """Return whether a trial ends within half of the threshold; None as `_solved`."""
    if trial["threshold"] is None or _solved(trial) is None:
        return None
    return _final(trial) <= STRICT * float(trial["threshold"])


def _rate(
    runs: Sequence[Records], same: Sequence[int], of: Callable[[Mapping[str, Any]], bool | None]
) -> float | None:
    found = [of(run[i]) for run in runs for i in same]
    counted = [each for each in found if each is not None]
    return float(np.mean(counted)) if counted else None


def _interval(drawn: Array) -> list[float] | None:
    """Return the 95 % interval of the finite ones of drawn values (R,); None without any."""
    found = drawn[np.isfinite(drawn)]
    return np.percentile(found, [2.5, 97.5]).tolist() if len(found) else None


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
