"""What every registered objective promises: the checks of conformance/objective.py."""

import pytest

from latentplan import registry
from latentplan.conformance.suite import NotApplicable, checks, subject

SETTINGS = {"goal": [("effort=[0.1,0.2]", "reduce=min"), ("power=2", "reduce=mean")]}
CASES = [
    (name, overrides)
    for name in sorted(registry.names("objective"))
    for overrides in ((), *SETTINGS.get(name, []))
]


@pytest.mark.parametrize("name, overrides", CASES, ids=str)
@pytest.mark.parametrize("check", checks("objective").values(), ids=list(checks("objective")))
def test_it_keeps(check, name, overrides):
    try:
        check(subject("objective", name, overrides=overrides))
    except NotApplicable as e:
        assert name not in registry.BUILT_IN["objective"]
        pytest.skip(str(e))
