"""A policy plans alike whatever the caller's torch settings are, and leaves them as they were."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from toy import ToyEnv
from toy_model import ToyModel, toy_spec
from toy_problem import PLANNERS, at, build, objective

import latentplan
from latentplan.planning.mpc import MPC
from latentplan.planning.spaces import Box
from latentplan.types import Goal

HERE = {"state": np.array([0.5, -0.5, 0.2, 0.0], np.float32)}
THERE = {"state": np.array([-0.5, 0.8, 0.0, 0.6], np.float32)}
TOY = ToyModel(toy_spec())


@contextmanager
def changed(write: Callable[[Any], None], value: Any, default: Any) -> Iterator[None]:
    write(value)
    try:
        yield
    finally:
        write(default)


def products(value: str) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = value


SETTINGS = {
    "inference_mode": lambda: torch.inference_mode(),
    "grad_disabled": lambda: changed(torch.set_grad_enabled, False, True),
    "float64": lambda: changed(torch.set_default_dtype, torch.float64, torch.float32),
    "meta": lambda: changed(torch.set_default_device, "meta", None),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": lambda: changed(torch.use_deterministic_algorithms, True, False),
    "bf16_products": lambda: changed(products, "bf16", "none"),
    "global_seed": lambda: changed(torch.manual_seed, 77, 0),
    "all": lambda: everything("inference_mode", "float64", "meta", "autocast", "deterministic"),
}


@contextmanager
def everything(*names: str) -> Iterator[None]:
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(SETTINGS[name]())
        yield


def state() -> tuple[Any, ...]:
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.get_deterministic_debug_mode(),
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
    )


def loaded(name: str, run: Any) -> MPC:
    return latentplan.load(run, planner=name, overrides=["candidates=32", "iterations=3"])


def planned(name: str, policy: MPC) -> list[np.ndarray]:
    """Return the actions and costs of a toy's policy, made here, and of a small CFM's."""
    found = []
    toy = MPC(TOY, build(name, horizon=2, candidates=32, iterations=3))
    toy.goal(THERE)
    for _ in range(2):
        found += [toy.act(HERE), toy.plan.cost.numpy()]
        toy.sent(np.zeros(2, np.float32))
    found.append(toy.evaluate(HERE, np.zeros((3, 2))))
    env = ToyEnv()
    policy.goal(env.reset(seed=1)[0])
    policy.reset(seed=3)
    found += [policy.act(env.reset(seed=0)[0]), policy.plan.cost.numpy()]
    return [value.copy() for value in found]


@pytest.fixture(scope="module")
def policies(untrained_run) -> dict[str, MPC]:
    return {name: loaded(name, untrained_run) for name in PLANNERS}


@pytest.fixture(scope="module")
def plain(policies) -> dict[str, list[np.ndarray]]:
    return {name: planned(name, policies[name]) for name in PLANNERS}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", PLANNERS)
def test_every_planner_is_independent_of_it(name, setting, untrained_run, policies, plain):
    with SETTINGS[setting]():
        before, built = state(), name == "cem" or setting == "all"
        found = planned(name, loaded(name, untrained_run) if built else policies[name])
        assert state() == before
    for one, other in zip(found, plain[name], strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("name", PLANNERS)
def test_more_threads_change_no_more_than_rounding(name, policies, plain):
    with changed(torch.set_num_threads, 3, 1):
        found = planned(name, policies[name])
    for one, other in zip(found, plain[name], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("setting", ["inference_mode", "all"])
@pytest.mark.parametrize("name", PLANNERS)
def test_so_is_a_planner_that_is_called_itself(name, setting):
    model = ToyModel(toy_spec())
    context = torch.linspace(-1, 1, 4)[None, None]
    goal, low = torch.zeros(1, 4), torch.full((2,), -1.0)

    def plan():
        planner = build(name, horizon=2, candidates=32, iterations=3)
        draw = torch.Generator().manual_seed(0)
        chosen = {"objective": objective(goal), "space": Box(low, -low), "generator": draw}
        return planner.plan(at(context), model, **chosen)

    outside = plan()
    with SETTINGS[setting]():
        inside = plan()
    assert torch.equal(outside.actions, inside.actions) and torch.equal(outside.cost, inside.cost)


def test_settings_come_back_after_an_error(untrained_run):
    policy = latentplan.load(untrained_run)
    with SETTINGS["all"]():
        before = state()
        with pytest.raises(latentplan.errors.ShapeError):
            policy.goal({"rgb": np.zeros((2, 2, 3), np.uint8)})
        assert state() == before


def test_a_call_that_waits_for_another_has_settings_of_its_own():
    """While `act` of another thread runs, the caller's settings are replaced; then they return."""
    found = []

    class Recording(MPC):
        def goal(self, *args, **kwargs):
            found.append(torch.get_default_dtype())

    policy = Recording(TOY)
    waiting = threading.Thread(target=policy.reset, args=[Goal(THERE)])
    with policy.lock:
        waiting.start()
        time.sleep(0.05)  # until it waits
        torch.set_default_dtype(torch.float64)
    try:
        waiting.join()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == [torch.float32]
