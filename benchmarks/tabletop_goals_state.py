"""A bound for goal images on the tabletop: the inverse model on the simulator's state.

    python benchmarks/tabletop_goals_state.py demos.zarr --episodes 20

What it does not reach is neither the encoder's fault nor the planner's. The row `state` is written
to benchmarks/tabletop_goals.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabletop_goals import FILE, reach, written
from torch import Tensor

from latentplan.data.packing import PackedWindows
from latentplan.data.store import ZarrStore
from latentplan.models.goal_inverse import GoalInverse
from latentplan.models.latents import LATENTS
from latentplan.sim.tabletop.tasks import BLOCKS, BULB, DRAWER, SLIDER, SWITCH
from latentplan.types import ArraySpec, Goal, Observation, Spec

ROBOT = 7  # first numbers of robot_obs: those of the gripper
BLOCK = (0, 1, 2, 5)  # x, y, z, yaw
SCENE = [SLIDER, DRAWER, SWITCH, BULB, *(BLOCKS + 6 * b + i for b in range(3) for i in BLOCK)]
ROW, BATCH = 40, 12


def state(robot: Tensor, scene: Tensor) -> Tensor:
    """Return the numbers (..., d) of robot_obs (..., 15) and scene_obs (..., 24)."""
    return torch.cat([robot[..., :ROBOT], scene[..., SCENE]], dim=-1)


class StatePolicy:
    """The likeliest action towards the state of a goal."""

    privileged = ("scene_obs",)

    def __init__(self, data: str, *, steps: int) -> None:
        """Train the inverse model on demonstrations."""
        torch.manual_seed(0)
        with ZarrStore.open(data) as store:
            keys = ["robot_obs", "scene_obs"]
            windows = PackedWindows(store, length=ROW, batch=BATCH, keys=keys)
            rows = int(store.ends[-1])
            seen = (torch.from_numpy(store.rows(f"observation/{key}", 0, rows)) for key in keys)
            action = store.spec.action
        every = state(*seen)
        self.mean, self.std = every.mean(0), every.std(0) + 1e-6
        spec = Spec({LATENTS: ArraySpec((1, every.shape[1]))}, action)
        config = GoalInverse.Config(
            steps=ROW - 1, hidden=(256, 256), components=4, hide=0.5, least_std=0.2, episodes=True
        )
        self.inverse = GoalInverse(spec, config)
        optimizer = torch.optim.AdamW(self.inverse.parameters(), 1e-3)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for step in range(steps):
            batch = windows[step]
            z = self._scaled(state(*(batch.observations[key] for key in keys)))
            nats = self.inverse.hindsight(z, batch.actions, segments=batch.segments, goals=1)
            optimizer.zero_grad()
            nats.backward()
            optimizer.step()
            rate.step()
        print(f"trained to {nats.item():.2f} nats", flush=True)
        self.inverse.eval()

    def reset(self, goal: Goal, *, seed: Any = None) -> None:
        """Start an episode."""
        assert goal.observation is not None
        self._goal = self._of(goal.observation)

    def act(self, observation: Observation) -> np.ndarray:
        """Return the action (A,)."""
        unknown, draw = torch.zeros(1, dtype=torch.long), torch.Generator()
        found = self.inverse.propose(self._of(observation), self._goal, unknown, generator=draw)
        return found[0, 0].numpy()

    def _of(self, seen: Observation) -> Tensor:
        robot, scene = (torch.from_numpy(seen[key])[None] for key in ("robot_obs", "scene_obs"))
        return self._scaled(state(robot, scene))

    def _scaled(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def main() -> None:
    """Train, evaluate and write the row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--out", type=Path, default=FILE)
    given = parser.parse_args()
    asked = {"episodes": given.episodes, "seed": 0, "length": 64}
    policy = StatePolicy(given.data, steps=given.steps)
    written({"state": reach(policy, **asked)}, asked, given.out)


if __name__ == "__main__":
    main()
