"""What every registered policy promises, plug-ins included: the checks of conformance/policy.py."""

import numpy as np
import pytest

from latentplan import registry
from latentplan.conformance import policy as suite
from latentplan.conformance.suite import NotApplicable, Subject, checks, subject
from latentplan.conformance.table import Table

DETERMINISTIC = {"expert", "noop"}  # towards the same goal
CHOOSE = {"oracle", "noisy_oracle", "mixture"}  # a goal


@pytest.fixture(params=sorted(registry.names("policy")))
def tested(request) -> Subject:
    return subject("policy", request.param)


@pytest.mark.parametrize("check", checks("policy").values(), ids=list(checks("policy")))
def test_it_keeps(check, tested):
    built_in, options = tested.name in registry.BUILT_IN["policy"], {}
    if check is suite.check_seeds and built_in:
        options["random"] = tested.name not in DETERMINISTIC
    try:
        check(tested, **options)
    except NotApplicable as e:
        assert not built_in or (tested.name not in CHOOSE and "goal" in check.__name__)
        pytest.skip(str(e))


@pytest.mark.parametrize("name", ["box", "random", "noisy_oracle", "mixture"])
def test_an_int_as_seed_is_that_of_the_generator(name):
    policy, env = suite.built(subject("policy", name)), Table()
    seeds = (np.random.default_rng(5), 5, np.random.SeedSequence(5))
    drawn = [suite.episode(policy, env, seed)[1] for seed in seeds]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])


def test_the_env_of_the_checks_keeps_what_an_env_promises():
    for name, check in checks("env").items():
        try:
            check(Subject("env", "table", Table))
        except NotApplicable:
            assert name in ("settings_for", "render", "gymnasium")
