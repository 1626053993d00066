"""Numbers of actions and observations that never change: nothing divides by their range."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_problem import DOUBLE, build, every_planner, problem, solve
from trainings import every_name, settings, small

import latentplan
from latentplan.data.store import ZarrStore
from latentplan.planning.spaces import Box, Choices
from latentplan.protocols import Dynamics
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, ArraySpec, Episode, Label, Spec

CONSTANT = np.float32(0.1)  # that float32 rounds
SPEC = Spec(
    {
        "rgb": ArraySpec((32, 32, 3), "uint8"),
        "state": ArraySpec((3,)),
        "keypoints": ArraySpec((2, 2)),
    },
    # One number is constant by its bounds, and one in the data alone.
    ActionSpec((-1.0, float(CONSTANT), -1.0), (1.0, float(CONSTANT), 1.0)),
    env="toy",
    privileged=("keypoints",),
)
LENGTH, EPISODES = 12, 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return episodes in which numbers of actions and state and a part of the images are constant.

    Images that never change at all are refused where tokens are made of them: their code book
    collapses.
    """
    path = tmp_path_factory.mktemp("data") / "constant.zarr"
    with ZarrStore.create(path, SPEC) as store:
        for number in range(EPISODES):
            rng = np.random.default_rng(number)
            images = np.full((LENGTH, 32, 32, 3), 90, np.uint8)
            images[:, 8:] = rng.integers(0, 256, (LENGTH, 24, 32, 3))
            state = np.stack([np.full(LENGTH, 0.3), rng.normal(size=LENGTH), np.zeros(LENGTH)], 1)
            actions = rng.uniform(-1, 1, (LENGTH - 1, 3)).astype(np.float32)
            actions[:, 1], actions[:, 2] = CONSTANT, 0.5
            points = np.zeros((LENGTH, 2, 2), np.float32)
            points[:, 1] = state[:, 1:]
            seen = {"rgb": images, "state": state.astype(np.float32), "keypoints": points}
            rewards = np.zeros(LENGTH - 1, np.float32)
            store.append(Episode(seen, actions, rewards, labels=(Label("do it", "it"),)))
    return path


@every_name
def test_every_loss_is_finite_and_constants_are_planned_exactly(
    kind: str, name: str, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    latentplan.train(
        name, kind=kind, data=data, run=run, overrides=[*settings(kind, name), *small(name)]
    )
    points = [json.loads(line) for log in run.rglob("log.jsonl") for line in log.open()]
    figures = {key: value for point in points for key, value in point.items()}
    assert len(points) >= 3 and np.isfinite([*figures.values()]).all(), figures
    if kind != "model" or not isinstance(checkpoint.load(checkpoint.find(run)).model, Dynamics):
        return
    with ZarrStore.open(data) as store:
        seen = {key: value[0] for key, value in store.episode(0).observations.items()}
    for planner in (None, "cem", "gradient"):
        policy = latentplan.load(run, planner=planner)
        policy.goal(seen)
        action = policy.act(seen)
        assert action[1] == CONSTANT and np.isfinite(action).all()


@every_planner
@pytest.mark.parametrize("constant", [0.1, -7.0, 3e4])
@pytest.mark.parametrize("picks", [False, True])
def test_every_planner_keeps_a_constant_number(name: str, constant: float, picks: bool) -> None:
    model, context, goal, (low, high) = problem(2, actions=4)
    low[[0, 3]] = high[[0, 3]] = torch.tensor(constant, dtype=DOUBLE)
    space = Box(low, high, problems=2)
    if picks:
        points = torch.rand(30, 2, dtype=DOUBLE) * 2 - 1
        points[:, 0] = low[0]
        space = Choices(low, high, choices=[points, points[:5]])
    for rounds in (1, 3):
        plan = solve(
            build(name, candidates=32, horizon=2, iterations=rounds),
            model,
            context,
            goal,
            space,
            warm_start=torch.randn(2, 2, 4, dtype=DOUBLE),
        )
        assert (plan.actions[..., [0, 3]] == low[0]).all() and plan.cost.isfinite().all()
        assert plan.actions.isfinite().all() and len(plan.actions[..., 1].unique()) > 1
