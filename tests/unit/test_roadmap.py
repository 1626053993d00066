"""Subgoals from a graph of stored observations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, PlanningError, StoreError
from latentplan.planning.cem import CEM
from latentplan.planning.mpc import MPC
from latentplan.planning.roadmap import Roadmap
from latentplan.types import ActionSpec, ArraySpec, Context, Episode, Spec, Tensors

SPEC = Spec({"position": ArraySpec((2,))}, ActionSpec((-1.0, -1.0), (1.0, 1.0)))
LEFT, RIGHT, TOP = 2.4, 3.6, 4.0  # sides of a wall, wider than an action is long


class Point(torch.nn.Module):
    """A point whose latent is its position, and a model that knows no wall."""

    spec, context, latent_dim = SPEC, 1, 2

    def encode(self, observations: Tensors) -> torch.Tensor:
        return observations["position"]

    def prepare(self, context: Context) -> torch.Tensor:
        return context.latents[:, -1]

    def rollout(self, prepared: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return prepared[:, None, None] + actions.cumsum(2)


def step(at: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Return the next position; what would lead into the wall leads nowhere."""
    after = np.clip(at + np.clip(action, -1, 1), 0, 6).astype(np.float32)
    return at if LEFT < after[0] < RIGHT and after[1] < TOP else after


def store(path: Path, walks: int, *, seed: int = 0) -> Path:
    """Write random walks."""
    rng = np.random.default_rng(seed)
    with ZarrStore.create(path, SPEC) as out:
        for number in range(walks):
            at = rng.uniform([4 * (number % 2), 0], [4 * (number % 2) + 2, 6]).astype(np.float32)
            seen, actions = [at], []
            for _ in range(30):
                actions.append(rng.uniform(-1, 1, 2).astype(np.float32))
                seen.append(step(seen[-1], actions[-1]))
            rows = np.zeros(len(actions), np.float32)
            out.append(Episode({"position": np.stack(seen)}, np.stack(actions), rows, seed=0))
    return path


@pytest.fixture(scope="module")
def walks(tmp_path_factory) -> Path:
    return store(tmp_path_factory.mktemp("roadmap") / "walks.zarr", 60)


def roadmap(path: Path, **values) -> Roadmap:
    return Roadmap(Point(), Roadmap.Config(store=str(path), **{"neighbours": 4, **values}))


def test_lengths_grow_with_the_distance_of_stored_actions(walks):
    found = roadmap(walks)
    assert (np.diff(found.scale) > 0).all()
    assert found.steps(found.scale[[0, 2]]) == pytest.approx([1, 3])
    assert found.steps(2 * found.scale[-1:])[0] > 4


def test_edges_lead_forwards_within_an_episode_and_to_near_nodes_of_others(walks):
    found = roadmap(walks)
    row, column = found.edges.row, found.edges.col
    own = found._episodes[row] == found._episodes[column]
    assert (column[own] - row[own] == found.edges.data[own]).all() and own.any()
    assert (found.edges.data[own] <= 4).all() and (~own).any()
    away = (found.latents[row[~own]] - found.latents[column[~own]]).norm(dim=1)
    assert away.max() <= found.scale[0]


def reach(policy: MPC, goal: np.ndarray) -> float:
    at = np.array([1.0, 1.0], np.float32)
    policy.reset(seed=0)
    policy.goal({"position": goal})
    for _ in range(40):
        at = step(at, policy.act({"position": at}))
    return float(np.linalg.norm(at - goal))


def test_it_leads_round_a_wall_at_which_the_planner_alone_stays(walks):
    planner = CEM(CEM.Config(candidates=64, iterations=2, horizon=1))
    goal = np.array([5.0, 1.0], np.float32)
    assert reach(MPC(Point(), planner), goal) > 2
    config = MPC.Config(
        roadmap=Roadmap.Config(store=str(walks), neighbours=4, near=0.3, ahead=2, patience=4)
    )
    assert reach(MPC(Point(), planner, config=config), goal) < 0.5


def test_a_goal_within_reach_is_aimed_at_directly(walks):
    routes = roadmap(walks).towards(torch.tensor([1.0, 1.0]))
    assert routes.subgoal(torch.tensor([1.2, 1.0])) == routes.goal
    assert routes.subgoal(torch.tensor([1.2, 1.0])) == routes.goal


def test_at_most_so_many_nodes_are_kept(walks):
    assert len(roadmap(walks, nodes=100).latents) <= 100
    assert len(roadmap(walks, nodes=100).observation(3)["position"]) == 2


def test_mistakes_are_one_line(tmp_path, walks):
    with ZarrStore.create(tmp_path / "empty.zarr", SPEC):
        pass
    with pytest.raises(StoreError, match=r"roadmap.store: .* is empty; collect"):
        roadmap(tmp_path / "empty.zarr")
    other = Spec({"position": ArraySpec((3,))}, SPEC.action)
    with ZarrStore.create(tmp_path / "other.zarr", other) as out:
        rows = np.zeros((3, 3), np.float32)
        out.append(Episode({"position": rows}, rows[:2, :2], rows[:2, 0], seed=0))
    with pytest.raises(ConfigError, match=r"float32 \(3,\) as observation 'position', the model"):
        roadmap(tmp_path / "other.zarr")
    apart = roadmap(store(tmp_path / "apart.zarr", 3), neighbours=0)
    with pytest.raises(PlanningError, match="no path of its 93 nodes leads to the goal"):
        apart.towards(apart.latents[0]).path(apart.latents[-1])
    guided = MPC.Config(roadmap=Roadmap.Config(store=str(walks)))
    with pytest.raises(ConfigError, match="roadmap.store: found a goal without an observation"):
        MPC(Point(), objective=lambda goal, context, model: None, config=guided).goal(text="go")
