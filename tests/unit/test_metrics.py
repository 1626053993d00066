from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentplan.evaluation.goals import Attempt, Candidates, Trial
from latentplan.evaluation.metrics import (
    bootstrap,
    per_episode,
    progress,
    summarise,
    wilson,
)


def mean(x):
    return x.mean(-1)


def test_bootstrap_of_a_mean_is_the_textbook_interval():
    sample = np.random.default_rng(0).normal(3.0, 2.0, 200)
    low, high = bootstrap(mean, sample, seed=0)
    half = 1.96 * sample.std() / math.sqrt(200)
    assert low == pytest.approx(sample.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(sample.mean() + half, abs=0.1 * half)


def test_bootstrap_intervals_have_their_nominal_coverage():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        low, high = bootstrap(mean, rng.exponential(1.0, 40), seed=seed, resamples=500)
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrap_is_seeded_and_undefined_for_one_sample():
    sample = np.random.default_rng(0).normal(size=10)
    assert bootstrap(mean, sample, seed=3) == bootstrap(mean, sample, seed=3)
    assert bootstrap(mean, sample, seed=3) != bootstrap(mean, sample, seed=4)
    assert all(math.isnan(v) for v in bootstrap(mean, np.ones(1), seed=0))


def test_bootstrap_keeps_the_policies_of_a_trial_together():
    random, oracle = np.arange(1.0, 9.0), np.arange(8.0) / 10
    halfway = (random + oracle) / 2
    assert bootstrap(progress, halfway, random, oracle, seed=0) == pytest.approx((0.5, 0.5))


def test_progress_is_0_at_random_1_at_the_oracle_and_nan_without_a_way():
    random, oracle = np.array([0.2, 0.4]), np.array([0.0, 0.1])
    assert progress(random, random, oracle) == 0
    assert progress(oracle, random, oracle) == 1
    assert progress(np.array([0.1, 0.2]), random, oracle) == pytest.approx(0.15 / 0.25)
    assert math.isnan(progress(random, oracle, random))


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [(5, 10, (0.2365931, 0.7634069)), (0, 10, (0.0, 0.2775328)), (10, 10, (0.7224672, 1.0))],
)
def test_wilson_has_the_published_values(successes, trials, interval):
    assert wilson(successes, trials) == pytest.approx(interval, abs=1e-6)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_the_score_equation(counts):
    successes, trials = counts
    rate, z = successes / trials, 1.959963984540054
    for bound in wilson(*counts):
        error = abs(rate - bound) - z * math.sqrt(max(bound * (1 - bound), 0) / trials)
        assert abs(error) < 1e-9


def attempt(*centimetres, predicted=(), act_ms=(1.0,), success=None):
    distance = np.array(centimetres) / 100
    return Attempt(
        distance,
        np.zeros((len(distance) - 1, 4)),
        np.array(predicted),
        np.array(act_ms),
        (),
        None if success is None else np.arange(len(distance)) == len(distance) - bool(success),
    )


def trial(planner, random, oracle, *, candidates=(), dropped=0):
    attempts = {"planner": planner, "random": random, "noop": attempt(10, 10), "oracle": oracle}
    return Trial(1, 2, dropped, None, attempts, candidates)


def two_trials(success=(None, None)):
    ranked = Candidates(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3]))
    unmoved = Candidates(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.1, 0.1]))
    first = attempt(10, 2, 4, predicted=(1.0, 2.0), act_ms=(1.0, 3.0), success=success[0])
    second = attempt(10, 12, 6, predicted=(4.0, 3.0), act_ms=(2.0, 4.0), success=success[1])
    return [
        trial(first, attempt(10, 13), attempt(10, 1), candidates=(ranked, unmoved)),
        trial(second, attempt(10, 7), attempt(10, 3), dropped=2),
    ]


