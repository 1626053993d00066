"""What limits planning with TECO's rollouts, for docs/results/video.md.

    python benchmarks/teco_planning.py ranks RUN --json benchmarks/teco_planning.json
    python benchmarks/teco_planning.py image RUN docs/images/video/drawer.png

`ranks` follows the expert as it opens the drawer. At every second action it compares the expert's
next `HORIZON` actions with random ones, by the distance of tokens to the goal: those of the frames
that the simulator gives, and those that the model predicts. The success of planners is measured by
`benchmarks/tabletop_goals.py reach NAME RUN --tasks open_drawer`. `image` draws what follows the
expert's actions, and what the model imagines.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap, spearmanr
from torch import Tensor

from latentplan import config, png
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.sim.tabletop.env import Tabletop
from latentplan.training import checkpoint
from latentplan.types import Context

HORIZON, RANDOM, STEPS = 3, 12, 14  # actions, random sequences, actions of the expert
IMAGINED, FIRST = 6, 5  # frames of the image, actions before
NAMES = (
    "beats random, true frames", "beats random, predicted", "beats rest, true frames",
    "beats rest, predicted", "rank correlation of the costs",
)  # fmt: skip


def desk(task: str) -> Tabletop:
    """Return the env of a task, which goes on after success."""
    preset = config.resolve("env", "tabletop_short").values
    return Tabletop(Tabletop.Config(**{**preset, "task": task, "stop": False}))


class Seen:
    """A model's latents of frames, and its rollouts from the last two."""

    def __init__(self, run: str) -> None:
        """Load the model."""
        self.model: Any = checkpoint.load(checkpoint.find(run)).model.eval()
        (self.key,) = self.model.spec.observation

    def latents(self, observations: list[Any]) -> Tensor:
        """Return (T, D) of observations."""
        frames = np.stack([each[self.key] for each in observations])
        found: Tensor = self.model.encode({self.key: torch.from_numpy(frames)[None]})[0]
        return found

    def rollout(self, last: list[Any], sent: Any, actions: Tensor) -> Tensor:
        """Return (N, H, D) after actions (N, H, A), from two observations, `sent` between."""
        context = Context(self.latents(last)[None], torch.from_numpy(sent)[None, None])
        found: Tensor = self.model.rollout(self.model.prepare(context), actions[None])[0]
        return found


def states(env: Tabletop, seed: int) -> Iterator[tuple[int, list[Any], Any, Any]]:
    """Yield step, two observations, the action between and the goal, with the env at the second."""
    seen, info = env.reset(seed=seed)
    goal = info["goal"]
    for step in range(STEPS):
        action = env.oracle(seen, goal).astype(np.float32)
        last, seen = seen, env.step(action).observation
        if env.distance(seen, goal) == 0:
            return
        yield step, [last, seen], action, goal


def ranks(run: str, *, episodes: int) -> dict[str, Any]:
    """Return in how many pairs the expert's actions have the lower cost, true and predicted."""
    env, model, rng = desk("open_drawer"), Seen(run), np.random.default_rng(0)
    rows, moved = [], []
    for seed in range(episodes):
        first = None
        for step, last, sent, goal in states(env, seed):
            first = env.distance(last[0], goal) if first is None else first
            if step % 2:
                continue
            state, tried = env.snapshot(), [expert(env, last[1], goal)]
            tried += [rng.uniform(-1, 1, (HORIZON, 7)) for _ in range(RANDOM)]
            tried.append(np.zeros((HORIZON, 7)))
            wanted, true = model.latents([goal]), []
            for actions in tried:
                env.restore(state)
                true.append(model.latents([env.step(each).observation for each in actions]))
            env.restore(state)
            ahead = model.rollout(last, sent, torch.from_numpy(np.stack(tried)).float())
            both = torch.stack([torch.stack(true), ahead])  # 2 n h d
            costs = (both - wanted).square().sum(-1).sqrt().mean(-1)
            beats = [(c[0] < c[1:-1]).float().mean().item() for c in costs]
            beats += [float(c[0] < c[-1]) for c in costs]
            rows.append([*beats, float(spearmanr(*costs).statistic)])
            moved.append(env.distance(last[1], goal) < 0.8 * first)
        print(seed, len(rows), np.mean(rows, axis=0).round(2), flush=True)
    env.close()
    chosen = {"all": np.ones(len(rows), bool), "drawer still": ~np.array(moved)}
    chosen["drawer moving"] = np.array(moved)
    table = {name: _means(np.array(rows)[rows_of]) for name, rows_of in chosen.items()}
    return {"episodes": episodes, "horizon": HORIZON, "random": RANDOM, "states": table}


def expert(env: Tabletop, seen: Any, goal: Any) -> Any:
    """Return the expert's next actions (H, A); the env goes on with them."""
    actions = []
    for _ in range(HORIZON):
        actions.append(env.oracle(seen, goal))
        seen = env.step(actions[-1]).observation
    return np.stack(actions)


def _means(rows: Any) -> dict[str, Any]:
    """Return the mean of each column, its interval, and the number of rows."""
    found: dict[str, Any] = {"count": len(rows)}
    for name, column in zip(NAMES, rows.T, strict=True):
        span = bootstrap((column,), np.mean, rng=0, method="percentile").confidence_interval
        found[name] = [round(float(each), 3) for each in (column.mean(), *span)]
    return found


def image(run: str, out: Path) -> None:
    """Draw true and imagined frames of two attempts, and the goal at the end of each row."""
    env, model, rows = desk("open_drawer"), Seen(run), []
    for seed in (0, 3):
        seen, info = env.reset(seed=seed)
        goal, shown, sent = info["goal"], [seen], []
        for _ in range(FIRST + IMAGINED):
            sent.append(env.oracle(shown[-1], goal).astype(np.float32))
            shown.append(env.step(sent[-1]).observation)
        actions = torch.from_numpy(np.stack(sent[FIRST:]))[None]
        ahead = model.rollout(shown[FIRST - 1 : FIRST + 1], sent[FIRST - 1], actions)
        imagined = model.model.decode(ahead)[model.key][0].numpy()
        for frames in ([each[model.key] for each in shown[FIRST + 1 :]], imagined):
            rows.append(np.concatenate([*frames, goal[model.key]], axis=1))
    env.close()
    png.write(out, np.concatenate(rows).repeat(2, axis=0).repeat(2, axis=1))


@torch.no_grad()
def main() -> None:
    """Compare the costs, or draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", choices=["ranks", "image"])
    parser.add_argument("run")
    parser.add_argument("out", nargs="?", type=Path, help="image to write")
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.mode == "image":
        image(given.run, given.out)
        return
    found = {**ranks(given.run, episodes=given.episodes), "provenance": provenance()}
    print(json.dumps(found["states"], indent=1))
    if given.json:
        with replacing(given.json) as partial:
            partial.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
