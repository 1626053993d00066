"""What several test files need."""

import signal

import pytest
import torch
from toy import ToyEnv

from latentplan import registry
from latentplan.training import checkpoint

# A shell that runs the tests in the background ignores Ctrl-C for all its children; the tests
# of Ctrl-C start some.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory):
    """A run folder with a small CFM of the toy env, untrained, as if at step 7."""
    folder = tmp_path_factory.mktemp("toy-run")
    build = registry.get("model", "cfm")
    torch.manual_seed(0)
    model = build(ToyEnv().data_spec, build.Config(latent=4, channels=(8, 8, 8, 8)))
    checkpoint.save(folder / "best.safetensors", model, name="cfm", step=7, metrics={})
    return folder