def test_summary_of_two_trials_by_hand():
    found = summarise(two_trials(), seed=0)
    assert (found.episodes, found.dropped) == (2, 2)
    assert found.start == pytest.approx(0.10)
    assert found.final == pytest.approx(0.05)
    assert found.best == pytest.approx((0.02 + 0.06) / 2)
    assert found.random_final == pytest.approx(0.10)
    assert found.noop_final == pytest.approx(0.10)
    assert found.oracle_final == pytest.approx(0.02)
    assert found.progress == pytest.approx(5 / 8)
    assert found.progress_ci95[0] <= found.progress <= found.progress_ci95[1]
    assert found.spearman == pytest.approx(1)  # costs 1 2 4 3 against 2 4 12 6 cm
    assert found.spearman_candidates == pytest.approx(1)  # nothing to rank where nothing moved
    assert found.act_ms_p50 == pytest.approx(2.5)
    assert found.success is None


def test_success_comes_with_its_interval_and_controls():
    first, second = two_trials(success=(True, False))
    for each, reached in ((first, True), (second, True)):
        each.attempts["oracle"] = attempt(10, 0, success=reached)
        each.attempts["random"] = attempt(10, 9, success=False)
    found = summarise([first, second], seed=0)
    assert found.success == 0.5
    assert found.success_ci95 == wilson(1, 2)
    assert (found.random_success, found.oracle_success) == (0, 1)
    assert (found.success_ever, found.strict_success) == (0.5, None)


def judged(*centimetres, threshold=3):
    """Return an attempt whose success is a distance within a threshold."""
    made = attempt(*centimetres)
    return replace(made, solved=made.distance <= threshold / 100)


def test_strict_success_success_at_any_time_and_trials_that_begin_solved():
    planned = [judged(9, 1), judged(9, 2), judged(9, 2, 5), judged(9, 5), judged(2, 1)]
    trials = [
        replace(trial(each, judged(9, 9), judged(9, 1)), threshold=0.03) for each in planned
    ]
    found = summarise(trials, seed=0)
    assert (found.success, found.success_ever, found.strict_success) == (0.5, 0.75, 0.25)
    assert found.strict_success_ci95 == wilson(1, 4)
    assert found.solved_at_start == 1 and found.episodes == 5
    note = "success 50% at the end, 75% ever, 25% within half of the threshold; oracle 100%"
    assert found.table().notes[-1] == f"{note}; left out as solved at the start: 1"
    alone = summarise(trials[-1:], seed=0)
    assert (alone.success, alone.strict_success, alone.solved_at_start) == (None, None, 1)


@pytest.mark.parametrize("cost", [(1.0, 3.0, 2.0), (1.0, math.inf, 2.0), (0.0, 1e9, 3.0)])
def test_rank_correlation_depends_on_the_order_alone(cost):
    ranked = Candidates(np.array(cost), np.array([0.1, 0.3, 0.2]))
    first, second = two_trials()
    found = summarise([replace(first, candidates=(ranked,)), second], seed=0)
    assert found.spearman_candidates == pytest.approx(1)


def test_json_has_null_for_an_undefined_figure():
    alone = summarise(two_trials()[1:], seed=0)
    values = json.loads(json.dumps(alone.to_json(), allow_nan=False))
    assert values["progress_ci95"] == [None, None]
    assert values["spearman_candidates"] is None
    promised = "episodes seed start final best random_final noop_final oracle_final progress"
    promised += " progress_ci95 spearman act_ms_p50 act_ms_p90"
    assert values.keys() >= set(promised.split())


def test_episodes_json_is_enough_to_check_the_summary():
    trials = two_trials()
    trials[0].attempts["planner"].predicted[0] = math.inf  # a candidate that the model gave up on
    values = json.loads(json.dumps(per_episode(trials), allow_nan=False))
    finals = [v["distance"]["planner"][-1] for v in values]
    assert np.mean(finals) == summarise(trials, seed=0).final
    assert values[0]["predicted"] == [None, 2.0]


def test_progress_is_undefined_in_words_if_the_oracle_is_no_better_than_random():
    short = trial(attempt(10, 9), attempt(10, 9), attempt(10, 10))
    found = summarise([short, short], seed=0)
    assert math.isnan(found.progress)
    assert found.table().notes == (
        "progress undefined over 2 trials: the oracle ends no nearer than random actions",
    )
    assert summarise(two_trials(), seed=0).table().notes[0].startswith("progress 0.62 (95 %: ")
    assert summarise(two_trials()[1:], seed=0).table().notes == ("progress 0.25 over 1 trial",)
