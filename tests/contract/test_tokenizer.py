"""What every registered tokenizer promises: the checks of conformance/tokenizer.py."""

import pytest

from latentplan import registry
from latentplan.conformance.suite import NotApplicable, checks, subject

SETTINGS = {"vqvae": [("quantizer=vq",)]}  # to be held as well as the defaults
CASES = [
    (name, overrides)
    for name in sorted(registry.names("tokenizer"))
    for overrides in ((), *SETTINGS.get(name, []))
]


@pytest.mark.parametrize("name, overrides", CASES, ids=str)
@pytest.mark.parametrize("check", checks("tokenizer").values(), ids=list(checks("tokenizer")))
def test_it_keeps(check, name, overrides):
    try:
        check(subject("tokenizer", name, overrides=overrides))
    except NotApplicable as e:
        assert name not in registry.BUILT_IN["tokenizer"]
        pytest.skip(str(e))
