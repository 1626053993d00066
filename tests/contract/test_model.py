"""What every registered model promises, plug-ins included: the checks of conformance/model.py."""

import pytest

from latentplan import registry
from latentplan.conformance.suite import NotApplicable, Subject, checks, subject

DYNAMICS = {"latents", "rows", "later_actions", "prepared", "wrong_shapes"}
VIDEO = {"log_prob", "samples"}
LEARNED = {"loss"} | DYNAMICS
APPLIES = {
    "autoencoder": LEARNED,
    "calibrated": DYNAMICS | {"proposal"},
    "cfm": LEARNED,
    "elastic": DYNAMICS,
    "jepa": LEARNED,
    "joint": LEARNED,
    "keypoints": LEARNED,
    "lwm": DYNAMICS,
    "multistep_inverse": DYNAMICS | {"proposal"},
    "pixel": LEARNED,
    "planet": LEARNED,
    "povt": VIDEO,
    "teco": DYNAMICS | VIDEO | {"decoded"},
    "videogpt": VIDEO,
    "videoworld": DYNAMICS | VIDEO | {"decoded", "subgoal", "proposal"},
}


@pytest.fixture(params=sorted(registry.names("model")))
def tested(request) -> Subject:
    return subject("model", request.param)


@pytest.mark.parametrize("name", checks("model"))
def test_it_keeps(name, tested):
    try:
        checks("model")[name](tested)
    except NotApplicable as e:
        assert name not in APPLIES.get(tested.name, ())
        pytest.skip(str(e))


def test_it_is_said_of_every_model_which_checks_apply():
    assert APPLIES.keys() == registry.BUILT_IN["model"].keys()
