"""Draw trials of a run: `python benchmarks/readme_image.py RUN OUT.png [TASK ...]`.

Without tasks, the rows are the first TRIALS held-out trials of `latentplan plan --run RUN --seed 0`
on the rope, as in the README; with tasks, the first two of each task of the cloth.
"""

from __future__ import annotations

import sys

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import latentplan
from latentplan.data.images import segment
from latentplan.evaluation.goals import Attempt, Goals
from latentplan.sim.deformable.cloth import Cloth
from latentplan.sim.deformable.rope import Rope
from latentplan.types import Array

TRIALS = 4
STEPS = (0, 2, 4, 8, 20)  # numbers of actions before each image
INK, GOAL = "#57606a", "#ffd33d"  # INK is legible on light and on dark pages


def main(run: str, out: str, *tasks: str) -> None:
    """Run trials and draw them, with the outline of the goal and the distance to it in cm."""
    evaluation = Goals(Goals.Config(length=STEPS[-1], states=0))
    trials = []
    for task in tasks or ("",):
        env = Cloth(Cloth.Config(task=task)) if task else Rope()
        count = 2 if task else TRIALS
        found = evaluation.trials(latentplan.load(run), env, episodes=count, seed=0)
        trials += [(f"{task or 'trial'} {number}", trial) for number, trial in enumerate(found, 1)]
    figure = Figure(figsize=(7.6, 1.42 * len(trials)), layout="constrained")
    rows = figure.subplots(len(trials), len(STEPS) + 1)
    for cells, (name, trial) in zip(rows, trials, strict=True):
        attempt = trial.attempts["planner"]
        mask = segment(trial.goal, env.data_spec.pick)
        for cell, step in zip(cells, STEPS, strict=False):
            draw(cell, attempt, step, mask)
        cells[-1].imshow(trial.goal, interpolation="lanczos")
        verdict = "success" if attempt.success else "failure"
        cells[0].set_ylabel(f"{name}:\n{verdict}")
    for cell, title in zip(rows[0], ("start", *STEPS[1:], "goal"), strict=True):
        cell.set_title(f"{title} actions" if isinstance(title, int) else title)
    for cell in rows.flat:
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
        for text in (cell.title, cell.xaxis.label, cell.yaxis.label):
            text.set(color=INK, fontsize=9)
    figure.savefig(out, dpi=130, transparent=True)


def draw(cell: Axes, attempt: Attempt, step: int, mask: Array) -> None:
    """Draw the image after `step` actions, and the outline of the goal's mask (h, w) over it."""
    cell.imshow(attempt.images[step], interpolation="lanczos")
    cell.contour(np.asarray(mask, float), levels=[0.5], colors=GOAL, linewidths=0.7)
    cell.set_xlabel(f"{100 * attempt.distance[step]:.1f} cm")


if __name__ == "__main__":
    main(*sys.argv[1:])
