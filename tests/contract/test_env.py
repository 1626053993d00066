"""What every registered env promises, plug-ins included: the checks of conformance/env.py."""

import pytest

from latentplan import registry
from latentplan.conformance import env as suite
from latentplan.conformance.suite import NotApplicable, Subject, checks, subject
from latentplan.errors import MissingDependency
from latentplan.sim.deformable.engines.engine import ENGINES

NAMES = sorted(registry.names("env"))
ENVS = [(name, engine) for name in NAMES for engine in ENGINES.get(name, [""])]  # "": its only one


@pytest.fixture(params=ENVS, ids=lambda chosen: "-".join(filter(None, chosen)))
def tested(request) -> Subject:
    name, engine = request.param
    return subject("env", name, overrides=[f"engine={engine}"] if engine else [])


@pytest.mark.slow_with("cloth-pybullet-oracle")
@pytest.mark.parametrize("check", checks("env").values(), ids=list(checks("env")))
def test_it_keeps(check, tested):
    options = {}
    if check is suite.check_oracle and tested.name in registry.BUILT_IN["env"]:
        options["by_chance"] = 0  # our tasks are harder than that
    try:
        check(tested, **options)
    except (MissingDependency, NotApplicable) as e:
        pytest.skip(str(e))


def test_the_reward_is_minus_the_distance_to_a_goal(tested):
    if tested.name not in registry.BUILT_IN["env"]:
        pytest.skip("an own convention of the envs that are shipped")
    try:
        with suite.built(tested) as env:
            goal = suite.draw_goal(env, 100)
            env.reset(seed=0, options={"goal": goal})
            for action in suite.actions(env, 3):
                step = env.step(action)
                assert step.reward == -step.info["distance"]
    except (MissingDependency, NotApplicable) as e:
        pytest.skip(str(e))
