"""Images and success rates of the envs, for docs/envs.md and benchmarks/envs.json.

    python benchmarks/envs.py page
    python benchmarks/envs.py success ENV [KEY=VALUE ...] --policy oracle --episodes 60 --json FILE

`page` draws docs/images/envs/ENV.png from episode 0 of each task in each engine: the start, the end
of the scripted expert's attempt, and the goal. It also replaces the figures in docs/envs.md.
`success` counts the episodes in which the task succeeds within `BUDGET` actions. It writes its row
of FILE after each episode; the same command continues it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from latentplan import config, registry
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.protocols import EnvPolicy
from latentplan.sim.deformable.engines.engine import ENGINES
from latentplan.types import Goal

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- figures: benchmarks/envs.py page -->\n", "<!-- end of figures -->\n"
BUDGET = {"rope": 20, "cloth": 20, "fold": 10}  # most actions of an episode, by env or task
TASKS = {
    "rope": {
        "goal": ("task=goal",),
        "straighten": ("task=straighten",),
        "shape=U": ("task=shape", "shape=U"),
        "shape=S": ("task=shape", "shape=S"),
        "shape=circle": ("task=shape", "shape=circle"),
        "goal, by an arm": ("task=goal", "actuator=arm"),
    },
    "cloth": {
        "flatten": ("task=flatten",),
        "fold=half": ("task=fold", "fold=half"),
        "fold=diagonal": ("task=fold", "fold=diagonal"),
        "fold=corners": ("task=fold", "fold=corners"),
        "place": ("task=place",),
        "goal": ("task=goal",),
    },
}
PIXELS = 96
INK = "#57606a"  # legible on light and on dark pages

Row = dict[str, Any]


@dataclass(frozen=True)
class Ran:
    """The result of an episode."""

    start: float  # distance to the goal at the start, m
    end: float  # distance to the goal at the end, m
    actions: int  # number of actions until success, or of the episode
    success: bool


def env_of(name: str, settings: tuple[str, ...]) -> Any:
    """Return the env of a name or preset, with settings."""
    preset = config.resolve("env", name)
    env_class = registry.get("env", preset.base)
    values = {"env": preset.values}
    loaded = config.load({"env": env_class.Config}, preset=values, overrides=settings)
    return env_class(loaded["env"])


def episode(
    env: Any, *, number: int, policy: str, refine: bool = False
) -> tuple[Ran, tuple[Any, Any, Any]]:
    """Run episode `number` until success; return the result and images of start, end and goal.

    With `refine` it continues after success, until an action does not reduce the distance.
    """
    observation, info = env.reset(seed=number)
    # Copied, because the env reuses its buffers.
    goal = {key: np.array(value) for key, value in info["goal"].items()}
    first, end = np.array(observation["rgb"]), np.array(observation["rgb"])
    start = distance = env.distance(observation, goal)
    done = env.success(observation, goal)
    actor = registry.get("policy", policy)(env.data_spec)
    if isinstance(actor, EnvPolicy):
        actor.attach(env)
    actor.reset(Goal(observation=goal), seed=number)
    task = env.config.task
    actions = made = 0
    while made < BUDGET.get(task, BUDGET[env.name]) and (refine or not done):
        observation = env.step(actor.act(observation)).observation
        made += 1
        before, distance = distance, env.distance(observation, goal)
        if done and distance >= before:
            distance = before
            break
        actions = actions if done else made
        done = done or env.success(observation, goal)
        end = np.array(observation["rgb"])
    ran = Ran(round(start, 4), round(distance, 4), actions, bool(done))
    return ran, (first, end, goal["rgb"])


def success(row: Row, *, episodes: int, file: Path) -> None:
    """Run episodes until the row has `episodes` of them."""
    env = env_of(row["env"], tuple(row["settings"]))
    row["threshold"] = env.success_threshold
    while len(row["episodes"]) < episodes:
        ran, _ = episode(env, number=len(row["episodes"]), policy=row["policy"])
        row["episodes"].append(asdict(ran))
        row["success"] = sum(e["success"] for e in row["episodes"])
        others = [r for r in rows_of(file) if not same(r, row)]
        rows = sorted([*others, row], key=lambda r: (r["env"], r["settings"], r["policy"]))
        with replacing(file) as partial:
            partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    env.close()


def rows_of(file: Path) -> list[Row]:
    """Return the rows of the file; none if there is no file."""
    rows: list[Row] = json.loads(file.read_text()) if file.exists() else []
    return rows


def same(a: Row, b: Row) -> bool:
    """Return whether two rows measure the same policy, env and settings."""
    return all(a[key] == b[key] for key in ("env", "settings", "policy"))


def page() -> None:
    """Draw all images and write the figures into docs/envs.md."""
    figures = "\n".join(sheet(name, tuple(ENGINES[name])) for name in TASKS)
    before, rest = (DOCS / "envs.md").read_text(encoding="utf-8").split(BEGIN)
    with replacing(DOCS / "envs.md") as partial:
        partial.write_text(before + BEGIN + figures + END + rest.split(END)[1], encoding="utf-8")


def sheet(name: str, engines: tuple[str, ...]) -> str:
    """Draw the image of an env; return Markdown with the image and a table of its figures."""
    tasks = TASKS[name]
    figure = Figure(figsize=(1.15 * (3 * len(engines) + 0.7), 1.3 * len(tasks)), dpi=100)
    cells = figure.subplots(
        len(tasks),
        3 * len(engines),
        squeeze=False,
        gridspec_kw={"left": 0.11, "right": 0.995, "top": 0.95, "bottom": 0.03, "wspace": 0.04},
    )
    lines = [f"![Start, end and goal of each task](images/envs/{name}.png)", ""]
    header = "| task | success at | " + " | ".join(engines) + " |"
    lines += [header, "|---" * (2 + len(engines)) + "|"]
    for cell, (task, settings) in zip(cells, tasks.items(), strict=True):
        results = []
        for column, engine in enumerate(engines):
            env = env_of(name, (*settings, f"engine={engine}", f"image={PIXELS}"))
            ran, images = episode(env, number=0, policy="oracle", refine=True)
            threshold = f"{100 * env.success_threshold:.1f} cm"
            env.close()
            mine = cell[3 * column : 3 * column + 3]
            for axes, image in zip(mine, images, strict=True):
                axes.imshow(image)
            mine[0].set_xlabel(f"{100 * ran.start:.1f} cm")
            drags = f"{ran.actions} drag{'s' * (ran.actions != 1)}"
            done = f"done in {drags}" if ran.success else f"not done in {drags}"
            mine[1].set_xlabel(f"{100 * ran.end:.1f} cm, {done}")
            results.append(f"{100 * ran.start:.1f} to {100 * ran.end:.1f} cm, {done}")
        if task == "flatten":
            threshold = "90 % covered"
        lines.append(f"| {task} | {threshold} | " + " | ".join(results) + " |")
        cell[0].set_ylabel(task)
    for column, engine in enumerate(engines):
        for offset, title in enumerate((f"{engine}: start", "oracle", "goal")):
            cells[0, 3 * column + offset].set_title(title)
    for axes in cells.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        for label in (axes.title, axes.xaxis.label, axes.yaxis.label):
            label.set(color=INK, fontsize=8)
    out = DOCS / "images" / "envs" / f"{name}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, transparent=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Draw the page or count successes."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("page")
    counting = commands.add_parser("success")
    counting.add_argument("env")
    counting.add_argument("settings", nargs="*", help="key=value of the env")
    counting.add_argument("--policy", default="oracle", help="registered name")
    counting.add_argument("--episodes", type=int, default=60)
    counting.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    if given.command == "page":
        page()
        return
    row: Row = {"env": given.env, "settings": sorted(given.settings), "policy": given.policy}
    row = next((r for r in rows_of(given.json) if same(r, row)), row | {"episodes": []})
    row["made_with"] = provenance()
    success(row, episodes=given.episodes, file=given.json)
    print(given.env, *given.settings, given.policy, f"{row['success']} / {len(row['episodes'])}")


if __name__ == "__main__":
    main()
