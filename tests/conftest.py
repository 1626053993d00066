"""Settings of every test run, and fixtures that several test files share.

The run is deterministic: one thread for linear algebra, generators seeded before each test, and
Hypothesis derandomised. `make fuzz` searches with random examples.
"""

from __future__ import annotations

import gc
import os
import random
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads, and by child processes

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.internal.conjecture import providers
from toy import ToyEnv

from latentplan import registry
from latentplan.data import layout
from latentplan.training import checkpoint

# A shell that runs the tests in the background ignores Ctrl-C for all its children; the tests
# of Ctrl-C start some.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", derandomize=True, database=None, deadline=None)
settings.register_profile("search", database=None, deadline=None, print_blob=True)
settings.load_profile("default")
# Hypothesis draws constants of the modules that are loaded so far, so that examples would depend
# on the tests that ran before in the same process, and a seed would not replay a failure.
providers._get_local_constants = lambda: providers._local_constants


# Modules and collected tests live as long as the run. To look for garbage among them took a fifth
# of the collection of tests, and some seconds afterwards.
gc.disable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what is so with some parameters only: `@pytest.mark.slow_with(*ids)`."""
    for item in items:
        slow = [name for mark in item.iter_markers("slow_with") for name in mark.args]
        if isinstance(item, pytest.Function) and slow and item.callspec.id in slow:
            item.add_marker("slow")


def seed() -> None:
    """Seed the global generators, so that a test does not depend on those that ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    seed()


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 images and shards of 8, so that every few episodes of `stored` fill one."""
    monkeypatch.setattr(layout, "CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(layout, "SHARD_CHUNKS", 2)
    monkeypatch.setattr(layout, "EPISODE_CHUNK", 4)


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with a small untrained CFM of the toy env, as if at step 7."""
    folder = tmp_path_factory.mktemp("toy-run")
    build = registry.get("model", "cfm")
    torch.manual_seed(0)
    model = build(ToyEnv().data_spec, build.Config(latent=4, channels=(8, 8, 8, 8)))
    checkpoint.save(folder / "best.safetensors", model, name="cfm", step=7, metrics={})
    return folder
