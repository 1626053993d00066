"""An agent for ToyEnv that sees only pictures and knows exactly what actions do."""

from __future__ import annotations

import numpy as np
from toy import COLOURS, TABLE, ToyEnv


class Sighted:
    def __init__(self, config: ToyEnv.Config | None = None, *, candidates: int = 64) -> None:
        self.config = config or ToyEnv.Config()
        self.candidates = candidates
        self.seen: list[set[str]] = []  # keys of every observation it was given

    def reset(self, goal=None, *, seed=None) -> None:
        self.rng = np.random.default_rng(seed)
        if goal is not None:
            self.target = self.discs(goal.observation)

    def act(self, observation):
        discs = self.discs(observation)
        picks = discs[self.rng.integers(len(discs), size=self.candidates)] / TABLE
        drags = self.rng.uniform(-1, 1, (self.candidates, 2))
        actions = np.concatenate([picks, drags], 1).astype(np.float32)
        return actions[self.evaluate(observation, actions).argmin()]

    def evaluate(self, observation, actions):
        discs = self.discs(observation)
        away = np.linalg.norm(discs - actions[:, None, :2] * TABLE, axis=-1)
        rows, nearest = np.arange(len(actions)), away.argmin(1)
        grasped = away[rows, nearest] <= self.config.radius
        after = np.repeat(discs[None], len(actions), axis=0)
        after[rows, nearest] += actions[:, 2:] * self.config.reach * grasped[:, None]
        after = after.clip(-0.9 * TABLE, 0.9 * TABLE)
        return np.linalg.norm(after - self.target, axis=-1).mean(-1)

    def discs(self, observation):
        """Return the middles (discs, 2) in metres, from the picture; the table's where hidden."""
        self.seen.append(set(observation))
        picture = observation["rgb"]
        height, width, _ = picture.shape
        middles = []
        for colour in COLOURS[: self.config.discs]:
            rows, columns = np.nonzero((picture == colour).all(-1))
            if len(rows) == 0:
                middles.append((0.0, 0.0))
                continue
            x = (columns.mean() + 0.5) / width * 2 - 1
            y = 1 - (rows.mean() + 0.5) / height * 2
            middles.append((x * TABLE, y * TABLE))
        return np.array(middles)
