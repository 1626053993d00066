"""What every registered evaluation promises: the checks of conformance/evaluation.py."""

import re
from pathlib import Path

import calvin_writer
import pytest

from latentplan import registry
from latentplan.conformance.evaluation import EPISODES, SEED, evaluated
from latentplan.conformance.suite import NotApplicable, Subject, checks, subject

DOCS = Path(__file__).parents[2] / "docs"
SHORT = {"calvin-lh": ["limit=3", "chains=3"], "calvin-mtlc": ["limit=3", "split=training"]}


@pytest.fixture(params=sorted(registry.names("evaluation")))
def tested(request, tmp_path) -> Subject:
    name = request.param
    overrides = list(SHORT.get(name, []))
    if name == "calvin-mtlc":
        overrides.append(f"data={calvin_writer.write(tmp_path / 'calvin')}")
    return subject(
        "evaluation", name, overrides=overrides, env="lamps:Lamps" if name in SHORT else None
    )


@pytest.mark.parametrize("check", checks("evaluation").values(), ids=list(checks("evaluation")))
def test_it_keeps(check, tested):
    try:
        check(tested)
    except NotApplicable as e:
        assert tested.name not in registry.BUILT_IN["evaluation"]
        pytest.skip(str(e))


def test_the_keys_of_its_metrics_are_documented(tested):
    if tested.name not in registry.BUILT_IN["evaluation"]:
        pytest.skip("documented elsewhere")
    evaluation, trials = evaluated(tested)
    assert len(trials) == EPISODES
    known = set(re.findall(r"`(\w+)`", (DOCS / "metrics.md").read_text()))
    controls = "|".join(("random", "noop", "oracle", "presser"))
    keys = {
        re.sub(f"^({controls})_", "", key) if key not in known else key
        for key in evaluation.metrics(trials, seed=SEED).to_json()
    }
    assert keys <= known
