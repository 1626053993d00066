"""The page of an evaluation on recorded episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentplan.api.bench_tables import head, interval, line, origin

MEANING = {  # of the first words of a figure: unit, control, which way is better
    "action error": ("deviations", "the last action again", "lower"),
    "prediction error": ("of the way moved", "no change", "lower"),
    "retrieval": ("of predictions", "no change", "higher"),
    "rank of the recorded action": ("of other actions cost less", "chance", "lower"),
    "cost against steps to go": ("rank correlation", "distance of the observations", "higher"),
}
LEGEND = """\
`action error` is the root mean square difference of the policy's actions, towards the end of each
episode, from the recorded ones, in standard deviations of the data. `prediction error` is the
distance of predicted latents to the true ones as a share of how far these moved; `retrieval` is the
share of predictions that are nearer to their own true latent than to those of all other
predictions. `rank of the recorded action` is the share of 63 recorded actions of other episodes
that the model prefers, where the goal is the next observation. `cost against steps to go` is the
rank correlation of the predicted cost with the steps that are left. Brackets hold 95 % intervals of
a bootstrap over episodes."""


def rows(figures: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of a table, a row a figure, without its headings."""
    found = []
    for name, figure in figures.items():
        _, control, better = MEANING[name.partition(",")[0]]
        value = f"{figure['value']:.2f}{interval(figure['ci95'], 2)}"
        beside = f"{figure['control']:.2f} ({control})"
        found.append([name, value, beside, better, str(figure["episodes"])])
    return found


COLUMNS = ["figure", "value (95 %)", "control", "better", "episodes"]


def render(figures: Mapping[str, Any], skipped: Mapping[str, str], made: Mapping[str, Any]) -> str:
    """Return the page as Markdown; `made` are settings, data, command, versions and machine."""
    s = made["settings"]
    return "\n".join(
        [
            f"# {s['run']} on recorded episodes",
            "",
            *head(COLUMNS),
            *(line(cells) for cells in rows(figures)),
            "",
            *(f"No `{name}`: {reason}.\n" for name, reason in skipped.items()),
            LEGEND,
            "",
            f"{s['episodes']} episodes of {made['data']['path']} ({s['split']}), seed {s['seed']}.",
            "",
            *origin(made, device=s["device"]),
        ]
    )
