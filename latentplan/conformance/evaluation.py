"""Checks of every evaluation: its trials follow from the seed, and its figures have controls.

Random actions are evaluated in a small env, or in the env of the subject.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from latentplan.conformance.suite import (
    NotApplicable,
    Subject,
    require,
    require_commented_config,
)
from latentplan.conformance.table import Table
from latentplan.errors import ConfigError
from latentplan.evaluation.baselines import random_policy
from latentplan.protocols import Evaluation

EPISODES, SEED = 2, 1  # trials of a check
CONTROLS = ("random", "noop", "oracle")  # policies without learning
DURATION = "_ms"  # suffix of the keys of measured times, which differ between two runs


def check_config(subject: Subject) -> None:
    """Check that its Config survives a round trip, and that each field has a comment."""
    require_commented_config(subject)


def check_count(subject: Subject) -> None:
    """Check that it yields as many trials as it counts."""
    evaluation, trials = evaluated(subject)
    counted = evaluation.count(EPISODES)
    require(counted == len(trials), f"counts {counted}, yields {len(trials)}")
    require(evaluation.count(None) > 0, f"counts {evaluation.count(None)} by default")


def check_seed(subject: Subject) -> None:
    """Check that trials follow from the seed, apart from times, whose keys have `_ms`."""
    runs = []
    for _ in range(2):
        evaluation, trials = evaluated(subject)
        runs.append([json.dumps(_plain(record)) for record in evaluation.records(trials)])
    first, again = runs
    pairs = zip(first, again, strict=False)
    different = [index for index, (one, other) in enumerate(pairs) if one != other]
    require(not different, f"records of trials {different} differ the second time")
    require(len(first) == len(again), f"{len(first)} trials, then {len(again)}")


def check_records(subject: Subject) -> None:
    """Check that each trial has a record of JSON values, and figures as text."""
    evaluation, trials = evaluated(subject)
    records = evaluation.records(trials)
    require(len(records) == len(trials), f"{len(records)} records of {len(trials)} trials")
    require(json.loads(json.dumps(records)) == records, "a record is not plain JSON")
    for trial in trials:
        figures = evaluation.figures(trial)
        text = all(isinstance(each, str) for pair in figures.items() for each in pair)
        require(text and bool(figures), f"figures of a trial are {figures!r}")


def check_metrics(subject: Subject) -> None:
    """Check that metrics are strict JSON, with the number of trials and the seed."""
    metrics, trials = _metrics(subject)
    values = metrics.to_json()
    for name, need in (("episodes", len(trials)), ("seed", SEED)):
        require(values.get(name) == need, f"{name} is {values.get(name)!r}, need {need}")
        own = getattr(metrics, name, None)
        require(own == need, f"the attribute {name} is {own!r}, need {need}")
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as e:
        require(False, f"to_json() is not strict JSON: {e}")


def check_table(subject: Subject) -> None:
    """Check that the table of metrics has a cell of text for each column of a row."""
    table = _metrics(subject)[0].table()
    require(bool(table.rows), "it has no rows")
    for row in table.rows:
        require(len(row) == len(table.columns), f"{len(row)} cells for {table.columns}")
        require(all(isinstance(cell, str) for cell in row), f"a cell is not text: {row}")


def check_controls(subject: Subject) -> None:
    """Check that metrics and table have a control without learning: random, noop or oracle."""
    metrics, _ = _metrics(subject)
    keys = sorted(metrics.to_json())
    found = [name for name in CONTROLS if any(key.startswith(f"{name}_") for key in keys)]
    require(bool(found), f"no key begins with {', '.join(CONTROLS)}: {keys}")
    shown = [row[0] for row in metrics.table().rows]
    lacking = [name for name in found if name not in shown]
    require(not lacking, f"rows of the table are {shown}, without {', '.join(lacking)}")


def evaluated(subject: Subject) -> tuple[Evaluation, Sequence[Any]]:
    """Return a new evaluation and its trials of random actions."""
    evaluation: Evaluation = subject.build()
    with closing(Table() if subject.env is None else subject.env.build()) as env:
        policy = random_policy(env.data_spec)
        try:
            trials = evaluation.trials(policy, env, episodes=EPISODES, seed=SEED)
            return evaluation, list(trials)
        except ConfigError as e:
            if subject.env is None:
                raise NotApplicable(f"does not fit the env of the checks, name one: {e}") from None
            raise


def _metrics(subject: Subject) -> tuple[Any, Sequence[Any]]:
    evaluation, trials = evaluated(subject)
    return evaluation.metrics(trials, seed=SEED), trials


def _plain(value: Any) -> Any:
    """Return JSON values without measured times."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if DURATION not in k}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
