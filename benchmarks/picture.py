"""Draw the README's picture of a run: `python benchmarks/picture.py RUN [PLANNER [OUT.png]]`.

Its rows are the first held-out trials of `latentplan plan --run RUN --planner PLANNER --seed 0`,
none left out.
"""

from __future__ import annotations

import sys

from matplotlib.figure import Figure

import latentplan
from latentplan.evaluation.protocol import Evaluation
from latentplan.sim.deformable.rope import Rope

TRIALS = 3
STEPS = (0, 2, 4, 8, 12, 20)  # actions done
INK = "#57606a"  # reads on light and on dark


def main(run: str, planner: str = "cem", out: str = "docs/images/rope.png") -> None:
    """Run the trials and draw what the planner saw, with the distance to the goal in cm."""
    config = Evaluation.Config(length=STEPS[-1], states=0)
    evaluation = Evaluation(latentplan.load(run, planner=planner), Rope(), config=config)
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    rows = figure.subplots(TRIALS, len(STEPS) + 1)
    for axes, trial in zip(rows, evaluation.trials(episodes=TRIALS, seed=0), strict=True):
        attempt = trial.attempts["planner"]
        for cell, step in zip(axes, STEPS, strict=False):
            cell.imshow(attempt.pictures[step])
            cell.set_xlabel(f"{100 * attempt.distance[step]:.1f} cm")
        axes[-1].imshow(trial.goal)
    for cell, title in zip(rows[0], ("start", *STEPS[1:], "goal"), strict=True):
        cell.set_title(f"{title} actions" if isinstance(title, int) else title)
    for cell in rows.flat:
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
        for text in (cell.title, cell.xaxis.label):
            text.set(color=INK, fontsize=9)
    figure.savefig(out, dpi=120, transparent=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
