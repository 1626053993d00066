"""The page of a comparison of models: one table for each env."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latentplan.api.bench_tables import head, interval, line, origin

COLUMNS = (
    *("model", "dynamics", "proposals", "planner", "progress (95 %)", "success", "strict"),
    *("final, cm (95 %)", "act ms", "error", "top1", "CPU min", "seeds"),
)
LEGEND = """\
`dynamics` is the model's own, or the one that `calibrated` regresses on its encoder's latents;
`proposals` are those of the inverse model of `calibrated`. Progress is the share of the distance
from random actions to the oracle, success a final distance within the env's threshold, strict
within half of it; both leave out trials that begin solved. Intervals are a bootstrap over goals and
seeds, of goals alone if there is one seed. `error` is the held-out distance of predicted to true
latents as a share of the change, 1 no better than predicting none; `top1` the share of predictions
nearest to their own next latent. CPU minutes are those of one training, of `calibrated` without its
encoder."""


def render(envs: Mapping[str, Mapping[str, Any]], made: Mapping[str, Any]) -> str:
    """Return the page as Markdown; `made` are settings, command, versions and machine."""
    parts = ["# Comparison of models", ""]
    for env, found in envs.items():
        parts += [f"## {env}", "", *_table(found), ""]
    b = made["settings"]
    parts += [
        LEGEND,
        "",
        f"Each network is trained for {b['steps']} steps, models on {b['batch']} windows of "
        f"{b['window']} observations a step; {b['goals']} starts and goals of seed "
        f"{b['goal_seed']}.",
        "",
        *(
            f"Data of {env}: {found['data']['episodes']} episodes, "
            f"{found['data']['transitions']} transitions, digest {found['data']['digest']}."
            for env, found in envs.items()
        ),
        "",
        *origin(made, device=made["device"]),
    ]
    return "\n".join(parts) + "\n"


def _table(found: Mapping[str, Any]) -> list[str]:
    rows = [
        (name, "", "", "", *_figures(each), "", "", "", "")
        for name, each in found["controls"].items()
    ]
    for row in found["rows"]:
        privileged = f" (reads {', '.join(row['privileged'])})" if row["privileged"] else ""
        rows.append(
            (
                row["model"] + privileged,
                row["dynamics"],
                "yes" if row["proposals"] else "no",
                row["planner"],
                *_figures(row),
                *(_number(row[name], 2) for name in ("error", "top1")),
                _number(row["minutes"], 1),
                str(row["seeds"]),
            )
        )
    return [*head(COLUMNS), *map(line, rows)]


def _figures(row: Mapping[str, Any]) -> list[str]:
    """Return progress, success, strict success, final distance and time of an action."""
    return [
        _number(row["progress"], 3) + _interval(row["progress_ci95"], 3),
        _percent(row["success"]),
        _percent(row["strict_success"]),
        _number(row["final"], 1, 100) + _interval(row["final_ci95"], 1, 100),
        _number(row["act_ms_p50"], 1),
    ]


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "" if value is None else f"{scale * value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}".replace("%", " %")


def _interval(value: Sequence[float] | None, digits: int, scale: float = 1.0) -> str:
    return "" if value is None else interval(value, digits, scale)
