"""Objectives that ask the model, defined here and used as an outsider would, through `plan`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
import torch
from toy_model import ToyModel, toy_spec

from latentplan import registry
from latentplan.cli import main
from latentplan.errors import ConfigError
from latentplan.planning.mpc import MPC

HERE = {"state": np.array([0.5, -0.2, 0.1, 0.3], np.float32)}


class Watching(ToyModel):
    """A toy model with the likelihood of a video: the less it changes, the likelier."""

    def log_prob(self, frames, actions=None, task=None):
        latents = self.encode(frames)
        change = latents.diff(dim=1, prepend=latents[:, :1])
        return -change.square().sum(-1)  # b t


class Likelihood:
    """Minus the log-probability of the video that the model imagines; it needs no goal image."""

    def check(self, goal, model):
        if not isinstance(model, Watching):
            raise ConfigError(f"objective likelihood: found no log_prob in {type(model).__name__}")

    def __call__(self, goal, context, model):
        start = context.latents[:, -1]

        def cost(latents, actions):
            b, n, h, d = latents.shape
            path = torch.cat([start[:, None, None].expand(b, n, 1, d), latents], dim=2)
            frames = {"state": path.flatten(0, 1)}  # (b n) t d: the toy's encoder is the identity
            return -model.log_prob(frames).sum(1).view(b, n)

        return cost


def test_the_likelihood_of_a_model_is_an_objective():
    mpc = MPC(Watching(toy_spec()), objective=Likelihood())
    mpc.goal(text="stay")
    action = mpc.act(HERE)
    costs = mpc.evaluate(HERE, np.stack([action, [1.0, 1.0], [0.0, 0.0]]))
    assert costs[0] < costs[1] and costs[0] <= costs[2]
    with pytest.raises(ConfigError, match="objective likelihood: found no log_prob in ToyModel"):
        MPC(ToyModel(toy_spec()), objective=Likelihood()).goal(text="stay")


class Drift:
    """The distance to what the model imagines for no action at all, so that nothing is best."""

    asked: list = []

    @dataclass(frozen=True)
    class Config:
        weight: float = 1.0

    def __init__(self, config=None):
        self.config = config or self.Config()

    def __call__(self, goal, context, model):
        still = context.latents.new_zeros(len(context.latents), 1, 1, model.spec.action.size)
        expected = model.rollout(model.prepare(context), still)[:, :, -1]  # b 1 d
        self.asked.append((goal, context, self.config.weight))
        return lambda latents, actions: (
            self.config.weight * (latents[:, :, -1] - expected).square().sum(-1)
        )


def test_a_registered_objective_that_needs_the_model_is_planned_with(
    untrained_run, tmp_path, monkeypatch
):
    module = ModuleType("mine")
    module.Drift = Drift
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.setitem(registry.BUILT_IN["objective"], "drift", "mine:Drift")
    monkeypatch.setitem(registry.BUILT_IN["env"], "toy", "toy:ToyEnv")
    Drift.asked.clear()
    plan = ["plan", "--run", str(untrained_run), "--objective", "drift", "--episodes", "1"]
    quick = ["objective.weight=3", "planner.candidates=16", "length=3", "states=0"]
    assert main([*plan, *quick, "--out", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["objective"] == "drift"
    assert metrics["config"]["objective"] == {"weight": 3.0}
    goal, context, weight = Drift.asked[0]
    assert set(goal.observation) == {"rgb"} and weight == 3.0  # no privileged keys
    assert context.latents.shape[0] == 1
    assert len(Drift.asked) >= 3  # for each plan again
    assert len({id(asked[0]) for asked in Drift.asked}) == 1  # with the same goal
